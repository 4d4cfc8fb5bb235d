"""Connections that break and registries that fail: tried again where it helps."""

from __future__ import annotations

import email.utils
import io
import threading
import time
from collections.abc import Callable

import pytest

from lamina.errors import (
    BlobNotFound,
    DigestMismatch,
    ImageNotFound,
    InvalidImage,
    RegistryError,
    Unauthorized,
)
from lamina.oci import mediatypes
from lamina.oci.content import read_document, verified
from lamina.oci.descriptor import described
from lamina.oci.registry import Repository, Retries
from tests.oci.registry.conftest import DATA, Open
from tests.oci.registry.test_repository import BLOB, put, put_image, read
from tests.servers import Action, Faulty, Handler, relay, replying, stall


@pytest.fixture
def repository(faulty: Faulty, repository_name: str, opened: Open) -> Repository:
    return opened(faulty.host, repository_name, chunk_size=1 << 20, read_timeout=0.5)


def cutting(after: int) -> Action:
    return lambda handler: relay(handler, cut_after=after)


def test_requests_share_a_connection(repository: Repository, faulty: Faulty) -> None:
    put_image(repository, "one", b"small")
    before = faulty.accepted
    for _ in range(5):
        assert not repository.has(BLOB)
        repository.resolve("one")
        with pytest.raises(ImageNotFound):
            repository.resolve("none")
    put_image(repository, "two", b"others")
    # One of small requests, one of blobs; the first two were greetings by TLS.
    assert faulty.accepted <= 4
    assert faulty.accepted == before


def test_where_there_is_no_way_out_a_proxy_is_named(opened: Open) -> None:
    """A name below .invalid has no address (RFC 6761)."""
    with pytest.raises(RegistryError, match=r"HTTPS_PROXY names a proxy\)$"):
        opened("registry.invalid", "box").resolve("one")
    with pytest.raises(RegistryError, match=r"refused$"):
        opened("localhost:1", "box").resolve("one")


# --- downloads


@pytest.mark.parametrize("after", [0, 1, 100_000, len(DATA) - 1])
def test_a_cut_download_goes_on_by_range(
    repository: Repository, faulty: Faulty, after: int
) -> None:
    put(repository, DATA)
    faulty.fault("GET .*/blobs/", cutting(after))
    assert read(repository, BLOB) == DATA
    first, second = faulty.asked("GET .*/blobs/")
    assert first.headers["Range"] is None
    assert second.headers["Range"] == (f"bytes={after}-" if after else None)


def test_each_cut_goes_on_where_it_was(repository: Repository, faulty: Faulty) -> None:
    put(repository, DATA)
    faulty.fault("GET .*/blobs/", cutting(400_000), times=3)
    assert read(repository, BLOB) == DATA
    ranges = [request.headers["Range"] for request in faulty.asked("GET .*/blobs/")]
    assert ranges == [None, "bytes=400000-", "bytes=800000-", "bytes=1200000-"]


def test_a_server_without_ranges_is_read_from_the_start(
    repository: Repository, faulty: Faulty
) -> None:
    put(repository, DATA)
    faulty.fault("GET .*/blobs/", cutting(1_234_567))
    faulty.fault("GET .*/blobs/", lambda handler: relay(handler, without=("range",)))
    assert read(repository, BLOB) == DATA
    assert len(faulty.asked("GET .*/blobs/")) == 2
    faulty.fault("GET .*/blobs/", lambda handler: relay(handler, without=("range",)))
    assert read(repository, BLOB, 77) == DATA[77:]


def test_a_range_other_than_the_one_asked_for_is_refused(
    repository: Repository, faulty: Faulty
) -> None:
    headers = {"Content-Range": f"bytes 200-{len(DATA) - 1}/{len(DATA)}"}
    faulty.fault("GET .*/blobs/", replying(206, headers, DATA[200:]))
    with pytest.raises(RegistryError, match="asked for bytes from 100 on, got 'bytes 200-"):
        repository.open(BLOB, 100)


