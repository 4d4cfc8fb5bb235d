"""The verbs that move images, against the programs that people come from."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from lamina.oci import platform
from lamina.oci.layout import LayoutDirectory
from lamina.oci.registry import Credentials, Options, Repository
from tests import daemons
from tests.cli.conftest import Cli
from tests.oci import peers
from tests.oci.images import Made, index, make, put, tar
from tests.registries import PASSWORD, USER, Authority, Registry
from tests.servers import Faulty, Handler, relay, stall
from tests.support import need_filesystem

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


def on_a_terminal(cli: Cli, *args: str | Path, typed: str = "") -> tuple[int, str]:
    """Status and output of the command with a terminal of its own, at which this is typed.

    A line is typed once something is asked, that is, at a colon and a space.
    """
    pid, primary = pty.fork()
    if pid == 0:
        os.execve(sys.executable, cli.argv(*args), cli.env)
    lines = typed.splitlines(keepends=True)
    shown = b""
    with open(primary, "r+b", buffering=0) as terminal:
        while True:
            try:
                shown += terminal.read(4096)
            except OSError:  # EIO: all who had the other end are gone
                break
            if lines and shown.endswith(b": "):
                time.sleep(0.1)  # until it reads without echo
                terminal.write(lines.pop(0).encode())
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode()


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
        assert "has docker.io/library/box:1" in cli.fails("load", "-i", layout, "box:9")

    def test_the_platform_is_chosen(self, cli: Cli, tmp_path: Path) -> None:
        with closing(LayoutDirectory.create(tmp_path / "l")) as made:
            put(made, index(make(label="amd"), make(label="arm", architecture="arm64")), NAME)
        cli("load", "-i", tmp_path / "l", "--platform", "linux/arm64")
        assert cli.json("inspect", "box:1")[0]["config"]["architecture"] == "arm64"
        said = cli.fails("load", "-i", tmp_path / "l", "--platform", "linux/s390x")
        assert said == "no image for platform linux/s390x (there are: linux/amd64, linux/arm64)"
        said = cli.fails("manifest", "--platform", "linux/amd64", "box:1")
        assert said == "no image for platform linux/amd64 (there are: linux/arm64)"

    @pytest.mark.root
    def test_a_full_disk_is_named(self, cli: Cli, tmp_path: Path, tmpfs_small: Path) -> None:
        with closing(LayoutDirectory.create(tmp_path / "l")) as made:
            put(made, make({"big": os.urandom(8 << 20)}, compression="gzip"), NAME)
        small = {"LAMINA_ROOT": str(tmpfs_small / "store")}
        said = cli.fails("load", "-i", tmp_path / "l", env=small)
        assert "No space left on device" in said
        assert f"the disk of the store {tmpfs_small}/store is full: 'lamina du' " in said
        assert "'lamina prune'" in said
        cli("load", "-i", tmp_path / "l")
        said = cli.fails("save", "box:1", "-o", tmpfs_small / "x.tar")
        assert said == f"{tmpfs_small}/x.tar: No space left on device"
        said = cli.fails("save", "--format", "oci", "box:1", "-o", tmpfs_small / "layout")
        assert said == f"{tmpfs_small}/layout: No space left on device"

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
        said = cli.fails("save", box, "-o", "/dev/full")
        assert said == "/dev/full: No space left on device"
        said = cli.fails("save", box, "-o", tmp_path / "nodir/x.tar")
        assert said == f"{tmp_path}/nodir/x.tar: No such file or directory"
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


@pytest.fixture(autouse=True)
def _no_credentials(cli: Cli, no_credentials: Path) -> None:
    """The command has the home that :func:`no_credentials` made."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "SSL_CERT_FILE", "XDG_RUNTIME_DIR"):
        cli.env.pop(name, None)
    cli.env["HOME"] = str(no_credentials)


