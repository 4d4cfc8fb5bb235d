"""The command as a whole: help, options before the verb, cost of starting."""

from __future__ import annotations

import importlib
import keyword
import subprocess
import sys
from pathlib import Path

import click
import pytest

import lamina
from lamina.cli.app import _ELSEWHERE, VERBS
from lamina.cli.app import lamina as group
from tests.cli.conftest import Cli


def verb_command(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


def test_version(cli: Cli) -> None:
    assert cli("--version") == f"lamina {lamina.__version__}\n"
    assert cli("--quiet", "--version") == f"lamina {lamina.__version__}\n"


PROBE = """
import sys
from lamina.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def imported(cli: Cli, *args: str) -> set[str]:
    """The modules that a command line imports."""
    argv = [sys.executable, "-c", PROBE, *args]
    done = subprocess.run(argv, env=cli.env, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_version_imports_nothing_but_itself(cli: Cli) -> None:
    modules = imported(cli, "--version")
    assert "click" not in modules
    ours = {m for m in modules if m.startswith("lamina")}
    assert ours <= {"lamina", "lamina.cli", "lamina.lazy"}


def test_help_imports_no_verb_and_no_store(cli: Cli) -> None:
    modules = imported(cli, "--help")
    rooms = ("lamina.cli.verbs", "lamina.store", "lamina.kernel", "lamina.sandbox", "rich")
    assert [m for m in modules if m.startswith(rooms)] == []


def test_a_verb_imports_no_other_and_draws_only_for_people(cli: Cli) -> None:
    modules = imported(cli, "images")
    verbs = {m for m in modules if m.startswith("lamina.cli.verbs.")}
    assert verbs == {"lamina.cli.verbs.images"}
    unused = ("rich", "lamina.sandbox", "lamina.cli.running", "lamina.cli.progress", "tomllib")
    assert [m for m in modules if m.startswith(unused)] == []


def test_every_verb_is_a_module_and_every_module_a_verb() -> None:
    package = Path(str(importlib.import_module("lamina.cli.verbs").__file__)).parent
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert modules == {f"{n}_" if keyword.iskeyword(n) else n for n in VERBS}


@pytest.mark.parametrize("name", VERBS)
def test_the_overview_says_what_the_verb_says(name: str) -> None:
    help_text = verb_command(name).help
    assert help_text is not None
    assert help_text.splitlines()[0] == f"{VERBS[name].summary}."


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_shows_an_example(name: str) -> None:
    help_text = verb_command(name).help or ""
    assert "Example" in help_text
    assert f"lamina {name}" in help_text.partition("Example")[2]


def test_the_overview_has_topics_and_examples(cli: Cli) -> None:
    overview = cli("--help")
    assert cli() == overview == cli("-h")
    for name, verb in VERBS.items():
        assert f"  {name} " in overview
        assert f"{verb.topic}:\n" in overview
    assert "Examples:\n" in overview


def test_an_unknown_verb_is_told_with_the_one_that_is_meant(cli: Cli) -> None:
    message = cli.fails("imgaes", status=2)
    assert message == "there is no verb 'imgaes'; did you mean 'images'? (see 'lamina --help')"


def test_an_unknown_server_too(cli: Cli) -> None:
    message = cli.fails("serve", "contanerd", status=2)
    meant = "there is no server 'contanerd'; did you mean 'containerd'?"
    assert message == f"serve: {meant} (see 'lamina serve --help')"
    assert "; there are containerd and docker" in cli.fails("serve", "kubelet", status=2)


def test_serve_without_a_server_prints_its_help(cli: Cli) -> None:
    assert cli("serve") == cli("serve", "--help")
    assert "\nServers:\n" in cli("serve")


def test_a_verb_of_docker_is_told_with_what_there_is(cli: Cli) -> None:
    message = cli.fails("history", "debian", status=2)
    assert message.startswith("there is no verb 'history': 'lamina inspect' shows")
    assert not _ELSEWHERE.keys() & VERBS.keys()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--bogus", "images"], "no such option '--bogus' (see 'lamina --help')"),
        (["images", "--bogus"], "images: no such option '--bogus' (see 'lamina images --help')"),
        (
            ["images", "--root", "/x"],
            "images: --root goes before the verb: lamina --root ... images",
        ),
        (["tag", "one"], "tag: missing argument 'NAME' (see 'lamina tag --help')"),
        (["rm"], "rm: say which containers, or --all (see 'lamina rm --help')"),
        (["--storage-opt", "x", "images"], "--storage-opt takes KEY=VALUE, not 'x'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    cli: Cli, args: list[str], said: str
) -> None:
    assert cli.fails(*args, status=2).startswith(said)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_for_this_command(cli: Cli, shell: str) -> None:
    assert "_LAMINA_COMPLETE" in cli("completion", shell)


def complete(cli: Cli, *words: str) -> list[str]:
    env = {
        "_LAMINA_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["lamina", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return [line.partition(",")[2] for line in cli(env=env).split()]


def test_verbs_and_names_are_completed(cli: Cli, image: str) -> None:
    cli("create", "--name", "boxone", image, "true")
    assert complete(cli, "im") == ["import", "images"]
    assert complete(cli, "run", "sm") == [image]
    assert complete(cli, "diff", "box") == ["boxone"]
    cli("snapshot", "boxone", "early")
    assert complete(cli, "rollback", "boxone", "e") == ["early"]


def test_completion_of_a_store_that_is_not_there_is_empty(cli: Cli) -> None:
    assert complete(cli, "--root", "/proc/nowhere", "run", "s") == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "-d", "x", "true"], "run: there is no -d: a container runs in the foreground"),
        (["run", "--memory=1g", "x"], "run: there is no --memory: limit memory around it"),
        (["create", "--publish", "80:80", "x"], "create: there is no --publish: the command has"),
        (["system", "df"], "there is no verb 'system': 'lamina du' shows the disk"),
        (["container", "ls"], "there is no verb 'container': 'lamina ps -a'"),
        (["rename", "a", "b"], "there is no verb 'rename': "),
    ],
)
def test_who_comes_from_docker_is_told_the_way(cli: Cli, argv: list[str], said: str) -> None:
    status = 125 if argv[0] == "run" else 2
    assert cli.fails(*argv, status=status).startswith(said)


def test_a_transport_before_a_name_is_to_be_left_out(cli: Cli) -> None:
    assert "leave out docker://" in cli.fails("pull", "docker://debian:12")
