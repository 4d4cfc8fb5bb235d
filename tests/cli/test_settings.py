"""Global options: the command line, then the environment, then configuration files."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from lamina.cli import settings
from lamina.cli.settings import Settings, load, pairs
from tests.cli.conftest import Cli


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The machine's file and the user's, neither there yet."""
    machine, user = tmp_path / "etc.toml", tmp_path / "config/lamina/config.toml"
    user.parent.mkdir(parents=True)
    monkeypatch.setattr(settings, "SYSTEM_CONFIG", machine)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return machine, user


def test_nothing_given_leaves_all_to_the_store(config: tuple[Path, Path]) -> None:
    assert load({}) == Settings()


def test_the_users_file_goes_before_the_machines_and_options_before_both(
    config: tuple[Path, Path],
) -> None:
    machine, user = config
    machine.write_text(
        'root = "/machine"\ndriver = "vfs"\nquiet = true\n[storage-opt]\nsize = 5\na = "1"\n'
    )
    user.write_text('root = "/user"\nrun-root = "~/run"\n')
    found = load({"storage_opt": ("a=2",)})
    assert found.root == Path("/user")
    assert found.run_root == Path(os.path.expanduser("~/run"))
    assert found.driver == "vfs"
    assert found.quiet
    assert found.storage_options == {"size": "5", "a": "2"}
    assert load({"root": "/given"}).root == Path("/given")


def test_a_file_that_is_named_is_the_only_one(config: tuple[Path, Path], tmp_path: Path) -> None:
    config[0].write_text('driver = "vfs"\n')
    (tmp_path / "own.toml").write_text('root = "/own"\n')
    found = load({"config": str(tmp_path / "own.toml")})
    assert (found.root, found.driver) == (Path("/own"), None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("drivr = 'x'", "there is no setting 'drivr'"),
        ("root = 5", "'root' takes a string"),
        ("quiet = 'yes'", "'quiet' takes true or false"),
        ("root = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_told_by_name(config: tuple[Path, Path], text: str, said: str) -> None:
    config[0].write_text(text)
    with pytest.raises(click.ClickException, match=said) as caught:
        load({})
    assert str(config[0]) in caught.value.message


def test_pairs_need_an_equals_sign() -> None:
    assert pairs(("a=b=c",), "-x") == {"a": "b=c"}
    with pytest.raises(click.UsageError):
        pairs(("a",), "-x")


def test_options_environment_and_file_name_the_same_store(cli: Cli, tmp_path: Path) -> None:
    def root_of(*args: str, **env: str) -> str:
        clean = {k: v for k, v in cli.env.items() if not k.startswith("LAMINA_")}
        found = Cli({**clean, **env}, cli.root, cli.run_root).json(*args, "info")
        return str(found["root"])

    one, two, three = (str(tmp_path / n) for n in ("one", "two", "three"))
    file = tmp_path / "lamina.toml"
    file.write_text(f'root = "{three}"\nrun-root = "{tmp_path}/r"\ndriver = "vfs"\n')
    assert root_of("--root", one, LAMINA_ROOT=two, LAMINA_CONFIG=str(file)) == one
    assert root_of(LAMINA_ROOT=two, LAMINA_CONFIG=str(file)) == two
    assert root_of(LAMINA_CONFIG=str(file)) == three
    assert root_of("--config", str(file)) == three


def test_a_missing_file_that_was_named_is_an_error(cli: Cli) -> None:
    message = cli.fails("--config", "/nowhere.toml", "images")
    assert message == "/nowhere.toml: No such file or directory"
