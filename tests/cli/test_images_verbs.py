"""The verbs that move images, against the programs that people come from."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from lamina.oci.layout import LayoutDirectory
from tests import daemons
from tests.cli.conftest import Cli
from tests.oci import peers
from tests.oci.images import index, make, put, tar

pytestmark = pytest.mark.root

LAYERS = ({"etc/motd": b"one", "etc/gone": b"x"}, {"etc/.wh.gone": b""}, {"srv/a": b"a" * 9000})
NAME = "docker.io/library/box:1"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with the image ``box:1`` of three layers, compressed by other means than ours."""
    path = tmp_path / "layout"
    with closing(LayoutDirectory.create(path)) as made:
        put(made, make(*LAYERS, compression="zstd"), NAME)
    return path


@pytest.fixture
def box(cli: Cli, layout: Path) -> str:
    """The name of that image in the store."""
    assert cli("load", "-i", layout) == "Loaded image: box:1\n"
    return "box:1"


def on_a_terminal(cli: Cli, *args: str | Path) -> tuple[int, str]:
    """Status and output of the command with a terminal for stdin, stdout and stderr."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        cli.argv(*args), env=cli.env, stdin=secondary, stdout=secondary, stderr=secondary
    )
    os.close(secondary)
    shown = b""
    with open(primary, "rb", buffering=0) as terminal:
        while True:
            try:
                shown += terminal.read(4096)
            except OSError:  # EIO: all who had the other end are gone
                break
    return process.wait(), shown.decode()


class TestLoadAndSave:
    def test_what_is_saved_is_loaded_by_docker_and_podman(
        self, cli: Cli, box: str, tmp_path: Path
    ) -> None:
        cli("save", box, "-o", tmp_path / "out.tar")
        config = cli.json("inspect", box)[0]
        layers = [layer["diff_id"] for layer in config["layers"]]
        with daemons.dockerd(tmp_path / "docker") as docker:
            assert docker("load", "-i", tmp_path / "out.tar") == "Loaded image: box:1\n"
            assert docker.inspect("box:1")[0]["RootFS"]["Layers"] == layers
            docker("save", "box:1", "-o", tmp_path / "back.tar")
        with peers.podman(tmp_path) as podman:
            podman.load(tmp_path / "out.tar")
            assert podman.diff_ids("box:1") == layers
        cli("rmi", box)
        assert cli("load", "-i", tmp_path / "back.tar") == "Loaded image: box:1\n"
        assert cli.json("inspect", box)[0]["id"] == config["id"]

    def test_from_a_pipe_to_a_pipe(self, cli: Cli, box: str, tmp_path: Path) -> None:
        other = {"LAMINA_ROOT": str(tmp_path / "other"), "LAMINA_RUN_ROOT": str(tmp_path / "orun")}
        argv = cli.argv("save", "--format", "oci-archive", box)
        with subprocess.Popen(argv, env=cli.env, stdout=subprocess.PIPE) as saving:
            assert cli("load", stdin=saving.stdout, env=other) == "Loaded image: box:1\n"
        assert saving.returncode == 0
        assert cli("images", "-q", env=other) == cli("images", "-q")

    def test_each_image_is_told_by_its_names_or_its_id(
        self, cli: Cli, tmp_path: Path, layout: Path
    ) -> None:
        with closing(LayoutDirectory.create(layout)) as made:
            put(made, make(*LAYERS, label="2"), "docker.io/library/box:2", "quay.io/x/y:2")
            put(made, make(*LAYERS, label="3"))
        names = cli("load", "-i", layout).splitlines()
        assert names[:3] == ["Loaded image: box:1", "Loaded image: box:2",
                             "Loaded image: quay.io/x/y:2"]  # fmt: skip
        assert names[3].startswith("Loaded image ID: sha256:")
        assert cli("load", "-i", layout, "box:2", "--name", "mine") == "Loaded image: mine:latest\n"
        assert "has: docker.io/library/box:1" in cli.fails("load", "-i", layout, "box:9")

    def test_the_platform_is_chosen(self, cli: Cli, tmp_path: Path) -> None:
        with closing(LayoutDirectory.create(tmp_path / "l")) as made:
            put(made, index(make(label="amd"), make(label="arm", architecture="arm64")), NAME)
        cli("load", "-i", tmp_path / "l", "--platform", "linux/arm64")
        assert cli.json("inspect", "box:1")[0]["config"]["architecture"] == "arm64"
        said = cli.fails("load", "-i", tmp_path / "l", "--platform", "linux/s390x")
        assert said == "no image for platform linux/s390x (there are: linux/amd64, linux/arm64)"

    @pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
    def test_layers_are_compressed_as_asked(
        self, cli: Cli, box: str, tmp_path: Path, skopeo: peers.Skopeo, compression: str
    ) -> None:
        target = tmp_path / "out"
        cli("save", "--format", "oci", "--compress", compression, "--threads", "1", box,
            "-o", target)  # fmt: skip
        manifest = json.loads(skopeo("inspect", "--raw", f"oci:{target}:{NAME}"))
        types = {layer["mediaType"] for layer in manifest["layers"]}
        suffix = "" if compression == "none" else f"+{compression}"
        assert types == {f"application/vnd.oci.image.layer.v1.tar{suffix}"}

    def test_other_digests_are_remarked_and_kept_blobs_have_none(
        self, cli: Cli, box: str, layout: Path, tmp_path: Path
    ) -> None:
        def save(name: str, *more: str) -> str:
            target = tmp_path / name
            done = cli.process("save", "--format", "oci-archive", box, "-o", target, *more)
            assert (done.returncode, done.stdout) == (0, "")
            return done.stderr

        assert save("anew") == (
            "lamina: box:1: 3 layers compressed anew, with other digests than before; "
            "loaded or pulled with --keep-blobs they stay the same\n"
        )
        assert "--keep-blobs" not in save("gzip", "--compress", "gzip")
        cli("load", "--keep-blobs", "-i", layout)
        assert save("same") == ""
        kept = {path.name for path in (layout / "blobs/sha256").iterdir()}
        with tarfile.open(tmp_path / "same") as archive:
            names = {os.path.basename(n) for n in archive.getnames() if n.startswith("blobs/sha2")}
        assert names - {"sha256"} == kept

    def test_on_a_terminal_nothing_is_read_and_nothing_written(
        self, cli: Cli, box: str, layout: Path, tmp_path: Path
    ) -> None:
        status, shown = on_a_terminal(cli, "load")
        assert (status, "use -i FILE" in shown) == (2, True)
        status, shown = on_a_terminal(cli, "load", layout)
        assert (status, f"lamina load -i {layout}" in shown) == (2, True)
        status, shown = on_a_terminal(cli, "save", box)
        assert (status, "use -o FILE" in shown) == (2, True)
        status, shown = on_a_terminal(cli, "save", "--format", "oci", box)
        assert (status, "use -o DIR" in shown) == (2, True)
        assert cli.fails("save", "--format", "oci", box, status=2).startswith("save: --format oci")

    def test_a_file_given_as_a_name_is_understood(self, cli: Cli, layout: Path) -> None:
        said = cli.fails("load", layout)
        assert said.endswith(f"(to read a file or directory: lamina load -i {layout})")

    def test_a_damaged_layer_is_told_by_its_number(self, cli: Cli, layout: Path) -> None:
        manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        document = json.loads((layout / "blobs" / manifest.replace(":", "/")).read_text())
        blob = document["layers"][1]["digest"]
        path = layout / "blobs" / blob.replace(":", "/")
        path.write_bytes(bytes(reversed(path.read_bytes())))
        said = cli.fails("load", "-i", layout)
        assert f"layer 2 of 3, {blob}" in said
        assert cli.json("images") == []

    def test_failures_are_one_line_with_a_next_step(
        self, cli: Cli, box: str, tmp_path: Path
    ) -> None:
        (tmp_path / "root.tar").write_bytes(tar({"etc/passwd": b"root"}))
        assert "'lamina import'" in cli.fails("load", "-i", tmp_path / "root.tar")
        assert "No such file" in cli.fails("load", "-i", tmp_path / "nosuch")
        assert "'lamina images'" in cli.fails("save", "nosuch", "-o", tmp_path / "x")
        assert "oci-archive" in cli.fails("save", box, "--compress", "gzip", "-o", tmp_path / "x")
        for wrong in (
            ["--level", "3"],
            ["--compress", "gzip", "--level", "12"],
            ["--threads", "0"],
        ):
            cli.fails("save", box, "-o", tmp_path / "x", *wrong, status=2)
        assert cli.fails("save", box, "-o", "/dev/full") == "No space left on device"
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                cli.argv("save", box), env=cli.env, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert (done.returncode, done.stderr) == (1, b"lamina: No space left on device\n")
        assert not (tmp_path / "x").exists()

    def test_a_reader_that_goes_ends_it_quietly(self, cli: Cli, tmp_path: Path) -> None:
        with closing(LayoutDirectory.create(tmp_path / "big")) as made:
            put(made, make({"big": os.urandom(1 << 20)}), NAME)
        cli("load", "-i", tmp_path / "big")
        script = 'set -o pipefail; "$@" | head -c 1000 >/dev/null'
        done = subprocess.run(
            ["bash", "-c", script, "-", *cli.argv("save", "box:1")],
            env=cli.env, capture_output=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (141, b"")
