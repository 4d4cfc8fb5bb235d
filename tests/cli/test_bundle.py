"""``lamina bundle``, and ``lamina run --runtime``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.cli.conftest import Cli
from tests.sandbox.runtimes import NAMES, start, start_as
from tests.users import User

pytestmark = pytest.mark.root

CHANGES = [
    'ENTRYPOINT ["sh", "-c"]',
    'CMD ["echo $A $PWD; id -u; cat /etc/motd; exit 3"]',
    "ENV A=image",
    "WORKDIR /srv/app",
    "USER ann",
]


@pytest.fixture
def configured(cli: Cli, image: str) -> str:
    """The name of an image that says how it is run, and has two layers."""
    cli("run", "--name", "box", image, "sh", "-c", "echo changed > /etc/motd; rm /etc/gone")
    cli("commit", *(word for change in CHANGES for word in ("-c", change)), "box", "small:run")
    return "small:run"


def document(bundle: Path) -> Any:
    return json.loads((bundle / "config.json").read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_runs_as_the_image_says(
    cli: Cli, configured: str, tmp_path: Path, name: str
) -> None:
    assert cli("bundle", configured, tmp_path / "bundle") == ""
    done = start(name, tmp_path / "bundle", tmp_path / "state")
    assert done.stdout.splitlines() == ["image /srv/app", "1000", "changed"]
    assert done.returncode == 3
    assert not (tmp_path / "bundle/rootfs/etc/gone").exists()
    assert cli.json("ps", "-a")[0]["name"] == "box"
    assert len(cli.json("ps", "-a")) == 1


@pytest.mark.parametrize("name", NAMES)
def test_options_are_those_of_run(cli: Cli, configured: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "shared").mkdir()
    cli(
        "bundle", "-e", "A=mine", "-w", "/tmp", "-u", "0:7", "-v", f"{tmp_path}/shared:/mnt",
        "--network", "none", "--hostname", "inside", "--entrypoint", "sh", configured,
        tmp_path / "bundle", "-c", "echo $A $PWD; id -g; uname -n; ls /sys/class/net; echo>/mnt/w",
    )  # fmt: skip
    done = start(name, tmp_path / "bundle", tmp_path / "state")
    assert done.stdout.splitlines() == ["mine /tmp", "7", "inside", "lo"], done.stderr
    assert (tmp_path / "shared/w").exists()


def test_a_terminal_is_for_whoever_asks(cli: Cli, image: str, tmp_path: Path) -> None:
    cli("bundle", image, tmp_path / "without", "sh")
    cli("bundle", "-t", image, tmp_path / "with", "sh")
    assert [document(tmp_path / n)["process"]["terminal"] for n in ("without", "with")] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["nosuch", "DIR", "true"], 1, "no such image: nosuch"),
        (["small:1", "DIR"], 2, "bundle: no command given, and the image has none"),
        (["small:1", "DIR/no/parent", "true"], 1, ""),
        (["-u", "stranger", "small:1", "DIR", "true"], 1, "no such user or group: stranger"),
        (["small:1", "/etc", "true"], 1, "/etc is there already, and not empty"),
        (["-v", "/nowhere:/x", "small:1", "DIR", "true"], 2, "bundle: -v: there is no /nowhere"),
        (["small:1"], 2, "bundle: missing argument 'DIR'"),
    ],
)
def test_a_failure_leaves_nothing(
    cli: Cli, image: str, tmp_path: Path, args: list[str], status: int, said: str
) -> None:
    (tmp_path / "here").mkdir()
    target = str(tmp_path / "here/bundle")
    args = [arg.replace("DIR", target) for arg in args]
    assert cli.fails("bundle", *args, status=status).startswith(said)
    assert os.listdir(tmp_path / "here") == []
    assert cli.json("ps", "-a") == []


def test_it_says_the_same_as_umoci(cli: Cli, small_tar: Path, tmp_path: Path) -> None:
    support.need("umoci")
    layout = tmp_path / "layout"
    image = f"{layout}:one"
    support.run("umoci", "init", "--layout", layout)
    support.run("umoci", "new", "--image", image)
    root = tmp_path / "root"
    root.mkdir()
    support.run("tar", "-C", root, "-xf", small_tar)
    support.run("umoci", "insert", "--image", image, root, "/")
    settings = {
        "config.user": "ann", "config.env": "A=b c", "config.workingdir": "/srv",
        "config.entrypoint": "sh", "config.cmd": "-c", "config.volume": "/data",
        "config.exposedports": "80/tcp", "config.label": "x=y", "config.stopsignal": "SIGINT",
        "author": "Ann",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    support.run("umoci", "config", "--image", image, *words)
    support.run("umoci", "unpack", "--image", image, tmp_path / "theirs")
    theirs = document(tmp_path / "theirs")

    blob = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    manifest = json.loads((layout / "blobs/sha256" / blob.partition(":")[2]).read_text())
    config = manifest["config"]["digest"].partition(":")[2]
    ours = bundle_of_config(cli, (layout / "blobs/sha256" / config).read_bytes(), root, tmp_path)

    assert ours["process"]["args"] == theirs["process"]["args"]
    assert ours["process"]["cwd"] == theirs["process"]["cwd"]
    assert ours["process"]["user"].items() >= theirs["process"]["user"].items()
    assert set(ours["process"]["env"]) >= {e for e in theirs["process"]["env"] if e[:5] != "TERM="}
    assert ours["annotations"] == theirs["annotations"]
    assert mounted_at(ours) == mounted_at(theirs)
    assert ours["root"]["path"] == theirs["root"]["path"]
    kinds = [{n["type"] for n in d["linux"]["namespaces"]} for d in (ours, theirs)]
    assert kinds[0] == kinds[1] | {"cgroup"}


def bundle_of_config(cli: Cli, config: bytes, root: Path, tmp_path: Path) -> Any:
    """The document of a bundle of an image with this configuration."""
    import lamina
    from lamina.oci import ImageConfig

    with lamina.Store(cli.root, run=cli.run_root) as store:
        image = ImageConfig.decode(config)
        made = store.import_directory(root, "theirs")
        image.rootfs.diff_ids = made.diff_ids
        same = store.images.create(image, made.top)
        store.bundle(same, tmp_path / "ours", network="none")
    return document(tmp_path / "ours")


def mounted_at(document: Any) -> set[str]:
    return {mount["destination"] for mount in document["mounts"]}


# --- run


@pytest.mark.parametrize("name", NAMES)
class TestRun:
    def test_status_and_output_are_the_command_s(self, cli: Cli, image: str, name: str) -> None:
        support.need(name)
        done = cli.process(
            "run",
            "--rm",
            "--runtime",
            name,
            image,
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
        assert cli.json("ps", "-a") == []
        assert os.listdir(cli.run_root / "oci") == []

    @pytest.mark.parametrize(
        ("args", "status", "said"),
        [
            (["small:1", "no-such-command"], 127, "no-such-command: command not found"),
            (["small:1", "/etc/motd"], 126, "/etc/motd: Permission denied"),
            (["nosuch", "true"], 125, "no such image: nosuch"),
            (["small:1"], 125, "run: no command given"),
            (["-u", "stranger", "small:1", "true"], 125, ""),
        ],
    )
    def test_failures_have_docker_s_statuses(
        self, cli: Cli, image: str, args: list[str], status: int, said: str, name: str
    ) -> None:
        support.need(name)
        arguments = ["run", "--rm", "--runtime", name, *args]
        assert cli.fails(*arguments, status=status).startswith(said)
        assert cli.json("ps", "-a") == []

    def test_what_it_writes_is_the_container_s(self, cli: Cli, image: str, name: str) -> None:
        support.need(name)
        script = "echo hi > /etc/motd; rm /etc/gone; echo $WHO; exec cat"
        said = cli(
            "run", "-i", "--runtime", name, "--name", "box", "-e", "WHO=me", image, "sh", "-c",
            script, input="through",
        )  # fmt: skip
        assert said == "me\nthrough"
        assert cli("diff", "box").splitlines() == ["C /etc", "D /etc/gone", "C /etc/motd"]

    def test_create_and_start_keep_it(self, cli: Cli, image: str, name: str) -> None:
        support.need(name)
        cli("create", "--runtime", name, "--name", "later", image, "sh", "-c", "echo $$; exit 4")
        assert cli("start", "later", status=4) == "1\n"

    def test_a_signal_ends_it_and_nothing_is_left(self, cli: Cli, image: str, name: str) -> None:
        support.need(name)
        with subprocess.Popen(
            cli.argv(
                "run", "--rm", "--runtime", name, image, "sh", "-c", "echo up; exec sleep 100"
            ),
            env=cli.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 128 + signal.SIGTERM
        assert cli.json("ps", "-a") == []
        assert os.listdir(cli.run_root / "oci") == []

    def test_a_missing_runtime_is_told_before_a_container_is_made(
        self, cli: Cli, image: str, name: str
    ) -> None:
        """In a mount namespace in which there is none."""
        support.need(name)
        argv = " ".join(cli.argv("run", "--runtime", name, image, "true"))
        script = f'mount --bind /dev/null "$(command -v {name})" && exec {argv}'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env=cli.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 125
        assert done.stderr.startswith(f"lamina: there is no {name} on this machine: install it")
        assert cli.json("ps", "-a") == []


# --- ordinary users


@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_user_makes_and_runs_bundles(
    ordinary_user: User, small_tar: Path, name: str
) -> None:
    support.need(name)
    home = ordinary_user.home
    (home / "small.tar").write_bytes(small_tar.read_bytes())

    def lamina(*args: str) -> subprocess.CompletedProcess[bytes]:
        return ordinary_user.run(
            [ordinary_user.python, "-m", "lamina", *args],
            env={"XDG_DATA_HOME": str(home / "data")}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    assert lamina("import", "small.tar", "small").returncode == 0
    ran = lamina("run", "--rm", "--runtime", name, "small", "sh", "-c", "id -u; echo $$; exit 3")
    assert (ran.returncode, ran.stdout) == (3, b"0\n1\n"), ran.stderr
    for network in ("none", "host"):
        script = "id -u; cat /etc/motd; ls -d /sys/class; exit 4"
        made = lamina("bundle", "--network", network, "small", f"my{network}", "sh", "-c", script)
        assert made.returncode == 0, made.stderr
        done = start_as(ordinary_user, name, home / f"my{network}")
        assert (done.returncode, done.stdout) == (4, "0\nwelcome\n/sys/class\n"), done.stderr


WITH_RANGES = """
mount --bind "$1" /etc/subuid && mount --bind "$1" /etc/subgid || exit 99
umount -l /sys/fs/cgroup/unified 2>/dev/null
shift
exec "$@"
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_user_with_ranges_of_ids_keeps_the_owners(
    ordinary_user: User, small_tar: Path, tmp_path: Path, name: str
) -> None:
    support.need(name, "newuidmap", "setpriv")
    user, home = ordinary_user, ordinary_user.home
    (home / "small.tar").write_bytes(small_tar.read_bytes())
    (tmp_path / "ranges").write_text(f"{user.uid}:200000:65536\n")
    enter = ["unshare", "--mount", "sh", "-c", WITH_RANGES, "sh", str(tmp_path / "ranges")]
    become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        env = user.environment({"XDG_DATA_HOME": str(home / "data")})
        return subprocess.run(
            [*enter, *become, *argv], env=env, cwd=home, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    lamina = (user.python, "-m", "lamina")
    assert call(*lamina, "import", "small.tar", "small").returncode == 0
    script = "id -u; id -g; exit 5"
    made = call(*lamina, "bundle", "-u", "33:34", "small", "mine", "sh", "-c", script)
    assert made.returncode == 0, made.stderr
    ids = document(home / "mine")["linux"]["uidMappings"]
    assert [list(one.values()) for one in ids] == [[0, user.uid, 1], [1, 200000, 65536]]
    tool = [name] if name == "runc" else [name, "--cgroup-manager=disabled"]
    done = call(*tool, "--root", f"{home}/state", "run", "--bundle", f"{home}/mine", "one")
    assert (done.returncode, done.stdout) == (5, "33\n34\n"), done.stderr
    ran = call(
        *lamina, "run", "--rm", "--runtime", name, "-u", "33:34", "small", "sh", "-c", script
    )
    assert (ran.returncode, ran.stdout) == (5, "33\n34\n"), ran.stderr
