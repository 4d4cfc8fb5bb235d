"""The protocol, byte by byte as Go's client speaks it, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.conformance.trees import names_in, tar
from tests.serve.docker.plugin import Plugin, Refused

pytestmark = pytest.mark.root


DRIVERS = ["overlay"]
"""What the protocol says is the same for all; test_conformance has them all."""


class Raw:
    """One connection, on which bytes are sent as they are."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        try:
            self.socket.connect(os.fspath(path))
        except OSError:
            self.socket.close()
            raise
        self._file = self.socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def call(self, method: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """As Docker 20.10 sends it."""
        self.send(
            b"POST /%b HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\n"
            b"Content-Length: %d\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\r\n%b"
            % (method.encode(), len(body), body)
        )
        return self.answer()

    def answer(self) -> tuple[int, dict[str, Any]]:
        status, headers = self.head()
        return status, json.loads(self._file.read(int(headers["content-length"])))

    def head(self) -> tuple[int, dict[str, str]]:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (field := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = field.decode().partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def chunk(self) -> bytes | None:
        """The next chunk of a body; None when it broke off."""
        line = self._file.readline()
        if not line:
            return None
        size = int(line, 16)
        data = self._file.read(size + 2)
        return data[:-2] if len(data) == size + 2 else None

    def rest(self) -> bytes:
        return self._file.read()


@pytest.fixture
def raw(plugin: Plugin) -> Iterator[Raw]:
    with closing(Raw(plugin.socket)) as connection:
        yield connection


@contextmanager
def as_before(plugin: Plugin, home: Path) -> Iterator[None]:
    """The server is up afterwards, and its home as before."""
    before = below(home)
    yield
    assert plugin.process is not None
    assert plugin.process.poll() is None
    plugin.call("Plugin.Activate")
    deadline = time.monotonic() + 10
    while below(home) != before and time.monotonic() < deadline:
        time.sleep(0.05)  # a client that went away is noticed soon, not at once
    assert below(home) == before


def below(home: Path) -> set[Path]:
    staging = home / "staging"
    while True:
        try:
            return {
                p for p in home.rglob("*") if staging not in p.parents or p.parent.parent == staging
            }
        except FileNotFoundError:
            pass  # what was staged goes just now: look again


@pytest.fixture
def home(tmp_path: Path, plugin: Plugin) -> Path:
    plugin.call("GraphDriver.Create", ID="base")
    plugin.call.apply("base", "", [tar("etc/", ("etc/motd", b"hello"), "gone").getvalue()])
    return tmp_path / "home"


# -- as it is meant to be


def test_what_a_daemon_says_when_it_starts(raw: Raw, tmp_path: Path) -> None:
    assert raw.call("Plugin.Activate", b"") == (200, {"Implements": ["GraphDriver"]})
    init = b'{"Home":"%b/home","Opts":null,"UIDMaps":null,"GIDMaps":null}\n' % bytes(tmp_path)
    assert raw.call("GraphDriver.Init", init) == (200, {"Err": ""})
    status, answer = raw.call("GraphDriver.Capabilities", b"{}\n")
    assert (status, answer["Capabilities"]) == (200, {"ReproducesExactDiffs": False})
    status, answer = raw.call("GraphDriver.Status", b"{}\n")
    assert status == 200
    assert ["Driver", "overlay"] in answer["Status"]
    assert all(len(row) == 2 for row in answer["Status"])


def test_the_life_of_an_image_layer_and_a_container(plugin: Plugin) -> None:
    call = plugin.call
    call("GraphDriver.Create", ID="base")
    size = call.apply("base", "", [tar(("a", b"12345"), ("b", b"6"), "d/", ".wh.x").getvalue()])
    assert size == call("GraphDriver.DiffSize", ID="base", Parent="")["Size"] == 6
    call("GraphDriver.CreateReadWrite", ID="box-init", Parent="base", MountLabel="")
    call("GraphDriver.Get", ID="box-init", MountLabel="")
    call("GraphDriver.Put", ID="box-init")
    call("GraphDriver.CreateReadWrite", ID="box", Parent="box-init")
    root = Path(call("GraphDriver.Get", ID="box", MountLabel="")["Dir"])
    (root / "a").unlink()
    (root / "b").write_text("changed")
    (root / "d/new").touch()
    changes = call("GraphDriver.Changes", ID="box", Parent="box-init")["Changes"]
    assert changes == [
        {"Path": "/a", "Kind": 2},
        {"Path": "/b", "Kind": 0},
        {"Path": "/d", "Kind": 0},
        {"Path": "/d/new", "Kind": 1},
    ]
    with call.diff("box", "box-init") as stream:
        assert sorted(names_in(stream)) == [".wh.a", "b", "d", "d/new"]
    assert call("GraphDriver.DiffSize", ID="box", Parent="box-init")["Size"] == 7
    assert call("GraphDriver.GetMetadata", ID="box")["Metadata"]["UpperDir"]
    call("GraphDriver.Put", ID="box")
    assert not os.path.ismount(root)
    for id in ("box", "box-init", "base"):
        assert call("GraphDriver.Exists", ID=id)["Exists"] is True
        call("GraphDriver.Remove", ID=id)
        assert call("GraphDriver.Exists", ID=id)["Exists"] is False


def test_a_connection_is_kept(raw: Raw, home: Path) -> None:
    for _ in range(3):
        assert raw.call("GraphDriver.Exists", b'{"ID":"base"}\n')[1]["Exists"] is True
    raw.send(b"POST /GraphDriver.ApplyDiff?id=base&parent= HTTP/1.1\r\nHost: \r\n")
    raw.send(b"Transfer-Encoding: chunked\r\n\r\n")
    data = tar(("more", b"x" * 100000)).getvalue()
    for start in range(0, len(data), 32768):
        part = data[start : start + 32768]
        raw.send(b"%x\r\n%b\r\n" % (len(part), part))
    raw.send(b"0\r\n\r\n")
    assert raw.answer() == (200, {"Size": 100000, "Err": ""})
    body = b'{"ID":"base","Parent":""}\n'
    raw.send(b"POST /GraphDriver.Diff HTTP/1.1\r\nHost: \r\nContent-Length: %d\r\n\r\n%b"
             % (len(body), body))  # fmt: skip
    status, headers = raw.head()
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    stream = b""
    while (piece := raw.chunk()) is not None and piece:
        stream += piece
    assert sorted(names_in(io.BytesIO(stream))) == [".", "etc", "etc/motd", "gone", "more"]
    assert raw.call("Plugin.Activate", b"")[0] == 200


def test_a_body_of_known_length_is_a_tar_too(raw: Raw, plugin: Plugin) -> None:
    plugin.call("GraphDriver.Create", ID="base")
    status, answer = raw.call("GraphDriver.ApplyDiff?id=base", tar(("a", b"abc")).getvalue())
    assert (status, answer["Size"]) == (200, 3)


def test_an_empty_layer_is_an_empty_directory(plugin: Plugin) -> None:
    plugin.call("GraphDriver.CreateReadWrite", ID="box", StorageOpt=None)
    root = Path(plugin.call("GraphDriver.Get", ID="box")["Dir"])
    assert (root.stat().st_mode & 0o7777, root.stat().st_uid) == (0o755, 0)
    assert os.listdir(root) == []
    plugin.call("GraphDriver.Put", ID="box")


def test_owners_are_mapped(plugin: Plugin, tmp_path: Path) -> None:
    ranges = [{"container_id": 0, "host_id": 100000, "size": 65536}]
    plugin.call("GraphDriver.Init", Home=f"{tmp_path}/mapped", UIDMaps=ranges, GIDMaps=ranges)
    plugin.call("GraphDriver.Create", ID="base")
    plugin.call.apply("base", "", [tar("a").getvalue()])
    plugin.stop()
    plugin.start()
    plugin.call("GraphDriver.Create", ID="top", Parent="base")
    root = Path(plugin.call("GraphDriver.Get", ID="top")["Dir"])
    assert {root.stat().st_uid, (root / "a").stat().st_gid} == {100000}
    plugin.call("GraphDriver.Put", ID="top")


def test_removing_a_mounted_layer_unmounts_it(plugin: Plugin, home: Path) -> None:
    plugin.call("GraphDriver.CreateReadWrite", ID="box", Parent="base")
    root = plugin.call("GraphDriver.Get", ID="box")["Dir"]
    plugin.call("GraphDriver.Get", ID="box")
    plugin.call("GraphDriver.Remove", ID="box")
    assert not os.path.exists(root)


def test_128_layers_deep(plugin: Plugin) -> None:
    parent = ""
    for number in range(128):
        plugin.call("GraphDriver.Create", ID=f"l{number}", Parent=parent)
        plugin.call.apply(f"l{number}", parent, [tar(f"f{number}").getvalue()])
        parent = f"l{number}"
    root = Path(plugin.call("GraphDriver.Get", ID=parent)["Dir"])
    assert len(os.listdir(root)) == 128
    plugin.call("GraphDriver.Put", ID=parent)


def test_a_size_is_a_limit_or_an_error(plugin: Plugin, home: Path) -> None:
    create = {"ID": "box", "Parent": "base"}
    with pytest.raises(Refused, match="size"):
        plugin.call("GraphDriver.CreateReadWrite", **create, StorageOpt={"size": "nonsense"})
    assert plugin.call("GraphDriver.Exists", ID="box")["Exists"] is False


def test_a_size_is_kept_where_there_are_quotas(plugin: Plugin, xfs: Path) -> None:
    plugin.call("GraphDriver.Init", Home=f"{xfs}/home")
    plugin.call("GraphDriver.Create", ID="base")
    try:
        plugin.call("GraphDriver.CreateReadWrite", ID="box", Parent="base",
                    StorageOpt={"Size": "8M"})  # fmt: skip
    except Refused as error:
        assert "size: " in str(error)
        pytest.skip(str(error))
    root = Path(plugin.call("GraphDriver.Get", ID="box")["Dir"])
    with pytest.raises(OSError, match=r"quota|space"):
        (root / "big").write_bytes(bytes(16 << 20))
    plugin.call("GraphDriver.Remove", ID="box")
    plugin.call("GraphDriver.Cleanup")


# -- Init


def test_init_may_come_again_and_with_another_home(plugin: Plugin, home: Path) -> None:
    plugin.call("GraphDriver.Create", ID="top", Parent="base")
    plugin.call("GraphDriver.Init", Home=str(home))
    assert plugin.call("GraphDriver.Exists", ID="top")["Exists"]
    plugin.call("GraphDriver.Init", Home=str(home.with_name("other")))
    plugin.call("GraphDriver.Create", ID="elsewhere")
    assert sorted(os.listdir(home.with_name("other") / "layers")) == ["elsewhere"]
    root = Path(plugin.call("GraphDriver.Get", ID="top")["Dir"])
    plugin.call("GraphDriver.Cleanup")
    assert (root / "etc/motd").exists(), "a client of the other home may use it"
    plugin.call("GraphDriver.Remove", ID="top")


@pytest.mark.parametrize(
    "opts",
    [
        ["colour=red"],
        ["overlay2.size=1G"],
        ["lamina.colour=red"],
        ["lamina.driver"],
        ["lamina.driver=none"],
        ["=", ""],
    ],
)
def test_an_unknown_option_is_an_error(plugin: Plugin, tmp_path: Path, opts: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        plugin.call("GraphDriver.Init", Home=f"{tmp_path}/other", Opts=opts)
    assert caught.value.status == 400
    assert not (tmp_path / "other").exists()


def test_the_driver_is_an_option(address: Path, tmp_path: Path, run: Path, works: str) -> None:
    from tests.serve.docker.plugin import running

    with running(address, tmp_path, run) as plugin:
        plugin.call("GraphDriver.Init", Home=f"{tmp_path}/v", Opts=["lamina.driver=vfs"])
        assert ["Driver", "vfs"] in plugin.call("GraphDriver.Status")["Status"]
        with pytest.raises(Refused, match="holds layers of driver vfs, not overlay"):
            plugin.call("GraphDriver.Init", Home=f"{tmp_path}/v", Opts=["lamina.driver=overlay"])


@pytest.mark.parametrize("maps", [
    {"UIDMaps": [{"container_id": 0, "host_id": 0, "size": 0}]},
    {"UIDMaps": [{"container_id": 0, "host_id": 1, "size": 1}]},
    {"UIDMaps": [{"container_id": "0"}]},
    {"UIDMaps": 1},
])  # fmt: skip
def test_a_map_that_is_none_is_refused(
    plugin: Plugin, tmp_path: Path, maps: dict[str, Any]
) -> None:
    with pytest.raises(Refused) as caught:
        plugin.call("GraphDriver.Init", Home=f"{tmp_path}/other", **maps)
    assert caught.value.status == 400


# -- what is refused


@pytest.mark.parametrize("method", ["Get", "Changes", "DiffSize", "GetMetadata", "Diff"])
def test_a_missing_layer_is_told_in_the_words_that_docker_looks_for(
    plugin: Plugin, raw: Raw, method: str
) -> None:
    status, answer = raw.call(f"GraphDriver.{method}", b'{"ID":"nowhere"}\n')
    assert status != 200
    assert answer == {"Err": "no such layer: nowhere"}


def test_an_unknown_parent_is_refused(plugin: Plugin, home: Path) -> None:
    with as_before(plugin, home):
        for method in ("Create", "CreateReadWrite"):
            with pytest.raises(Refused, match="no such layer: nowhere"):
                plugin.call(f"GraphDriver.{method}", ID="x", Parent="nowhere")


@pytest.mark.parametrize("id", ["..", ".", "", "../../x", "/", "/etc", "a/b", "a\0b", "a\nb", "é",
                                "x" * 201, "-x", "\ud800", "a-removing", "x" * 70000])  # fmt: skip
def test_what_is_no_id_reaches_nothing(plugin: Plugin, home: Path, id: str) -> None:
    modes = [p.stat().st_mode for p in (home, home.parent, home.parent.parent)]
    with as_before(plugin, home):
        for method in ("Create", "CreateReadWrite", "Remove", "Get", "Put", "Exists", "Changes",
                       "GetMetadata", "DiffSize"):  # fmt: skip
            with pytest.raises(Refused) as caught:
                plugin.call(f"GraphDriver.{method}", ID=id)
            assert caught.value.status == 400
            assert len(str(caught.value)) < 400
        if len(id) < 1000 and id != "\ud800":
            with pytest.raises(Refused):
                plugin.call.apply(id, "", [tar("a").getvalue()])
    assert modes == [p.stat().st_mode for p in (home, home.parent, home.parent.parent)]


@pytest.mark.parametrize(
    "label", ['x",lowerdir=/etc,x="', "a\0b", "a\nlowerdir=/etc", "a\\", "\ud800", "x" * 70000]
)
def test_a_mount_label_is_one_option(plugin: Plugin, home: Path, label: str) -> None:
    plugin.call("GraphDriver.Create", ID="top", Parent="base")
    with as_before(plugin, home):
        with pytest.raises(Refused) as caught:
            plugin.call("GraphDriver.Get", ID="top", MountLabel=label)
        assert caught.value.status == 400
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("wrong", ["", "relative", "/a\0b", "/\ud800"])
def test_a_home_that_can_not_be(plugin: Plugin, home: Path, wrong: str) -> None:
    with pytest.raises(Refused) as caught:
        plugin.call("GraphDriver.Init", Home=wrong)
    assert caught.value.status == 400
    assert plugin.call("GraphDriver.Exists", ID="base")["Exists"]


def test_no_option_names_a_directory(plugin: Plugin, home: Path) -> None:
    with as_before(plugin, home):
        for option in ({"base": "/etc"}, {"branch": "/etc"}, {"colour": "red"}):
            for method in ("Create", "CreateReadWrite"):
                with pytest.raises(Refused, match="has no storage option"):
                    plugin.call(f"GraphDriver.{method}", ID="x", StorageOpt=option)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b'{"ID":1}', b'{"ID":null}',
                                  b"\xff\xfe", b'{"ID":"x"} {}', b"[" * 100000])  # fmt: skip
def test_broken_json_is_refused(plugin: Plugin, raw: Raw, home: Path, body: bytes) -> None:
    with as_before(plugin, home):
        for method in ("GraphDriver.Create", "GraphDriver.Get", "GraphDriver.Diff"):
            status, answer = raw.call(method, body)
            assert status == 400
            assert answer["Err"].startswith("the request can't be read")


def test_unknown_methods_are_not_found(plugin: Plugin, raw: Raw) -> None:
    for method in (
        "GraphDriver.Nothing",
        "",
        "VolumeDriver.Create",
        "../etc/passwd",
        "GraphDriver",
    ):
        status, answer = raw.call(method, b"{}\n")
        assert (status, answer["Err"][:18]) == (404, "there is no method")
    raw.send(b"GET /Plugin.Activate HTTP/1.1\r\nHost: \r\n\r\n")
    assert raw.answer()[0] == 405


def test_a_request_has_a_greatest_length(plugin: Plugin, raw: Raw, home: Path) -> None:
    with as_before(plugin, home):
        body = b'{"ID":"x","Parent":"%b"}' % (b"y" * (2 << 20))
        status, answer = raw.call("GraphDriver.Create", body)
        assert (status, "bytes at most" in answer["Err"]) == (413, True)
        assert raw.call("Plugin.Activate", b"")[0] == 200
        with closing(Raw(plugin.socket)) as other:
            try:
                other.send(b"POST /x HTTP/1.1\r\nHost: \r\nX: " + b"y" * (1 << 20))
                assert other.head()[0] == 400
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert plugin.process is not None
        memory = Path(f"/proc/{plugin.process.pid}/status").read_text()
        assert int(re.findall(r"VmHWM:\s+(\d+) kB", memory)[0]) < 80 << 10


def test_what_is_no_http_is_refused(plugin: Plugin, home: Path) -> None:
    with as_before(plugin, home):
        for data in (b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3", b"HELLO\r\n\r\n", b"POST\r\n\r\n"):
            with closing(Raw(plugin.socket)) as raw:
                raw.send(data)
                assert raw.head()[0] == 400


# -- tars that break off


GOOD = tar(("a", b"x" * 5000), ("b", b"y" * 5000)).getvalue()
APPLY = b"POST /GraphDriver.ApplyDiff?id=new&parent=base HTTP/1.1\r\nHost: \r\n"


@pytest.mark.parametrize("cut", [0, 100, 512, 5700, 6144, len(GOOD)])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_client_that_goes_away_in_its_tar(
    plugin: Plugin, home: Path, cut: int, chunked: bool
) -> None:
    """Also at the end of an entry, where the tar looks whole, and at the end of the tar."""
    plugin.call("GraphDriver.Create", ID="new", Parent="base")
    with as_before(plugin, home), closing(Raw(plugin.socket)) as raw:
        if chunked:
            raw.send(APPLY + b"Transfer-Encoding: chunked\r\n\r\n")
            raw.send(b"%x\r\n%b\r\n" % (cut, GOOD[:cut]) if cut else b"")
        else:
            raw.send(APPLY + b"Content-Length: %d\r\n\r\n" % (len(GOOD) + 1))
            raw.send(GOOD[:cut])
        time.sleep(0.2)
    assert plugin.call("GraphDriver.DiffSize", ID="new", Parent="base")["Size"] == 0
    assert plugin.call.apply("new", "base", [GOOD]) == 10000


@pytest.mark.parametrize("cut", [100, 600, 5700, 7000])
def test_a_tar_that_stops_in_the_middle(plugin: Plugin, home: Path, cut: int) -> None:
    plugin.call("GraphDriver.Create", ID="new", Parent="base")
    with as_before(plugin, home), pytest.raises(Refused, match="invalid archive"):
        plugin.call.apply("new", "base", [GOOD[:cut]])


def test_a_client_hears_of_an_error_in_the_middle_of_a_long_tar(plugin: Plugin, home: Path) -> None:
    plugin.call("GraphDriver.Create", ID="new", Parent="base")
    with as_before(plugin, home), pytest.raises(Refused, match=r"invalid archive.*\.\."):
        bad = tar("../evil").getvalue()
        plugin.call.apply("new", "base", [bad, *[b"x" * 65536] * 320])


def test_a_full_disk(plugin: Plugin, tmpfs_small: Path) -> None:
    plugin.call("GraphDriver.Init", Home=f"{tmpfs_small}/home")
    plugin.call("GraphDriver.Create", ID="base")
    home = tmpfs_small / "home"
    with as_before(plugin, home), pytest.raises(Refused, match="No space left"):
        plugin.call.apply("base", "", [tar(("a", bytes(range(256)) * 40000)).getvalue()])
    assert plugin.call.apply("base", "", [GOOD]) == 10000
    plugin.call("GraphDriver.Remove", ID="base")
    plugin.kill()


def test_a_client_that_goes_away_in_a_diff(plugin: Plugin, home: Path) -> None:
    plugin.call("GraphDriver.Create", ID="new", Parent="base")
    big = tar(("big", os.urandom(1 << 16) * 512)).getvalue()
    plugin.call.apply("new", "base", [big[i : i + 65536] for i in range(0, len(big), 65536)])
    assert plugin.process is not None
    fds = len(os.listdir(f"/proc/{plugin.process.pid}/fd"))
    with as_before(plugin, home):
        for _ in range(5):
            with plugin.call.diff("new", "base") as stream:
                assert stream.read(1000)
    deadline = time.monotonic() + 10
    while len(os.listdir(f"/proc/{plugin.process.pid}/fd")) > fds and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir(f"/proc/{plugin.process.pid}/fd")) <= fds
    plugin.call("GraphDriver.Remove", ID="new")


def test_a_diff_that_fails_midway_does_not_look_complete(
    plugin: Plugin, tmp_path: Path, raw: Raw
) -> None:
    ranges = [{"container_id": 0, "host_id": 100000, "size": 65536}]
    plugin.call("GraphDriver.Init", Home=f"{tmp_path}/mapped", UIDMaps=ranges, GIDMaps=ranges)
    plugin.call("GraphDriver.CreateReadWrite", ID="new")
    root = Path(plugin.call("GraphDriver.Get", ID="new")["Dir"])
    (root / "a").write_bytes(bytes(4 << 20))
    os.chown(root / "a", 100000, 100000)
    (root / "b").touch()  # of an owner that the layer can't have
    body = b'{"ID":"new"}\n'
    raw.send(b"POST /GraphDriver.Diff HTTP/1.1\r\nHost: \r\nContent-Length: %d\r\n\r\n%b"
             % (len(body), body))  # fmt: skip
    assert raw.head()[0] == 200
    assert raw.chunk()
    last: bytes | None = b"x"
    while last:
        last = raw.chunk()
    assert last is None, "the stream ended as if it were whole"
    assert "no place in this id map" in plugin.log.read_text()


# -- many at once


def test_ten_thousand_ids(plugin: Plugin, home: Path) -> None:
    def cycle(number: int) -> None:
        plugin.call("GraphDriver.CreateReadWrite", ID=f"k{number}", Parent="base")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cycle, range(10_000)))
    assert plugin.process is not None
    memory = Path(f"/proc/{plugin.process.pid}/status").read_text()
    assert int(re.findall(r"VmRSS:\s+(\d+) kB", memory)[0]) < 100 << 10
    assert plugin.call("GraphDriver.Exists", ID="k9999")["Exists"]
    plugin.call("GraphDriver.Remove", ID="k5000")


