"""``lamina adopt`` as people type it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.cli import process
from lamina.cli.running import HowToRun
from lamina.store import Store
from lamina.store.adopt import DockerSource
from lamina.store.adopt.bringing import Bringing
from lamina.store.rewrite.place import Place
from tests import users
from tests.adopt import trees
from tests.adopt.conftest import CONTAINERS
from tests.adopt.test_source import BASE, IMAGE, SECOND

pytestmark = pytest.mark.root

IN_PLACE = ("--in-place", "--to", "docker-overlay2")


class Cli:
    """The command over a store of its own, whose driver can take files over by links."""

    def __init__(self, ground: Path) -> None:
        self.where = ("--root", str(ground / "store"), "--run-root", str(ground / "run"))
        self.env = os.environ | {"LAMINA_DRIVER": "overlay"}

    def __call__(self, *args: str | Path, status: int = 0) -> tuple[str, str]:
        """What it prints on stdout and stderr, when it must end with this status."""
        argv = [sys.executable, "-m", "lamina", *self.where, *map(str, args)]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == status, (args, done)
        return done.stdout, done.stderr


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_without_a_mode_it_lists_and_changes_nothing(docker_root: Path, cli: Cli) -> None:
    before = trees.fingerprint(docker_root)
    out, err = cli("adopt", docker_root)
    assert err == ""
    assert "fx/l7:rootdel   95713c38bc3a   8        2.69MB" in out
    assert "c-stopped    5d646d05e8eb   fx/l5:meta      100kB" in out
    out, _ = cli("adopt", docker_root, "--check")
    assert "Verified: 9 layers, 0 faults" in out
    found = json.loads(cli("adopt", docker_root, "--format", "json")[0])
    assert (len(found["images"]), len(found["containers"]), found["faults"]) == (9, 4, [])
    assert trees.fingerprint(docker_root) == before


def test_a_fault_is_named_and_the_status_says_so(docker_root: Path, cli: Cli) -> None:
    (docker_root / "aufs/diff" / SECOND / "opt/app/etc/conf").write_text("CONF\n")
    _, err = cli("adopt", docker_root)
    assert err == ""
    _, err = cli("adopt", docker_root, "--check", status=1)
    assert "conf' is not what it was" in err
    out, err = cli("adopt", docker_root, "--bring", status=1)
    assert out.startswith("1 image and 1 container brought")
    cause, left_out = err.splitlines()
    assert cause.startswith("lamina: layer 3611d142b5d8: file 'opt/app/etc/conf' is not what it")
    assert left_out.startswith("lamina: left out: images fx/l2:add, ")
    assert left_out.endswith(" and containers c-difffail, c-running, c-stopped")
    said = json.loads(cli("adopt", docker_root, "--bring", "--format", "json", status=1)[0])
    assert said["here"] == {"images": 1, "containers": {"overlay": 1}}
    assert "fx/l7:rootdel" in said["left_out"]["images"]
    assert [fault["kind"] for fault in said["faults"] if not fault["cause"]] == ["layer"]


def test_one_missing_layer_is_one_line(docker_root: Path, cli: Cli) -> None:
    shutil.rmtree(docker_root / "aufs/diff" / SECOND)
    out, err = cli("adopt", docker_root, status=1)
    cause, damaged = err.splitlines()
    assert re.fullmatch(
        rf"lamina: branch ({SECOND[:12]}): aufs/diff/\1 is missing \(\d\d more follow from that\)",
        cause,
    )
    assert damaged.startswith("lamina: damaged: images fx/l2:add, ")
    status = {line.split()[0]: line.split()[-1] for line in out.splitlines() if "  " in line}
    assert (status["fx/base:0"], status["fx/l2:add"]) == ("ok", "damaged")
    assert (status["c-created"], status["c-stopped"]) == ("ok", "damaged")
    assert len(cli("--debug", "adopt", docker_root, status=1)[1].splitlines()) > 20
    out, err = cli("adopt", docker_root, *IN_PLACE, status=1)
    assert err.splitlines()[-1].endswith("; --leave-out-damaged rewrites the rest")
    assert not (docker_root / "lamina-rewrite").exists()


def test_what_has_not_even_a_record_is_listed_as_damaged(docker_root: Path, cli: Cli) -> None:
    (docker_root / "image/aufs/imagedb/content/sha256" / IMAGE).unlink()
    (docker_root / "containers" / CONTAINERS["c-created"] / "config.v2.json").write_text("{")
    out, err = cli("adopt", docker_root, status=1)
    lost = [line for line in out.splitlines() if line.endswith("damaged")]
    assert any(IMAGE[:12] in line for line in lost)
    assert any(CONTAINERS["c-created"][:12] in line for line in lost)
    assert "lamina: damaged: image" in err


def test_names_choose_what_is_listed_and_read(docker_root: Path, cli: Cli) -> None:
    (docker_root / "aufs/diff" / BASE / "bin/busybox").write_bytes(b"")
    out, _ = cli("adopt", docker_root, "fx/l2", "c-created")
    assert "fx/l2:add" in out
    assert "c-created" in out
    assert "c-stopped" not in out
    out, _ = cli("adopt", docker_root, "--check", "fx/base", status=1)
    assert "Verified: 1 layer, 1 fault" in out
    _, err = cli("adopt", docker_root, "fx/bse", status=1)
    assert "no image or container called 'fx/bse'" in err


def test_an_id_may_be_as_short_as_it_is_clear(docker_root: Path, cli: Cli) -> None:
    out, _ = cli("adopt", docker_root, "95713c")
    assert "fx/l7:rootdel" in out
    _, err = cli("adopt", docker_root, "5", status=1)
    assert "5 begins several ids: " in err


def test_a_directory_in_a_docker_root_leads_to_it(docker_root: Path, cli: Cli) -> None:
    for part in ("aufs", "aufs/diff", "image/aufs"):
        _, err = cli("adopt", docker_root / part, status=1)
        assert err.endswith(f": give {docker_root}\n")


def test_a_dry_run_says_what_is_missing_of_room(
    docker_root: Path, tmp_path: Path, tmpfs_small: Path
) -> None:
    (docker_root / "aufs/diff" / SECOND / "big").write_bytes(bytes(range(256)) * 20_000)
    cli = Cli(tmp_path)
    cli.where = ("--root", str(tmpfs_small / "s"), "--run-root", str(tmp_path / "run"))
    out, err = cli("adopt", docker_root, "--bring", "--dry-run", status=1)
    assert "Takes at most " in out
    assert re.search(r"not enough room .* MB are free; another place for the store", err)


def test_a_name_that_is_taken_is_told_with_what_helps(docker_root: Path, cli: Cli) -> None:
    cli("adopt", docker_root, "--bring", "fx/base")
    cli("tag", "fx/base:0", "fx/l2:add")
    _, err = cli("adopt", docker_root, "--bring", "fx/l2", status=1)
    (hint,) = re.findall(r"'lamina tag (\w+) NAME'", err)
    cli("tag", hint, "fx/mine:2")
    assert "fx/mine" in cli("images")[0]


def test_whoever_is_not_root_is_told_at_once(docker_root: Path, ordinary_user: users.User) -> None:
    for mode in (("--bring",), ("--read-only",), IN_PLACE):
        argv = [ordinary_user.python, "-m", "lamina", "adopt", docker_root, *mode]
        done = ordinary_user.run(argv)
        assert done.returncode == 1
        assert done.stderr.decode() == (
            f"lamina: taking over what is in {docker_root} takes root: use sudo\n"
        )


def test_a_dry_run_then_the_real_one(docker_root: Path, cli: Cli) -> None:
    out, _ = cli("--driver", "overlay", "adopt", docker_root, "--bring", "--dry-run")
    assert "container c-stopped" in out
    assert "9 layers and 4 containers to come, 2.79MB, images by hard links" in out
    assert cli("images")[0].count("\n") == 1
    out, _ = cli("--driver", "overlay", "adopt", docker_root, "--bring")
    assert out.startswith("9 images and 4 containers brought (9 new layers, 2.79MB)")
    assert "A /root/started" in cli("diff", "c-running")[0]
    assert "new\n" in cli("run", "--rm", "--network", "none", "fx/l2:add", "cat", "/newroot")[0]
    out, _ = cli("adopt", docker_root, "--bring")
    assert out.startswith("0 images and 0 containers")
    assert "In the store already: 9 images, 4 containers (driver overlay)" in out
    out, _ = cli("--driver", "vfs", "adopt", docker_root, "--bring", "--dry-run")
    assert "In the store already: 4 containers (driver overlay)" in out


def test_how_a_container_was_run_is_known(docker_root: Path, tmp_path: Path) -> None:
    with (
        DockerSource(docker_root) as source,
        Store(tmp_path / "store", run=tmp_path / "run") as store,
    ):
        store.adopt(source).run()
        how = HowToRun.of(store.open("c-stopped"))
    assert (how.hostname, how.user, how.network) == ("fxhost", "0", "none")
    assert how.env == {"PATH": "/bin:/sbin", "APP": "1"}


def test_reading_in_place_takes_the_aufs_driver(docker_root: Path, cli: Cli) -> None:
    _, err = cli("--driver", "overlay", "adopt", docker_root, "--read-only", status=1)
    assert "--driver aufs" in err


def test_rewriting_and_deleting(docker_root: Path, cli: Cli) -> None:
    out, _ = cli("adopt", docker_root, "--in-place", "--to", "docker-overlay2", "--dry-run")
    assert out.startswith("13 images (4 of them without a name), 9 layers and 4 containers to be")
    assert not (docker_root / "overlay2").exists()
    out, err = cli("adopt", docker_root, "--in-place", "--to", "docker-overlay2")
    assert "rewritten for overlay2" in out
    assert "the old tree is still there" in err
    out, _ = cli("adopt", docker_root, "--in-place", "--to", "docker-overlay2")
    assert "was rewritten before" in out
    cli("adopt", docker_root, "--in-place", "--delete-source", "--dry-run")
    assert (docker_root / "aufs").exists()
    out, _ = cli("adopt", docker_root, "--in-place", "--delete-source")
    assert out.startswith("Deleted aufs, image/aufs; ")
    assert out.endswith("kB given back\n"), "images are linked: nothing but records goes"
    out, _ = cli("adopt", docker_root, "--in-place", "--delete-source")
    assert "rewritten and deleted before" in out
    assert os.listdir(docker_root / "image") == ["overlay2"]


def test_an_interrupted_rewriting_says_that_it_goes_on(
    docker_root: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    takes = cli("adopt", docker_root, *IN_PLACE, "--dry-run")[0].split("at most ")[1]

    def stop(*_: object) -> None:
        raise process.Stopped(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "commit_tree", stop)
        assert process.run([*cli.where, "adopt", str(docker_root), *IN_PLACE]) == 130
    assert capsys.readouterr().err == (
        "lamina: interrupted; what is finished stays, and the same command goes on\n"
    )
    out, _ = cli("adopt", docker_root)
    assert "A rewriting for overlay2 was begun" in out
    out, _ = cli("adopt", docker_root, *IN_PLACE, "--dry-run")
    assert "It was begun before, and goes on" in out
    assert out.split("at most ")[1] != takes, "what is there already is not needed again"
    assert json.loads(cli("adopt", docker_root, "--format", "json")[0])["rewriting"] == "begun"
    cli("adopt", docker_root, *IN_PLACE)
    out, err = cli("adopt", docker_root, "--check")
    assert "Rewritten for overlay2: start Docker" in out
    assert err == "", "containers that came over are no faults"


def test_an_interrupted_adoption_says_that_it_goes_on(
    docker_root: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise process.Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Bringing, "_bring_container", stop)
        assert process.run([*cli.where, "adopt", str(docker_root), "--bring"]) == 143
    assert "ended by a signal; what is finished stays" in capsys.readouterr().err


@pytest.mark.parametrize("args", [("images",), ("prune",), ("check", "--repair")])
def test_a_docker_root_is_no_place_for_a_store(
    docker_root: Path, cli: Cli, args: tuple[str, ...]
) -> None:
    before = trees.tree(docker_root)
    _, err = cli("--root", docker_root, *args, status=1)
    assert "is a Docker root" in err
    assert f"'lamina adopt {docker_root}' takes over" in err
    assert trees.tree(docker_root) == before


@pytest.mark.parametrize("place", [".", "aufs/store", ".."])
def test_store_and_docker_root_lie_apart(docker_root: Path, cli: Cli, place: str) -> None:
    before = trees.fingerprint(docker_root.parent)
    _, err = cli("--root", docker_root / place, "adopt", docker_root, "--bring", status=1)
    assert "must lie apart" in err
    assert trees.fingerprint(docker_root.parent) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--to", "docker-overlay2"), "go with --in-place"),
        (("--in-place",), "needs --to"),
        (("--copy",), "goes with --bring"),
        (("--bring", "--read-only"), "--bring and --read-only can't be had at once"),
        (("--check", "--bring"), "--check and --bring can't"),
        (("--bring", "--in-place", "--to", "docker-overlay2"), "--bring and --in-place can't"),
        (("fx/l2:add", "--in-place", "--to", "docker-overlay2"), "takes no names"),
        (("--dry-run",), "go with --bring"),
        (("--force", "--bring"), "--force goes with --delete-source"),
        (("--leave-out-damaged",), "goes with --in-place --to"),
        (("--in-place", "--to", "zfs"), "docker-overlay2"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    tmp_path: Path, cli: Cli, args: tuple[str, ...], said: str
) -> None:
    _, err = cli("adopt", tmp_path, *args, status=2)
    assert said in err