def test_a_download_that_never_gets_on_is_given_up(repository: Repository, faulty: Faulty) -> None:
    put(repository, DATA)
    faulty.fault("GET .*/blobs/", cutting(0), times=99)
    with pytest.raises(RegistryError, match=r"blobs/sha256.*(cut off|disconnected)"):
        read(repository, BLOB)
    assert len(faulty.asked("GET .*/blobs/")) <= 16  # those of the reader, times those of a request


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_stalled_server_is_asked_again(
    repository: Repository, faulty: Faulty, where: str
) -> None:
    def stall_within(handler: Handler) -> None:
        handler.send_response_only(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[:1000])
        stall(handler)

    put(repository, DATA)
    faulty.fault("GET .*/blobs/", stall if where == "before" else stall_within)
    assert read(repository, BLOB) == DATA


def test_a_server_that_stays_stalled_is_an_error(repository: Repository, faulty: Faulty) -> None:
    faulty.fault("GET .*/manifests/", stall, times=9)
    start = time.monotonic()
    with pytest.raises(RegistryError, match="manifests/one: no answer in time"):
        repository.resolve("one")
    assert time.monotonic() - start < 4


def test_a_silent_server_is_asked_once_more_and_that_is_remarked(
    faulty: Faulty, opened: Open
) -> None:
    said: list[str] = []
    repository = opened(faulty.host, "a/b", first_timeout=0.3, remark=said.append)
    faulty.fault("GET .*/manifests/", stall, times=9)
    start = time.monotonic()
    with pytest.raises(RegistryError, match="no answer in time"):
        repository.resolve("one")
    assert time.monotonic() - start < 10, "not the time of one that has answered before"
    (remark,) = said
    assert remark.endswith("manifests/one: no answer in time; asking again")
    assert len(faulty.asked("GET .*/manifests/")) == 2


def test_wrong_bytes_are_found_by_who_verifies(repository: Repository, faulty: Faulty) -> None:
    put(repository, DATA)
    faulty.fault("GET .*/blobs/", lambda h: relay(h, change=lambda d: d[:-1] + bytes([d[-1] ^ 1])))
    with verified(repository.open(BLOB), BLOB) as stream, pytest.raises(DigestMismatch):
        while stream.read(1 << 20):
            pass


@pytest.mark.parametrize("length", [10, len(DATA) - 10])
def test_a_blob_shorter_than_it_was_said_to_be_is_an_error(
    repository: Repository, faulty: Faulty, length: int
) -> None:
    faulty.fault("GET .*/blobs/", replying(200, {}, DATA[:length]), times=99)
    with pytest.raises(RegistryError, match="cut off at byte"):
        read(repository, BLOB)


def test_a_blob_longer_than_it_was_said_to_be_is_found_by_who_verifies(
    repository: Repository, faulty: Faulty
) -> None:
    faulty.fault("GET .*/blobs/", replying(200, {}, DATA + b"x"))
    with verified(repository.open(BLOB), BLOB) as stream, pytest.raises(InvalidImage, match="goes"):
        while stream.read(1 << 20):
            pass


def test_a_blob_that_goes_away_is_named(repository: Repository, faulty: Faulty) -> None:
    put(repository, DATA)
    faulty.fault("GET .*/blobs/", cutting(1000))
    faulty.fault("GET .*/blobs/", replying(404))
    with pytest.raises(BlobNotFound, match=BLOB.digest):
        read(repository, BLOB)


# --- statuses


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_asked_again(
    repository: Repository, faulty: Faulty, status: int
) -> None:
    put_image(repository, "one")
    faulty.fault("GET .*/manifests/", replying(status), times=2)
    assert repository.resolve("one")
    assert len(faulty.asked("GET .*/manifests/")) == 3


