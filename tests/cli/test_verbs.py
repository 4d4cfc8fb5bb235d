"""Each verb over a real store, through a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from lamina.cli import process
from lamina.errors import ContainerNotFound
from lamina.store import Container, Store
from tests.cli.conftest import Cli
from tests.store.conftest import damage

pytestmark = pytest.mark.root


@pytest.fixture
def box(cli: Cli, image: str) -> str:
    """The name of a container with an added, a changed and a deleted file."""
    script = "echo hi > /etc/motd; rm /etc/gone; mkdir /new; echo x > /new/file"
    cli("run", "--name", "box", image, "sh", "-c", script)
    return "box"


CHANGES = ["C /etc", "D /etc/gone", "C /etc/motd", "A /new", "A /new/file"]


class TestImages:
    def test_import_takes_a_file_a_directory_and_stdin(
        self, cli: Cli, small_tar: Path, tmp_path: Path
    ) -> None:
        by_file = cli("import", small_tar, "one").strip()
        assert by_file.startswith("sha256:")
        with small_tar.open("rb") as tar:
            cli("import", "-", "two:x", stdin=tar)
        (tmp_path / "tree/etc").mkdir(parents=True)
        cli("import", tmp_path / "tree", "three")
        listed = {i["names"][0]: i for i in cli.json("images")}
        assert set(listed) == {"one:latest", "two:x", "three:latest"}
        assert listed["one:latest"]["id"] == by_file
        assert listed["one:latest"]["size"] == listed["two:x"]["size"] > 1_000_000

    def test_a_damaged_archive_is_one_line_and_leaves_nothing(
        self, cli: Cli, tmp_path: Path, small_tar: Path
    ) -> None:
        (tmp_path / "cut.tar").write_bytes(small_tar.read_bytes()[:100_000])
        assert "invalid archive" in cli.fails("import", tmp_path / "cut.tar", "cut")
        assert cli.json("images") == []
        assert cli.json("info")["layers"] == 0

    def test_a_missing_file_is_told_by_its_name(self, cli: Cli) -> None:
        assert cli.fails("import", "/no/such.tar") == "/no/such.tar: No such file or directory"

    def test_listing(self, cli: Cli, image: str) -> None:
        cli("tag", image, "registry.example:5000/other")
        head, *rows = [line.split() for line in cli("images").splitlines()]
        assert head == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        assert [row[:2] for row in rows] == [
            ["registry.example:5000/other", "latest"],
            ["small", "1"],
        ]
        short = cli("images", "-q").split()
        assert len(short) == 1
        assert len(short[0]) == 12
        whole = cli("images", "-q", "--no-trunc").strip()
        assert whole.startswith(f"sha256:{short[0]}")
        assert cli("images", "-q", "small") == cli("images", "-q", "-f", "reference=sm*")
        assert cli("images", "-q", "nothing") == ""
        assert cli("images", "-q", "-f", "dangling=true") == ""
        assert "--filter knows" in cli.fails("images", "-f", "colour=red", status=2)

    def test_a_driver_that_does_not_exist_is_refused_before_anything_is_done(
        self, cli: Cli
    ) -> None:
        for verb in ("images", "info", "du"):
            said = cli.fails("--driver", "nonsense", verb)
            assert said.startswith("no driver is called 'nonsense' (there are: erofs, overlay, ")
        said = cli.fails("--driver", "vfs", "--storage-opt", "x=1", "images")
        assert said == "driver vfs has no storage option 'x' (it has none)"
        assert not cli.root.exists()

    def test_images_are_found_by_patterns(self, cli: Cli, image: str) -> None:
        cli("tag", image, "other:1")
        for pattern in (["o*r"], ["other:?"], ["-f", "reference=oth*"]):
            (row,) = cli("images", *pattern).splitlines()[1:]
            assert row.split()[:2] == ["other", "1"], "the name that fits alone"
        assert len(cli("images", "*").splitlines()) == 3

    def test_an_id_is_not_pushed_without_a_destination(self, cli: Cli, image: str) -> None:
        id = cli.json("images")[0]["id"].removeprefix("sha256:")[:12]
        said = cli.fails("push", id, status=2)
        assert said.startswith("push: an id has no place to go: give DESTINATION")

    def test_info_says_why_the_driver_was_chosen(self, cli: Cli) -> None:
        for args, why in (
            ((), "it is the best that works here"),
            ((), "it is the store's own"),
            (("--driver", "vfs"), "it was asked for"),
        ):
            (line,) = [n for n in cli(*args, "info").splitlines() if n.startswith("Driver:")]
            assert line.endswith(f" ({why})")

    def test_an_image_that_is_not_there_can_be_pulled(self, cli: Cli, image: str) -> None:
        cli("tag", image, "debian:12")
        there = (
            "'lamina images' lists them, 'lamina pull debian' fetches one; the store has debian:12"
        )
        for args, status in ((["run", "debian", "true"], 125), (["push", "debian"], 1)):
            said = cli.fails(*args, status=status)
            assert said == f"no such image: debian ({there})"
        assert "pull" not in cli.fails("run", "abcdef0", "true", status=125), "that is an id"

    def test_rmi_takes_names_away_and_then_the_image(self, cli: Cli, image: str) -> None:
        cli("tag", image, "second")
        assert cli("rmi", "second") == "Untagged: second:latest\n"
        assert cli("rmi", image).startswith(f"Untagged: {image}\nDeleted: sha256:")
        assert cli.json("images") == []

    def test_rmi_goes_on_after_a_failure(self, cli: Cli, image: str) -> None:
        done = cli.process("rmi", "nosuch", image)
        assert done.returncode == 1
        assert done.stderr.startswith("lamina: no such image: nosuch")
        assert f"Untagged: {image}" in done.stdout

    def test_an_image_in_use_stays(self, cli: Cli, image: str) -> None:
        cli("create", "--name", "user", image, "true")
        assert "in use by container user" in cli.fails("rmi", image)


class TestRunning:
    def test_status_and_output_are_the_commands(self, cli: Cli, image: str) -> None:
        done = cli.process("run", "--rm", image, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
        assert cli.json("ps", "-a") == []

    @pytest.mark.parametrize(
        ("args", "status", "said"),
        [
            (["small:1", "no-such-command"], 127, "no-such-command: command not found"),
            (["small:1", "/etc/motd"], 126, "/etc/motd: Permission denied"),
            (["nosuch", "true"], 125, "no such image: nosuch"),
            (["small:1"], 125, "run: no command given"),
            (["--bogus"], 125, "run: no such option '--bogus'"),
            (["-v", "/nowhere:/x", "small:1", "true"], 125, "run: -v: there is no /nowhere"),
            (["-v", "/:/", "small:1", "true"], 125, "run: -v: a volume can't stand in for"),
            (["-v", "/:/usr/..", "small:1", "true"], 125, "run: -v: a volume can't stand in for"),
            (["-v", "relative", "small:1", "true"], 125, "run: -v takes HOST:CONTAINER"),
            (["-u", "stranger", "small:1", "true"], 125, ""),
        ],
    )
    def test_failures_have_dockers_statuses(
        self, cli: Cli, image: str, args: list[str], status: int, said: str
    ) -> None:
        assert cli.fails("run", "--rm", *args, status=status).startswith(said)
        assert cli.json("ps", "-a") == []

    def test_options_reach_the_command(self, cli: Cli, image: str, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        (tmp_path / "envs").write_text("# comment\nFROM_FILE=1\n\nHOME_MADE\n")
        script = (
            "echo $A $B $FROM_FILE; pwd; id -u; id -g; echo w > /mnt/w; echo r > /ro/r; uname -n"
        )
        done = cli.process(
            "run", "--rm", "-it", "-e", "A=1=2", "-e", "B", "--env-file", tmp_path / "envs",
            "-w", "/work", "-u", "ann", "-v", f"{tmp_path}/shared:/mnt",
            "-v", f"{tmp_path}/shared:/ro:ro", "--network", "none", "--hostname", "inside",
            image, "sh", "-c", script,
            env={"B": "passed on"},
        )  # fmt: skip
        assert done.stdout.splitlines()[:4] == ["1=2 passed on 1", "/work", "1000", "1000"]
        assert done.stdout.splitlines()[-1] == "inside"
        assert "ro" in done.stderr.lower()
        assert not (tmp_path / "shared/r").exists()

    def test_options_after_the_image_are_the_commands(self, cli: Cli, image: str) -> None:
        assert cli("run", "--rm", image, "echo", "--rm", "-e", "x") == "--rm -e x\n"

    def test_entrypoint(self, cli: Cli, image: str) -> None:
        assert cli("run", "--rm", "--entrypoint", "echo", image, "a", "b") == "a b\n"

    def test_stdin_is_passed_on_when_asked(self, cli: Cli, image: str) -> None:
        assert cli("run", "--rm", "-i", image, "cat", input="through") == "through"
        assert cli("run", "--rm", image, "cat", input="unread") == ""

    def test_a_directory_can_be_the_base_and_stays_as_it_is(
        self, cli: Cli, small_tar: Path, tmp_path: Path
    ) -> None:
        base = tmp_path / "base"
        base.mkdir()
        subprocess.run(["tar", "-C", base, "-xf", small_tar], check=True)
        cli("run", "--name", "over", base, "sh", "-c", "echo changed > /etc/motd")
        assert (base / "etc/motd").read_text() == "welcome\n"
        assert cli("diff", "over").splitlines() == ["C /etc", "C /etc/motd"]
        assert cli.json("ps", "-a")[0]["base"] == str(base)

    def test_create_and_start_keep_what_they_were_told(self, cli: Cli, image: str) -> None:
        made = cli(
            "create", "--name", "later", "-e", "WHO=me", "-w", "/tmp", image, "sh", "-c",
            "echo $WHO; pwd; exit 4",
        ).strip()  # fmt: skip
        assert len(made) == 64
        assert cli("start", made[:12], status=4) == "me\n/tmp\n"
        assert cli("start", "later", status=4) == "me\n/tmp\n"
        assert cli.fails("start", "nosuch", status=125).startswith("no such container")

    def test_a_name_is_taken_once(self, cli: Cli, image: str) -> None:
        cli("create", "--name", "one", image, "true")
        assert "called one already" in cli.fails("create", "--name", "one", image, "true")


class TestContainers:
    @pytest.mark.parametrize("form", ["table", "json"])
    def test_ps_leaves_out_what_goes_meanwhile(
        self,
        cli: Cli,
        image: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        form: str,
    ) -> None:
        for name in ("stays", "goes"):
            cli("create", "--name", name, image, "true")

        def size(box: Container) -> int:
            if box.name == "goes":
                raise ContainerNotFound(box.id)
            return 5

        monkeypatch.setattr(Container, "size", size)
        options = ["--root", str(cli.root), "--run-root", str(cli.run_root)]
        assert process.run([*options, "ps", "-a", "-s", "--format", form]) == 0
        shown = capsys.readouterr().out
        assert "stays" in shown
        assert "goes" not in shown

    def test_ps_after_a_kill(self, cli: Cli, image: str) -> None:
        script = "echo up; exec sleep 100"
        with subprocess.Popen(
            cli.argv("run", "--name", "box", image, "sh", "-c", script),
            env=cli.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.kill()
        (box,) = cli.json("ps", "-a")
        assert (box["state"], box["exit_code"]) == ("exited", None)
        assert "exited   " in cli("ps", "-a").splitlines()[1]

    def test_ps_shows_what_is_in_use_and_with_a_all(self, cli: Cli, box: str, image: str) -> None:
        cli("create", "--name", "idle", image, "echo", "a word", "x" * 40)
        assert len(cli("ps").splitlines()) == 1
        head, idle, used = cli("ps", "-a").splitlines()
        assert head.split()[:2] == ["CONTAINER", "ID"]
        assert idle.split()[1] == image
        assert "echo 'a word' xx" in idle
        assert "..." in idle
        assert "created" in idle
        assert "exited (0)" in used
        assert used.endswith(box)
        by_name = cli.json("ps", "-a", "-s")
        assert [(b["name"], b["state"], b["exit_code"]) for b in by_name] == [
            ("idle", "created", None),
            ("box", "exited", 0),
        ]
        assert by_name[1]["size"] == 5
        assert cli("ps", "-q", "-f", "status=exited").strip() == by_name[1]["id"][:12]
        assert cli("ps", "-aq", "--no-trunc", "-f", "name=dle").strip() == by_name[0]["id"]
        assert len(cli("ps", "-aq", "-f", f"ancestor={image}").split()) == 2

    def test_diff_is_sorted_and_has_kinds(self, cli: Cli, box: str) -> None:
        assert cli("diff", box).splitlines() == CHANGES
        assert cli.json("diff", box)[1] == {"path": "/etc/gone", "kind": "D"}

    def test_names_that_are_not_utf8_survive(self, cli: Cli, box: str) -> None:
        path = cli("mount", box).strip()
        Path(os.fsdecode(os.fsencode(path) + b"/new/\xff\n")).write_text("")
        done = subprocess.run(
            cli.argv("diff", box), env=cli.env, stdout=subprocess.PIPE, check=True
        )
        assert b"A /new/\xff\n\n" in done.stdout
        assert cli.json("diff", box)[-1]["path"] == "/new/\udcff\n"
        cli("umount", box)

    def test_commit_makes_an_image_that_runs(self, cli: Cli, box: str) -> None:
        made = cli("commit", "-m", "greeting", "-a", "Ann", box, "small:2").strip()
        assert cli("run", "--rm", "small:2", "cat", "/etc/motd") == "hi\n"
        (shown,) = cli.json("inspect", "small:2")
        assert shown["id"] == made
        assert len(shown["layers"]) == 2
        assert shown["config"]["history"][-1]["comment"] == "greeting"
        cli("commit", "--squash", box, "small:flat")
        assert len(cli.json("inspect", "small:flat")[0]["layers"]) == 1

    def test_changes_say_how_the_image_is_run(self, cli: Cli, box: str) -> None:
        changes = ["ENV A=1", 'CMD ["echo", "by default"]', "WORKDIR /new", "USER ann"]
        cli("commit", *(w for c in changes for w in ("-c", c)), box, "ready")
        assert cli("run", "--rm", "ready") == "by default\n"
        assert cli("run", "--rm", "ready", "sh", "-c", "pwd; id -u; echo $A") == "/new\n1000\n1\n"
        again = cli("commit", "-c", "ENV B=2", cli("create", "ready").strip(), "more").strip()
        shown = cli.json("inspect", again)[0]["config"]["config"]
        assert shown["Env"] == ["A=1", "B=2"]
        assert shown["Cmd"] == ["echo", "by default"]
        assert "--change takes one of" in cli.fails("commit", "-c", "RUN x", box, status=2)

    def test_export_is_the_whole_tree(self, cli: Cli, box: str, tmp_path: Path) -> None:
        cli("export", box, "-o", tmp_path / "box.tar")
        piped = subprocess.run(
            cli.argv("export", box), env=cli.env, stdout=subprocess.PIPE, check=True
        ).stdout
        assert piped == (tmp_path / "box.tar").read_bytes()
        with tarfile.open(fileobj=io.BytesIO(piped)) as tar:
            names = {name.removeprefix("./") for name in tar.getnames()}
        assert {"new/file", "etc/motd", "bin/sh"} <= names
        assert "etc/gone" not in names

    def test_attributes_go_along_as_asked(self, cli: Cli, box: str, tmp_path: Path) -> None:
        root = Path(cli("mount", box).strip())
        os.setxattr(root / "etc/motd", "security.note", b"1")
        cli("umount", box)
        for options, kept in (([], False), (["--xattrs", "all"], True)):
            cli("export", *options, "-o", tmp_path / "box.tar", box)
            with tarfile.open(tmp_path / "box.tar") as tar:
                headers = tar.getmember("etc/motd").pax_headers
            assert ("SCHILY.xattr.security.note" in headers) is kept
            cli("commit", *options, box, "made:1")
            made = cli("create", "made:1").strip()
            root = Path(cli("mount", made).strip())
            assert os.listxattr(root / "etc/motd") == ["security.note"] * kept
            cli("umount", made)
        assert "'all'" in cli.fails("commit", "--xattrs", "some", box, status=2)

    def test_export_to_a_full_disk_leaves_no_half_archive(
        self, cli: Cli, box: str, tmpfs_small: Path
    ) -> None:
        (tmpfs_small / "ballast").write_bytes(bytes(3 << 20))
        assert "No space left" in cli.fails("export", box, "-o", tmpfs_small / "box.tar")
        assert os.listdir(tmpfs_small) == ["ballast"]

    def test_a_fork_goes_its_own_way(self, cli: Cli, box: str) -> None:
        cli("fork", box, "twin")
        path = Path(cli("mount", "twin").strip())
        (path / "new/more").write_text("x")
        cli("umount", "twin")
        assert cli("diff", box).splitlines() == CHANGES
        assert cli("diff", "twin").splitlines() == [*CHANGES, "A /new/more"]

    def test_snapshot_and_rollback(self, cli: Cli, box: str) -> None:
        cli("snapshot", box, "before")
        path = Path(cli("mount", box).strip())
        (path / "new/more").write_text("x")
        cli("umount", box)
        assert cli("diff", box).splitlines()[-1] == "A /new/more"
        cli("rollback", box, "before")
        assert cli("diff", box).splitlines() == CHANGES
        assert cli("snapshot", box) == "before\n"
        assert cli.json("snapshot", box) == ["before"]
        cli("snapshot", box, "before", "--rm")
        assert cli("snapshot", box) == ""
        cli.fails("rollback", box, "before")

    def test_mount_outlives_the_command_and_umount_ends_it(self, cli: Cli, box: str) -> None:
        path = Path(cli("mount", box).strip())
        assert (path / "etc/motd").read_text() == "hi\n"
        assert cli.json("ps")[0]["state"] == "mounted"
        assert cli.json("mount") == [
            {"id": cli.json("ps")[0]["id"], "name": box, "path": str(path)}
        ]
        assert cli("mount").splitlines()[1].endswith(str(path))
        assert "unmount it first" in cli.fails("rm", box)
        assert cli("umount", box) == "box\n"
        assert not os.path.ismount(path)
        assert "is not mounted" in cli.fails("umount", box)
        cli("mount", box)
        assert cli("umount", "--all") == "box\n"

    def test_rm_removes_all_it_is_told_and_says_what_it_cannot(self, cli: Cli, box: str) -> None:
        cli("fork", box, "twin")
        cli("mount", "twin")
        done = cli.process("rm", "nosuch", box)
        assert (done.returncode, done.stdout) == (1, "box\n")
        assert done.stderr.startswith("lamina: no such container: nosuch")
        assert cli("rm", "-f", "twin") == "twin\n"
        assert cli.json("ps", "-a") == []

    def test_rm_all(self, cli: Cli, box: str) -> None:
        cli("fork", box, "twin")
        assert sorted(cli("rm", "--all").split()) == ["box", "twin"]


class TestStore:
    def test_info_shows_every_driver_and_the_reason(self, cli: Cli) -> None:
        found = cli.json("info")
        drivers = {d["name"]: d for d in found["drivers"]}
        assert {"overlay", "vfs"} <= set(drivers)
        assert drivers["vfs"] == {"name": "vfs", "works": True, "reason": None}
        assert found["root"] == str(cli.root)
        assert found["run_root"] == str(cli.run_root)
        text = cli("info")
        assert "  vfs " in text
        assert found["backing_file_system"] in text

    def test_info_of_a_driver_that_does_not_work_says_why(self, cli: Cli) -> None:
        found = {d["name"]: d for d in cli.json("info")["drivers"]}
        for driver in found.values():
            assert driver["works"] == (driver["reason"] is None)
            assert "\n" not in (driver["reason"] or "")

    def test_inspect_finds_containers_first_and_then_images(self, cli: Cli, box: str) -> None:
        cli("commit", box, "box")
        both = cli.json("inspect", "box", "small:1")
        assert [shown["type"] for shown in both] == ["container", "image"]
        assert cli.json("inspect", "--type", "image", "box")[0]["type"] == "image"
        done = cli.process("inspect", "nosuch", "small:1")
        assert done.returncode == 1
        assert done.stderr == "lamina: there is no container and no image nosuch\n"

    def test_du_counts_each_layer_once(self, cli: Cli, box: str) -> None:
        cli("commit", box, "small:2")
        found = cli.json("du")
        sizes = {i["names"][0]: i for i in found["images"]}
        assert sizes["small:2"]["shared"] == sizes["small:1"]["size"]
        assert found["containers"][0]["written"] == 5
        assert found["total"] < sizes["small:1"]["size"] + sizes["small:2"]["size"]
        assert "Total: " in cli("du")

    def test_prune_takes_what_nobody_needs_and_asks_for_more(self, cli: Cli, box: str) -> None:
        cli("commit", box)
        assert cli("prune").splitlines()[0].startswith("Removed image ")
        assert "say --force" in cli.fails("prune", "--containers", status=2)
        assert cli.json("prune", "--containers", "--all", "--force")["containers"] == [box]
        assert cli.json("images") == []

    def test_the_other_driver_serves_the_same_verbs(self, cli: Cli, small_tar: Path) -> None:
        cli.env["LAMINA_DRIVER"] = "vfs"
        cli("import", small_tar, "small")
        cli("run", "--name", "copy", "small", "sh", "-c", "echo hi > /etc/motd")
        assert cli("diff", "copy").splitlines() == ["C /etc", "C /etc/motd"]

    def test_check_is_content_with_a_sound_store(self, cli: Cli, box: str) -> None:
        assert cli("check", "--contents") == ""
        assert cli.json("check") == []

    def test_check_tells_what_is_damaged(self, cli: Cli, image: str) -> None:
        (layer,) = cli.json("inspect", image)[0]["layers"]
        with Store(cli.root, run=cli.run_root) as store:
            damage(store, store.layers.get(layer["id"]), "etc/motd")
        done = cli.process("check", "--contents")
        assert done.returncode == 1
        assert layer["id"][:12] in done.stdout

    def test_unshare_is_for_ordinary_users(self, cli: Cli) -> None:
        assert "for ordinary users" in cli.fails("unshare")