def test_64_clients_at_once_make_progress(plugin: Plugin, home: Path) -> None:
    def client(number: int) -> None:
        for turn in range(3):
            id = f"c{number}-{turn}"
            plugin.call("GraphDriver.CreateReadWrite", ID=id, Parent="base")
            root = Path(plugin.call("GraphDriver.Get", ID=id)["Dir"])
            (root / "own").write_text(id)
            plugin.call("GraphDriver.Put", ID=id)
            with plugin.call.diff(id, "base") as stream:
                assert names_in(stream) == ["own"]
            plugin.call("GraphDriver.Remove", ID=id)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(client, range(64)))
    assert os.listdir(home / "layers") == ["base"]


def test_a_hundred_diffs_that_wait_for_an_apply_do_not_stop_it(plugin: Plugin, home: Path) -> None:
    """``docker commit`` reads a Diff while it sends it on as an ApplyDiff."""
    plugin.call("GraphDriver.Create", ID="big", Parent="base")
    data = tar(("big", os.urandom(1 << 20))).getvalue()
    plugin.call.apply("big", "base", [data])
    streams = [plugin.call.diff("big", "base") for _ in range(100)]
    try:
        plugin.call("GraphDriver.Create", ID="new", Parent="base")
        assert plugin.call.apply("new", "base", iter(lambda: streams[0].read(32768), b"")) > 0
    finally:
        for stream in streams:
            stream.close()


def test_memory_does_not_grow_with_a_tar(plugin: Plugin, home: Path) -> None:
    plugin.call("GraphDriver.Create", ID="new", Parent="base")
    head = tar(("big", b"")).getvalue()[:512]
    size = 300 << 20
    support.need("tar")
    import tarfile

    info = tarfile.TarInfo("big")
    info.size = size
    head = info.tobuf()

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(size >> 20):
            yield b"x" * (1 << 20)
        yield bytes(1024)

    assert plugin.call.apply("new", "base", body()) == size
    with plugin.call.diff("new", "base") as stream:
        while stream.read(1 << 20):
            pass
    assert plugin.process is not None
    memory = Path(f"/proc/{plugin.process.pid}/status").read_text()
    assert int(re.findall(r"VmHWM:\s+(\d+) kB", memory)[0]) < 80 << 10
    plugin.call("GraphDriver.Remove", ID="new")