@pytest.mark.parametrize("status", [429, 500])
def test_there_is_a_ceiling_on_tries(repository: Repository, faulty: Faulty, status: int) -> None:
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow\\n\\u001b[31mdown"}]}'
    faulty.fault("GET .*/manifests/", replying(status, {}, body), times=99)
    with pytest.raises(RegistryError, match=rf"{status} .*TOOMANYREQUESTS: slow\\n") as caught:
        repository.resolve("one")
    assert caught.value.code == "TOOMANYREQUESTS"
    assert caught.value.status == status
    assert "\x1b" not in str(caught.value)
    assert len(faulty.asked("GET .*/manifests/")) == 4


@pytest.mark.parametrize(
    "value", [lambda: "1", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)]
)
def test_retry_after_is_honoured(
    repository: Repository, faulty: Faulty, value: Callable[[], str]
) -> None:
    put_image(repository, "one")
    faulty.fault("GET .*/manifests/", replying(429, {"Retry-After": value()}))
    start = time.monotonic()
    repository.resolve("one")
    assert time.monotonic() - start > 0.9


def test_a_wait_beyond_the_ceiling_is_not_waited_for(
    repository: Repository, faulty: Faulty
) -> None:
    faulty.fault("GET .*/manifests/", replying(429, {"Retry-After": "3600"}))
    start = time.monotonic()
    with pytest.raises(RegistryError, match="429 Too Many Requests"):
        repository.resolve("one")
    assert time.monotonic() - start < 1
    assert len(faulty.asked("GET .*/manifests/")) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RegistryError), (403, Unauthorized), (404, ImageNotFound), (451, RegistryError)],
)
def test_other_refusals_are_final(
    repository: Repository, faulty: Faulty, status: int, error: type[Exception]
) -> None:
    faulty.fault("GET .*/manifests/", replying(status), times=99)
    with pytest.raises(error, match=r"one|manifests"):
        repository.resolve("one")
    assert len(faulty.asked("GET .*/manifests/")) == 1


def test_a_page_for_people_is_not_shown(repository: Repository, faulty: Faulty) -> None:
    page = b"<html><body>" + b"sorry " * 100_000
    faulty.fault("GET .*/manifests/", replying(418, {"Content-Type": "text/html"}, page))
    with pytest.raises(RegistryError) as caught:
        repository.resolve("one")
    assert "sorry" not in str(caught.value)
    assert str(caught.value).endswith("418 I'm a teapot")


def test_nobody_there_is_an_error_soon(opened: Open) -> None:
    from tests.registries import free_port

    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryError, match=f"{host}: repository a/b.*refused") as caught:
        opened(host, "a/b").resolve("one")
    assert caught.value.status is None


# --- manifests


def manifest_reply(data: bytes, media_type: str | None, **headers: str) -> Action:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if media_type:
        named["Content-Type"] = media_type
    return replying(200, named, data)


MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
)


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "sha512:" + "0" * 128])
def test_a_manifest_with_another_digest_than_the_registry_says_is_refused(
    repository: Repository, faulty: Faulty, digest: str
) -> None:
    reply = manifest_reply(MANIFEST, mediatypes.OCI_INDEX, Docker_Content_Digest=digest)
    faulty.fault("GET .*/manifests/", reply)
    with pytest.raises(DigestMismatch, match=f"{repository.description}:one"):
        repository.resolve("one")


def test_a_manifest_with_another_digest_than_was_asked_for_is_refused(
    repository: Repository, faulty: Faulty
) -> None:
    other = described(b"other", mediatypes.OCI_INDEX).digest
    own = described(MANIFEST, mediatypes.OCI_INDEX).digest
    reply = manifest_reply(MANIFEST, mediatypes.OCI_INDEX, Docker_Content_Digest=own)
    faulty.fault("GET .*/manifests/", reply)
    with pytest.raises(DigestMismatch, match=other):
        repository.resolve(other)


@pytest.mark.parametrize("digest", ["md5:00", "sha256:../..", "x"])
def test_a_digest_that_is_none_is_refused(
    repository: Repository, faulty: Faulty, digest: str
) -> None:
    reply = manifest_reply(MANIFEST, mediatypes.OCI_INDEX, Docker_Content_Digest=digest)
    faulty.fault("GET .*/manifests/", reply)
    with pytest.raises(InvalidImage, match="not a sha256"):
        repository.resolve("one")