def publish(registry: Registry, name: str, made: Made, *tags: str) -> str:
    """Have an image in a registry; the name of its first tag."""
    who = Credentials(USER, PASSWORD) if registry.user else None
    with closing(Repository(registry.host, name, options=Options(credentials=who))) as far:
        put(far, made, *tags)
    return f"{registry.host}/{name}:{tags[0]}"


class TestPullAndPush:
    def test_a_pull_says_what_dockers_does(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        made = make(*LAYERS, compression="gzip")
        name = publish(plain_registry, repository_name, made, "1", "2")
        digest = f"Digest: {made.top.digest}"
        newer, same = "Status: Downloaded newer image for", "Status: Image is up to date for"
        assert cli("pull", name).splitlines() == [digest, f"{newer} {name}", name]
        assert cli("pull", name).splitlines() == [digest, f"{same} {name}", name]
        assert cli("pull", "-q", name) == f"{name}\n"
        other = f"{plain_registry.host}/{repository_name}:2"
        assert cli("pull", other).splitlines() == [digest, f"{newer} {other}", other], "a new name"
        by_digest = f"{plain_registry.host}/{repository_name}@{made.top.digest}"
        assert cli("pull", by_digest).splitlines() == [digest, f"{same} {by_digest}", by_digest]
        assert cli.json("images")[0]["names"] == [name, other]
        assert cli.json("inspect", by_digest) == cli.json("inspect", name)
        cli("rmi", name, other)
        assert cli("pull", by_digest).splitlines() == [digest, f"{newer} {by_digest}", by_digest]
        assert cli("rmi", by_digest).startswith("Deleted: sha256:")
        assert "no such image" in cli.fails("config", by_digest)
        cli("pull", name)
        assert cli.json("inspect", name)[0]["repo_digests"] == [by_digest]
        publish(plain_registry, repository_name, make({"x": b"y"}), "1")
        assert f"{newer} {name}" in cli("pull", name)

    def test_without_a_terminal_a_pull_says_that_it_begins(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        name = publish(plain_registry, repository_name, make(*LAYERS, compression="gzip"), "1")
        assert cli.process("pull", name).stderr == f"lamina: pulling {name}\n"
        assert cli.process("pull", name).stderr == "", "nothing is fetched"
        cli("rmi", name)
        assert cli.process("pull", "-q", name).stderr == ""

    def test_what_is_pushed_is_had_by_skopeo_and_comes_back(
        self, cli: Cli, box: str, plain_registry: Registry, repository_name: str,
        skopeo: peers.Skopeo,
    ) -> None:  # fmt: skip
        target = f"{plain_registry.host}/{repository_name}:1"
        layers = [layer["diff_id"] for layer in cli.json("inspect", box)[0]["layers"]]
        done = cli.process("push", box, target)
        assert re.fullmatch(rf"{target}: digest: sha256:\w{{64}} size: \d+\n", done.stdout)
        assert "3 layers compressed anew" in done.stderr
        far = skopeo("inspect", "--config", "--tls-verify=false", f"docker://{target}")
        assert json.loads(far)["rootfs"]["diff_ids"] == layers
        assert cli("push", "-q", box, target) == ""
        (digest,) = cli.json("inspect", box)[0]["repo_digests"]
        id = cli.json("inspect", box)[0]["id"]
        cli("rmi", box)
        cli("pull", digest)
        assert cli.json("images")[0]["id"] == id

    def test_kept_blobs_go_out_with_the_same_digest(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        made = make(*LAYERS, compression="zstd")
        name = publish(plain_registry, repository_name, made, "1")
        cli("pull", "--keep-blobs", name)
        done = cli.process("push", name, f"{plain_registry.host}/{repository_name}-2:1")
        assert f"digest: {made.top.digest}" in done.stdout
        assert done.stderr == ""

    def test_a_name_goes_where_it_says(
        self, cli: Cli, box: str, plain_registry: Registry, repository_name: str
    ) -> None:
        name = f"{plain_registry.host}/{repository_name}:1"
        cli("tag", box, name)
        assert cli("push", name).startswith(f"{name}: digest: ")

    def test_the_platform_is_chosen(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        made = index(make(label="amd"), make(label="arm", architecture="arm64"))
        name = publish(plain_registry, repository_name, made, "1")
        assert f"Digest: {made.top.digest}" in cli("pull", "--platform", "linux/arm64", name)
        assert cli.json("inspect", name)[0]["config"]["architecture"] == "arm64"
        cli("pull", "--platform", "linux/amd64", name)
        (by_digest,) = cli.json("inspect", name)[0]["repo_digests"]
        here = str(platform.this_machine())
        found = cli.json("inspect", by_digest)[0]["config"]
        assert f"{found['os']}/{found['architecture']}" == here, "two have it"
        assert "(there are: linux/amd64, linux/arm64)" in cli.fails(
            "pull", "--platform", "linux/s390x", name
        )

    def test_an_interrupted_pull_goes_on(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        made = make({"big": os.urandom(3 << 20)}, {"last": os.urandom(1 << 20)})
        publish(plain_registry, repository_name, made, "1")
        first, last = (layer.digest for layer, _ in made.blobs[1:])
        with Faulty(plain_registry.host) as proxy, proxy.running():
            proxy.fault(f"GET .*{last}", stall, 1)
            name = f"{proxy.host}/{repository_name}:1"
            process = subprocess.Popen(
                cli.argv("pull", name), env=cli.env, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            there = cli.root / "downloads" / first.replace(":", "-")
            deadline = time.monotonic() + 30
            while not there.exists() or there.stat().st_size < made.blobs[1][0].size:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=30)
            assert process.returncode == 130
            assert said == (
                "",
                f"lamina: pulling {name}\n"
                "lamina: interrupted; what was fetched is kept, the same command goes on\n",
            )
            assert cli.json("images") == []
            proxy.requests.clear()
            assert "Downloaded newer image" in cli("pull", name)
            fetched = {r.path.rpartition("/")[2] for r in proxy.asked("GET .*/blobs/")}
            assert last in fetched
            assert first not in fetched
        assert cli("check", "--contents") == ""

    def test_a_pull_that_is_interrupted_before_anything_came_promises_nothing(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        with Faulty(plain_registry.host) as proxy, proxy.running():
            proxy.fault("GET .*/manifests/", stall, 1)
            argv = cli.argv("pull", f"{proxy.host}/{repository_name}:1")
            process = subprocess.Popen(argv, env=cli.env, stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 30
            while not proxy.asked("GET .*/manifests/"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[1] == "lamina: interrupted\n"

    def test_what_an_interrupted_pull_has_fetched_is_told_and_pruned(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        made = make({"big": os.urandom(3 << 20)})
        publish(plain_registry, repository_name, made, "1")
        with Faulty(plain_registry.host) as proxy, proxy.running():
            blob = f"GET .*{made.blobs[1][0].digest}"
            proxy.fault(blob, partial(relay, cut_after=1 << 20), 1)
            proxy.fault(blob, stall, 1)
            name = f"{proxy.host}/{repository_name}:1"
            process = subprocess.Popen(
                cli.argv("pull", name), env=cli.env,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            deadline = time.monotonic() + 30
            while cli.json("du")["downloads"] == 0:
                assert time.monotonic() < deadline
            assert cli("prune") == "Space given back: 0B\n", "the pull is at it"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        assert "Downloads of interrupted pulls: " in cli("du")
        assert cli("prune") != "Space given back: 0B\n"
        assert cli.json("du")["downloads"] == 0
        assert list((cli.root / "downloads").iterdir()) == []

    def test_failures_are_one_line_with_a_next_step(
        self, cli: Cli, box: str, plain_registry: Registry, repository_name: str
    ) -> None:
        host = plain_registry.host
        said = cli.fails("pull", f"{host}/{repository_name}:none")
        assert said.endswith("(the registry has none of this name)")
        assert "lower case" in cli.fails("pull", "UPPER")
        assert "Connection refused" in cli.fails("pull", "localhost:1/x")
        assert "'lamina images'" in cli.fails("push", "nosuch", f"{host}/x")
        digest = f"{host}/x@sha256:{'0' * 64}"
        assert "can't be pushed to a digest" in cli.fails("push", box, digest)
        assert cli.fails("pull", "--creds", ":x", "a", status=2).startswith("pull: --creds takes")

    def test_tls_is_asked_for_unless_told_otherwise(
        self, cli: Cli, box: str, plain_registry: Registry, tls_registry: Registry,
        authority: Authority, repository_name: str,
    ) -> None:  # fmt: skip
        trusted = Path(cli.env["XDG_CONFIG_HOME"], "containers/certs.d")
        name = f"{tls_registry.host}/{repository_name}:1"
        said = cli.fails("push", box, name)
        assert "certificate" in said
        assert f"/certs.d/{tls_registry.host}" in said
        cli("push", "--insecure", box, name)
        cli("pull", name, env={"SSL_CERT_FILE": str(authority.ca)})
        for registry in (plain_registry, tls_registry):
            (trusted / registry.host).mkdir(parents=True)
            (trusted / registry.host / "ca.crt").write_bytes(authority.ca.read_bytes())
        cli("pull", name)
        plain = f"{plain_registry.host}/{repository_name}:1"
        assert "it does not speak TLS (--insecure:" in cli.fails("push", box, plain)
        cli("push", "--insecure", box, plain)

    def test_progress_is_drawn_on_a_terminal_alone(
        self, cli: Cli, plain_registry: Registry, repository_name: str
    ) -> None:
        made = make({"a": os.urandom(1 << 20)}, {"b": os.urandom(1 << 20)})
        publish(plain_registry, repository_name, made, "1")
        with Faulty(plain_registry.host) as proxy, proxy.running():

            def late(handler: Handler) -> None:
                time.sleep(1.5)
                relay(handler)

            name = f"{proxy.host}/{repository_name}:1"
            for args, drawn in ((["pull", name], True), (["pull", "-q", name], False)):
                proxy.fault(f"GET .*{made.blobs[-1][0].digest}", late, 1)
                status, shown = on_a_terminal(cli, *args)
                assert status == 0, shown
                assert ("pulling 127" in shown) == drawn
                assert ("1.1 MB of 2.1 MB" in shown) == drawn
                assert shown.rstrip().endswith(name)
                cli("rmi", name)


class TestLogins:
    def test_who_is_not_logged_in_is_told_how(
        self, cli: Cli, box: str, basic_registry: Registry, repository_name: str
    ) -> None:
        name = f"{basic_registry.host}/{repository_name}:1"
        hint = f"('lamina login {basic_registry.host}' makes a login)"
        assert cli.fails("push", box, name).endswith(hint)
        assert cli.fails("pull", name).endswith(hint)
        creds = f"{USER}:{PASSWORD}"
        assert "401" in cli.fails("push", "--creds", f"{USER}:wrong", box, name)
        cli("push", "--creds", creds, box, name)
        cli("pull", "--creds", creds, name)
        assert cli.fails("pull", name).endswith(hint), "--creds is for once"

    def test_a_login_is_kept_where_docker_has_it_and_forgotten(
        self, cli: Cli, box: str, basic_registry: Registry, repository_name: str
    ) -> None:
        host, name = basic_registry.host, f"{basic_registry.host}/{repository_name}:1"
        login = ("login", "-u", USER, "--password-stdin", host)
        assert "401" in cli.fails(*login, input="wrong\n")
        assert cli(*login, input=f"{PASSWORD}\n") == "Login Succeeded\n"
        kept = json.loads((Path(cli.env["HOME"]) / ".docker/config.json").read_text())
        assert list(kept["auths"]) == [host]
        cli("push", box, name)
        cli("pull", name)
        assert cli("logout", host) == f"Removed login credentials for {host}\n"
        assert cli.process("logout", host).stderr == f"lamina: not logged in to {host}\n"
        cli("login", "-u", USER, "-p", PASSWORD, host)
        assert cli("logout", "--all") == f"Removed login credentials for {host}\n"
        cli.fails("pull", name)

    def test_a_terminal_is_asked_and_shows_no_password(
        self, cli: Cli, basic_registry: Registry
    ) -> None:
        status, shown = on_a_terminal(
            cli, "login", basic_registry.host, typed=f"{USER}\n{PASSWORD}\n"
        )
        assert status == 0, shown
        assert "Username: " in shown
        assert f"Password of {USER}: " in shown
        assert "Login Succeeded" in shown
        assert PASSWORD not in shown.partition("Password of")[2]

    def test_without_a_terminal_nothing_is_asked(self, cli: Cli) -> None:
        assert "use --username" in cli.fails("login", "x.example", status=2)
        assert "--password-stdin" in cli.fails("login", "-u", "ann", "x.example", status=2)
        assert "--creds USER:PASSWORD" in cli.fails("pull", "--creds", "ann", "x", status=2)


class TestCopyAndManifest:
    def test_an_image_goes_round_and_comes_back_the_same(
        self, cli: Cli, layout: Path, plain_registry: Registry, repository_name: str,
        tmp_path: Path, skopeo: peers.Skopeo,
    ) -> None:  # fmt: skip
        digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        name = f"{plain_registry.host}/{repository_name}:1"
        places = [
            f"oci:{layout}:{NAME}", f"docker://{name}", f"{name}-b",
            f"oci-archive:{tmp_path}/a:x:1", f"oci:{tmp_path}/b:tag",
        ]  # fmt: skip
        for source, target in itertools.pairwise(places):
            assert f": digest: {digest} size: " in cli("copy", source, target)
        assert skopeo("manifest-digest", tmp_path / "b/blobs" / digest.replace(":", "/"))
        assert json.loads(skopeo("inspect", f"oci:{tmp_path}/b:tag"))["Digest"] == digest
        far = skopeo("inspect", "--tls-verify=false", f"docker://{name}-b")
        assert json.loads(far)["Digest"] == digest
        assert not cli.root.exists(), "there is no store"

    def test_what_skopeo_copied_is_taken_and_given(
        self, cli: Cli, tmp_path: Path, skopeo: peers.Skopeo
    ) -> None:
        with closing(LayoutDirectory.create(tmp_path / "l")) as made:
            put(made, make(*LAYERS), "docker.io/library/box:1")
        skopeo.copy(f"oci:{tmp_path}/l:docker.io/library/box:1", f"docker-archive:{tmp_path}/d:b:1")
        cli("copy", f"docker-archive:{tmp_path}/d", f"docker-archive:{tmp_path}/e:c:2")
        assert skopeo.diff_ids(f"docker-archive:{tmp_path}/e:docker.io/library/c:2") == (
            skopeo.diff_ids(f"docker-archive:{tmp_path}/d:docker.io/library/b:1")
        )

    def test_platforms(
        self, cli: Cli, plain_registry: Registry, repository_name: str, tmp_path: Path
    ) -> None:
        arm = make({"arm": b"arm"}, architecture="arm64")
        made = index(make({"amd": b"amd"}), arm)
        name = publish(plain_registry, repository_name, made, "1")
        assert made.top.digest in cli("copy", "--all-platforms", name, f"oci:{tmp_path}/all:1")
        assert arm.top.digest in cli("copy", "--platform", "arm64", name, f"oci:{tmp_path}/arm:1")
        head, kind, titles, *rows = cli("manifest", f"docker://{name}").splitlines()
        assert (head.split()[-1], titles.split()) == (
            made.top.digest, ["PLATFORM", "DIGEST", "SIZE"],
        )  # fmt: skip
        assert kind.endswith("index.v1+json")
        assert [row.split()[:2] for row in rows] == [
            ["linux/amd64", made.parts[0].top.digest], ["linux/arm64", arm.top.digest],
        ]  # fmt: skip
        assert arm.top.digest in cli("manifest", "--platform", "arm64", f"oci:{tmp_path}/all")
        config = cli.json("manifest", "--config", "--platform", "arm64", name)
        assert config["architecture"] == "arm64"
        for source in (f"oci:{tmp_path}/arm:1", f"docker://{name}@{arm.top.digest}"):
            wanted = ("manifest", "--config", "--platform", "linux/amd64")
            assert "(there are: linux/arm64)" in cli.fails(*wanted, source)
        said = cli.fails("copy", "--platform", "s390x", name, f"oci:{tmp_path}/no")
        assert "(there are: linux/amd64, linux/arm64)" in said
        cli.fails("copy", "--platform", "arm64", "--all-platforms", name, "oci:x", status=2)

    def test_the_exact_bytes(self, cli: Cli, layout: Path, box: str) -> None:
        digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        blobs = layout / "blobs"
        document = (blobs / digest.replace(":", "/")).read_text()
        config = json.loads(document)["config"]["digest"]
        for source in (f"oci:{layout}", box):
            assert cli("manifest", "--raw", source) == document
            assert cli.json("manifest", source) == json.loads(document)
            raw = cli("manifest", "--raw", "--config", source)
            assert raw == (blobs / config.replace(":", "/")).read_text()
            lines = cli("manifest", source).splitlines()
            assert [line.split()[0] for line in lines[2:]] == ["BLOB", "config", *["layer"] * 3]

    def test_what_was_made_here_has_no_manifest_but_a_configuration(
        self, cli: Cli, image: str
    ) -> None:
        assert "'lamina push'" in cli.fails("manifest", image)
        assert cli.json("manifest", "--config", image)["os"] == "linux"

    def test_a_wrong_place_leaves_nothing(
        self, cli: Cli, layout: Path, plain_registry: Registry, tmp_path: Path
    ) -> None:
        for source, said in (
            (f"oci:{layout}:9", "no such image: 9"),
            (f"{plain_registry.host}/none", "the registry has none"),
            (f"docker-archive:{tmp_path}/none", "No such file"),
            ("docker:dind", "is docker://NAME"),
            ("dir:x", "dir is not supported"),
            ("./x", "say what lies there"),
        ):
            assert said in cli.fails("copy", source, f"oci:{tmp_path}/new")
            assert not (tmp_path / "new").exists()
        said = cli.fails("copy", f"oci:{layout}", f"docker-archive:{tmp_path}/new")
        assert "compressed" in said
        assert "'lamina save NAME -o FILE'" in said
        assert not (tmp_path / "new").exists()
        said = cli.fails("manifest", f"{plain_registry.host}/none")
        assert said.endswith("(nor is it in the store)")

    def test_an_interrupted_copy_ends_at_once(
        self, cli: Cli, plain_registry: Registry, repository_name: str, tmp_path: Path
    ) -> None:
        made = make({"a": b"a"}, {"b": b"b"})
        publish(plain_registry, repository_name, made, "1")
        with Faulty(plain_registry.host) as proxy, proxy.running():
            pattern = f"GET .*{made.blobs[-1][0].digest}"
            proxy.fault(pattern, stall, 1)
            name = f"{proxy.host}/{repository_name}:1"
            argv = cli.argv("copy", name, f"oci:{tmp_path}/l:1")
            process = subprocess.Popen(argv, env=cli.env, stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 30
            while not proxy.asked(pattern):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
            kept = f"what was copied is kept in {tmp_path}/l, the same command goes on"
            assert (process.returncode, said) == (130, f"lamina: interrupted; {kept}\n")
            cli("copy", name, f"oci:{tmp_path}/l:1")


class TestConfig:
    def test_an_image_without_a_name_is_remarked(self, cli: Cli, image: str) -> None:
        done = cli.process("config", image, "--cmd", "x")
        id = done.stdout.strip().removeprefix("sha256:")[:12]
        assert done.stderr == f"lamina: {id} has no name: give NEWNAME, or 'lamina tag' it\n"
        assert cli.process("config", image, "named", "--cmd", "x").stderr == ""

    def test_what_is_exposed_is_a_port(self, cli: Cli, image: str) -> None:
        for wrong in ("banana", "80/x", "", "65536", "1-", "80/"):
            said = cli.fails("config", image, "--expose", wrong, status=2)
            assert said.startswith("config: --expose takes PORT[/tcp|udp|sctp], not ")
        cli("config", image, "ports", "--expose", "8000-8010/tcp", "--expose", "53/udp")

    def test_lists_are_narrower_on_a_terminal(self, cli: Cli, box: str) -> None:
        status, shown = on_a_terminal(cli, "manifest", box)
        digest, _, _, config, *_ = shown.splitlines()
        assert status == 0
        assert len(digest.split()[-1]) == 71, "to be copied"
        assert len(config.split()[1]) == 12
        whole = cli("manifest", box)
        assert on_a_terminal(cli, "manifest", "--no-trunc", box)[1].splitlines() == (
            whole.splitlines()
        )
        cli("create", "--name", "one", box, "a-long-command", "with", "arguments")
        cli.env["COLUMNS"] = "80"
        shown = on_a_terminal(cli, "ps", "-a")[1]
        assert "a-long-..." in shown
        assert "a-long-command with arguments" in cli("ps", "-a")

    def test_check_says_on_a_terminal_that_all_is_well(self, cli: Cli, image: str) -> None:
        assert on_a_terminal(cli, "check") == (0, "all is well\r\n")
        assert cli("check") == ""

    def test_docker_reads_what_was_set(self, cli: Cli, image: str, tmp_path: Path) -> None:
        id = cli(
            "config", image, "box:2", "--entrypoint", '["/bin/x", "a"]', "--cmd", "echo  $A",
            "-e", "A=b c=d", "--env", "B=", "-l", "org.x=y", "-w", "/srv", "-u", "ann:staff",
            "--stop-signal", "SIGINT", "--volume", "/v", "--expose", "80", "--expose", "53/udp",
            "-c", "ENV C=3", "-a", "me", "-m", "why",
        ).strip()  # fmt: skip
        assert cli.json("inspect", "box:2")[0]["id"] == id
        cli("save", "box:2", "-o", tmp_path / "out.tar")
        with daemons.dockerd(tmp_path / "docker") as docker:
            docker("load", "-i", tmp_path / "out.tar")
            (found,) = docker.inspect("box:2")
            history = docker("history", "--no-trunc", "box:2").splitlines()
        config = found["Config"]
        assert found["Author"] == "me"
        assert config["Entrypoint"] == ["/bin/x", "a"]
        assert config["Cmd"] == ["/bin/sh", "-c", "echo  $A"]
        assert config["Env"] == ["A=b c=d", "B=", "C=3"]
        assert config["Labels"] == {"org.x": "y"}
        assert (config["WorkingDir"], config["User"]) == ("/srv", "ann:staff")
        assert config["StopSignal"] == "SIGINT"
        assert config["Volumes"] == {"/v": {}}
        assert config["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
        assert "lamina config --entrypoint" in history[1]
        assert history[1].split()[-1] == "why"

    def test_what_is_cleared_is_gone_and_the_image_stays(self, cli: Cli, image: str) -> None:
        first = cli("config", image, "-e", "A=1", "-l", "x=y", "--cmd", '["a"]').strip()
        cli("config", first, image, "--clear", "env", "--clear", "label", "-e", "B=2")
        config = cli.json("inspect", image)[0]["config"]["config"]
        assert (config["Env"], config["Cmd"], config.get("Labels")) == (["B=2"], ["a"], None)
        assert cli.json("inspect", first)[0]["config"]["config"]["Env"] == ["A=1"]
        assert json.loads(cli("config", image)) == cli.json("inspect", image)[0]["config"]

    def test_what_can_not_be_is_refused(self, cli: Cli, image: str) -> None:
        for wrong, said in (
            (["new"], "'lamina tag'"),
            (["new", "-e", "x"], "--env takes KEY=VALUE"),
            (["new", "--cmd", "[1"], "--cmd: not a JSON list"),
            (["new", "--clear", "nothing"], "'nothing' is not one of"),
        ):
            assert said in cli.fails("config", image, *wrong, status=2)
        assert "lower case" in cli.fails("config", image, "NEW", "-u", "x")
        assert [i["names"] for i in cli.json("images")] == [[image]]


def test_what_is_no_archive_is_told_with_what_is_wanted(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "ex.py"
    source.write_text("print('x')\n")
    packed = tmp_path / "ex.py.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    takes = "'lamina load' takes what 'docker save', 'podman save' or 'lamina save' wrote"
    for file in (source, packed):
        said = cli.fails("load", "-i", file)
        assert said == f"invalid archive: text, not a tar archive ({file}; {takes})"
    assert cli.fails("load") == f"invalid archive: empty (stdin; {takes})"
    takes = "'lamina import' takes a root file system: a tar or a directory"
    for file in (source, packed):
        said = cli.fails("import", file, "x")
        assert said == f"invalid archive: text, not a tar archive ({file}; {takes})"


def test_images_are_converted_between_drivers(cli: Cli, small_tar: Path) -> None:
    need_filesystem("erofs")
    cli("--driver", "overlay", "import", small_tar, "small:1")
    assert cli("convert", "--to", "erofs", "--all", "--dry-run").startswith("image small:1\n")
    plan = json.loads(cli("convert", "--to", "erofs", "small:1", "--dry-run", "--format", "json"))
    assert (plan["images"], plan["layers"]) == (["small:1"], 1)
    assert cli.json("info")["driver"] == "overlay", "nothing was done"
    said = cli("convert", "--to", "erofs", "--all")
    assert said.startswith("1 image converted to driver erofs (1 new layer, ")
    assert said.endswith("1 old layer removed\nThe store is opened with driver erofs from now on\n")
    assert cli.json("info")["driver"] == "erofs"
    assert cli("run", "small:1", "cat", "/etc/motd") == "welcome\n"
    assert cli("check", "--contents") == ""
    back = json.loads(cli("convert", "--to", "overlay", "-a", "--keep", "--format", "json"))
    assert (back["images"], back["removed"], back["default"]) == (1, 0, False)


def test_what_can_not_be_converted_is_said(cli: Cli, small_tar: Path) -> None:
    cli("--driver", "overlay", "import", small_tar, "small:1")
    assert "name images, or all" in cli.process("convert", "--to", "vfs").stderr
    assert "no driver is called 'zfs'" in cli.fails("convert", "--to", "zfs", "--all")
    (motd,) = (cli.root / "overlay/layers").glob("*/diff/etc/motd")
    motd.write_text("WELCOME\n")
    done = cli.process("convert", "--to", "vfs", "--all")
    assert done.returncode == 1
    assert done.stdout.startswith("0 images converted")
    assert "image small:1: " in done.stderr
    assert "'./etc/motd' is not what it was" in done.stderr


def test_equal_files_are_told_and_shared(cli: Cli, small_tar: Path, ext4: Path, xfs: Path) -> None:
    for place in (ext4, xfs):
        root = ("--root", place / "store")
        cli(*root, "import", small_tar, "small:1")
        assert "Equal files in several layers: none\n" in cli(*root, "du", "--shared")
        found = json.loads(cli(*root, "du", "--shared", "--format", "json"))
        assert found["equal_files"] == {"files": 0, "copies": 0, "size": 0, "sharable": 0}
    said = cli.fails("--root", ext4 / "store", "dedup")
    assert said == f"files on extfs can't share blocks ({ext4}/store): that takes xfs or btrfs"
    assert cli("--root", xfs / "store", "dedup").endswith(" share blocks now, 0B\n")