@pytest.mark.parametrize("media_type", [None, "application/json", "text/plain; charset=utf-8"])
def test_a_type_that_says_nothing_leaves_it_to_the_manifest(
    repository: Repository, faulty: Faulty, media_type: str | None
) -> None:
    faulty.fault("GET .*/manifests/", manifest_reply(MANIFEST, media_type))
    assert repository.resolve("one").media_type == mediatypes.OCI_INDEX


@pytest.mark.parametrize(
    "media_type", ["text/html", "application/vnd.docker.distribution.manifest.v1+prettyjws"]
)
def test_what_is_no_manifest_is_refused(
    repository: Repository, faulty: Faulty, media_type: str
) -> None:
    faulty.fault("GET .*/manifests/", manifest_reply(MANIFEST, media_type))
    with pytest.raises(InvalidImage, match=f"no manifest: {media_type[:20]}"):
        repository.resolve("one")


@pytest.mark.parametrize("said", [True, False])
def test_a_manifest_over_the_limit_is_not_read(
    repository: Repository, faulty: Faulty, said: bool
) -> None:
    data = MANIFEST + b" " * (5 << 20)
    headers = {"Content-Type": mediatypes.OCI_INDEX}
    if not said:
        headers["Content-Length"] = str(len(data) + 100)  # and it goes on
    faulty.fault("GET .*/manifests/", replying(200, headers, data))
    with pytest.raises(RegistryError, match="over 4194304 bytes"):
        repository.resolve("one")


def test_a_cut_manifest_is_asked_for_again(repository: Repository, faulty: Faulty) -> None:
    written = put_image(repository, "one")
    faulty.fault("GET .*/manifests/", cutting(20))
    assert repository.resolve("one").digest == written.digest


def test_a_manifest_read_by_digest_goes_on_after_a_cut(
    repository: Repository, faulty: Faulty
) -> None:
    written = put_image(repository, "one")
    faulty.fault("GET .*/manifests/", cutting(20))
    assert len(read_document(repository, written)) == written.size


# --- uploads


def taking(count: int) -> Action:
    return lambda handler: relay(handler, take=count)


@pytest.mark.parametrize("count", [2, 300_000, (1 << 20) - 1])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_cut_upload_goes_on_where_the_registry_is(
    repository: Repository, faulty: Faulty, count: int, which: int
) -> None:
    """As the specification has it: the registry says how far it came."""

    def asked(handler: Handler) -> None:
        handler.path = f"{faulty.moved.path}?{faulty.moved.query}"
        relay(handler)

    faulty.fault("PATCH", relay, times=which)
    faulty.fault("PATCH", lambda handler: relay(handler, take=count, short=True))
    faulty.fault("GET .*/blobs/uploads/", asked)
    put(repository, DATA)
    assert read(repository, BLOB) == DATA
    sent = [int(r.headers["Content-Range"].partition("-")[0]) for r in faulty.asked("PATCH")]
    assert sent[which + 1] == (which << 20) + count
    assert len(faulty.asked("POST")) == 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_cut_before_the_first_byte_loses_nothing(
    repository: Repository, faulty: Faulty, which: int
) -> None:
    faulty.fault("PATCH", relay, times=which)
    faulty.fault("PATCH", taking(0))
    put(repository, DATA)
    assert read(repository, BLOB) == DATA
    assert len(faulty.asked("POST")) == 1


def test_an_upload_that_the_registry_lost_begins_anew(
    repository: Repository, faulty: Faulty
) -> None:
    """docker-registry gives up an upload of which it got half a chunk."""
    faulty.fault("PATCH", taking(300_000))
    put(repository, DATA)  # the first chunk is still in memory
    assert read(repository, BLOB) == DATA
    assert len(faulty.asked("POST")) == 2


def test_an_upload_lost_later_begins_anew_with_the_stream_opened_again(
    repository: Repository, faulty: Faulty
) -> None:
    blob = described(DATA[1:], "application/octet-stream")
    opened: list[io.BytesIO] = []

    def reopen() -> io.BytesIO:
        opened.append(io.BytesIO(DATA[1:]))
        return opened[-1]

    faulty.fault("PATCH", relay)
    faulty.fault("PATCH", taking(300_000))
    repository.put(blob, io.BytesIO(DATA[1:]), reopen=reopen)
    assert read(repository, blob) == DATA[1:]
    assert [each.closed for each in opened] == [True]

    other = described(DATA[2:], "application/octet-stream")
    faulty.fault("PATCH", relay)
    faulty.fault("PATCH", taking(300_000))
    with pytest.raises(RegistryError, match="cut off after 1048576 bytes, and the registry has"):
        put(repository, DATA[2:])
    assert not repository.has(other)


@pytest.mark.parametrize("count", [0, 50_000, 100_000])
def test_a_cut_upload_of_a_small_blob_goes_on(
    repository: Repository, faulty: Faulty, count: int
) -> None:
    faulty.fault("PUT .*/blobs/uploads/", taking(count))
    blob = put(repository, DATA[:100_000])
    assert read(repository, blob) == DATA[:100_000]


def test_an_upload_whose_answer_was_lost_is_complete(
    repository: Repository, faulty: Faulty
) -> None:
    def lose(handler: Handler) -> None:
        relay(handler, cut_after=0)

    def drop(handler: Handler) -> None:
        handler.wfile = io.BytesIO()
        lose(handler)

    faulty.fault("PUT .*/blobs/uploads/", drop)
    put(repository, DATA)
    assert read(repository, BLOB) == DATA
    assert len(faulty.asked("PUT .*/blobs/uploads/")) == 1


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
@pytest.mark.parametrize("status", [429, 503])
def test_an_upload_refused_for_now_is_tried_again(
    repository: Repository, faulty: Faulty, method: str, status: int
) -> None:
    faulty.fault(f"{method} .*/blobs/uploads/", replying(status), times=2)
    put(repository, DATA)
    assert read(repository, BLOB) == DATA


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_an_upload_that_is_refused_is_an_error_and_given_up(
    repository: Repository, faulty: Faulty, method: str
) -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "over quota"}]}'
    faulty.fault(f"{method} .*/blobs/uploads/", replying(403, {}, body), times=99)
    with pytest.raises(RegistryError, match="DENIED: over quota"):
        put(repository, DATA)
    assert bool(faulty.asked("DELETE .*/blobs/uploads/")) == (method != "POST")
    assert not repository.has(BLOB)


def test_chunks_are_as_large_as_the_registry_wants(repository: Repository, faulty: Faulty) -> None:
    def asking(handler: Handler) -> None:
        handler.more["OCI-Chunk-Min-Length"] = "2000000"
        relay(handler)

    faulty.fault("POST", asking)
    put(repository, DATA)
    ranges = [request.headers["Content-Range"] for request in faulty.asked("PATCH")]
    assert ranges == ["0-1999999", f"2000000-{len(DATA) - 1}"]


# --- giving up


def test_abort_ends_who_waits_for_an_answer(faulty: Faulty, opened: Open) -> None:
    repository = opened(faulty.host, "a/b")
    faulty.fault("GET .*/manifests/", stall)
    assert ends_soon(repository, lambda: repository.resolve("one"), faulty)


def test_abort_ends_who_waits_to_try_again(faulty: Faulty, opened: Open) -> None:
    repository = opened(faulty.host, "a/b", retries=Retries(first=60, longest=60))
    faulty.fault("GET .*/manifests/", replying(503), times=9)
    assert ends_soon(repository, lambda: repository.resolve("one"), faulty)


def test_abort_ends_a_download(faulty: Faulty, opened: Open, repository_name: str) -> None:
    def slowly(handler: Handler) -> None:
        handler.send_response_only(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        stall(handler)

    repository = opened(faulty.host, repository_name)
    faulty.fault("GET .*/blobs/", slowly)
    assert ends_soon(repository, lambda: read(repository, BLOB), faulty)


def ends_soon(repository: Repository, wait: Callable[[], object], faulty: Faulty) -> bool:
    """Whether a waiting call ends with an error once the repository is given up."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            wait()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 5
    while not faulty.asked("GET ") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    repository.abort()
    thread.join(3)
    assert not thread.is_alive()
    return isinstance(failed[0], RegistryError) and "closed" in str(failed[0])
