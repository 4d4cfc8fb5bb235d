"""Sending blobs (distribution-spec, "Pushing blobs"): at once where they are small, else in chunks.

A chunk is in memory until the registry has said that it has it. When a connection breaks, the
registry is asked how far it came, and the rest of the chunk is sent again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

import httpx

from lamina.errors import InvalidImage, RegistryError
from lamina.oci.registry.answers import discard, refusal
from lamina.oci.registry.client import Ask, Client, ConnectionBroken
from lamina.oci.registry.retry import TRANSIENT, Attempts, retry_after

if TYPE_CHECKING:
    from lamina.oci.descriptor import Descriptor

_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
_OCTETS = ("Content-Type", "application/octet-stream")
_PATIENCE = 5.0  # seconds for giving up an upload, perhaps on the way out of a program
_CHUNK_LIMIT = 256 << 20  # bytes; a registry that wants larger ones gets none


class UploadLost(RegistryError):
    """An upload that has to begin anew; ``kept`` is all that was read for it, if it is at hand."""

    def __init__(self, message: str, *, kept: bytes | None) -> None:
        super().__init__(message)
        self.kept = kept


class Upload:
    """One upload, begun by a POST, until it is complete or given up."""

    def __init__(self, client: Client, base: Ask, location: str, least: int = 0) -> None:
        """``base`` is any request of the same repository; ``location`` an address in full."""
        self._client = client
        self._base = base
        self._location = location
        self._chunk = max(client.options.chunk_size, least)
        self._sent = 0  # bytes that the registry has

    def send(self, descriptor: Descriptor, stream: BinaryIO, before: bytes = b"") -> None:
        """Send a blob, to be found by its digest; ``before`` comes before the stream.

        Raises what reading the stream raises, and:
            UploadLost: the registry does not know the upload, or all of it, any more.
            RegistryError: it does not take the blob.
        """
        chunk = before + _read(stream, self._chunk - len(before))
        if len(chunk) < self._chunk or len(chunk) == descriptor.size:
            _check_end(stream)
            self._complete(descriptor, chunk)
            return
        while chunk:
            self._append(chunk)
            chunk = _read(stream, self._chunk)
        self._complete(descriptor, b"")

    def cancel(self) -> None:
        """Have the registry forget it, if it will."""
        try:
            accept = range(200, 500)
            discard(self._ask("DELETE", accept=accept, again=False, timeout=_PATIENCE))
        except RegistryError:
            pass  # registries sweep uploads that nobody completes

    def _append(self, chunk: bytes) -> None:
        """Send the next bytes, however often that takes."""
        start, attempts = self._sent, Attempts(self._client.options.retries)
        while self._sent < start + len(chunk):
            failure, after = self._patch(chunk[self._sent - start :])
            if failure is None:
                continue
            self._wait(attempts, failure, after)
            self._find_out(start, chunk)

    def _patch(self, data: bytes) -> tuple[RegistryError | None, float | None]:
        before, end = self._sent, self._sent + len(data)
        span = ("Content-Range", f"{before}-{end - 1}")
        response, failure, after = self._once(
            "PATCH", self._location, (202, 204), (416, *TRANSIENT), (span,), data
        )
        if response is None:
            return failure, after
        self._go_on(response, end)
        discard(response)
        if before < self._sent <= end:
            return None, None
        return RegistryError(f"{self._named()}: the registry took none of a chunk"), None

    def _complete(self, descriptor: Descriptor, data: bytes) -> None:
        """Send the last bytes, and say what all of them are."""
        start, attempts = self._sent, Attempts(self._client.options.retries)
        while True:
            url = str(httpx.URL(self._location).copy_merge_params({"digest": descriptor.digest}))
            rest = data[self._sent - start :]
            response, failure, after = self._once("PUT", url, (201, 204), TRANSIENT, (), rest)
            if response is not None:
                discard(response)
                return
            if self._is_there(descriptor):  # only the answer was lost
                return
            self._wait(attempts, failure, after)
            self._find_out(start, data)

    def _once(
        self,
        method: str,
        url: str,
        good: Collection[int],
        temporary: Collection[int],
        headers: tuple[tuple[str, str], ...],
        data: bytes,
    ) -> tuple[httpx.Response | None, RegistryError | None, float | None]:
        """Send bytes once; an answer, or an error that may pass, with the wait asked for."""
        try:
            response = self._ask(
                method, url, accept=(*good, *temporary), headers=(_OCTETS, *headers),
                content=data, again=False,
            )  # fmt: skip
        except ConnectionBroken as error:
            return None, error, None
        if response.status_code in good:
            return response, None, None
        after = retry_after(response.headers.get("retry-after"))
        return None, refusal(response, self._named()), after

    def _wait(self, attempts: Attempts, failure: RegistryError | None, after: float | None) -> None:
        wait = attempts.next(after)
        if wait is None:
            raise failure or RegistryError(f"{self._named()}: failed")
        self._client.pause(wait)

    def _named(self) -> str:
        return f"{self._client.registry}: {self._base.what}"

    def _find_out(self, start: int, chunk: bytes) -> None:
        """Ask how far the registry came with a chunk; what is before it can't be sent again."""
        response = self._ask("GET", accept=(200, 202, 204, 404, 410, 416))
        self._sent = 0
        self._go_on(response, 0)
        discard(response)
        if response.is_success and start <= self._sent <= start + len(chunk):
            return
        raise UploadLost(
            f"{self._named()}: cut off after {start} bytes, and the registry has lost them",
            kept=chunk if start == 0 else None,
        )

    def _go_on(self, response: httpx.Response, otherwise: int) -> None:
        """Take where and from which byte it goes on, from an answer."""
        self._location = location(response, self._location)
        match = _RANGE.fullmatch(response.headers.get("range", ""))
        if match is None:
            self._sent = otherwise
        elif match[1] != "0" or otherwise == 1:
            self._sent = int(match[1]) + 1
        else:  # "0-0" is one byte, but what registries say of none
            self._sent = 0

    def _is_there(self, descriptor: Descriptor) -> bool:
        """Whether the blob arrived after all: the answer may be what was lost."""
        path = f"/{self._base.repository}/blobs/{descriptor.digest}"
        response = self._ask("HEAD", path, accept=(200, *range(400, 500)))
        discard(response)
        return response.status_code == 200

    def _ask(
        self,
        method: str,
        path: str | None = None,
        *,
        accept: Collection[int],
        headers: tuple[tuple[str, str], ...] = (),
        content: bytes | None = None,
        again: bool = True,
        timeout: float | None = None,
    ) -> httpx.Response:
        base = self._base
        return self._client.ask(
            Ask(
                method=method,
                path=path or self._location,
                what=base.what,
                scopes=base.scopes,
                repository=base.repository,
                capability="push",
                accept=accept,
                headers=headers,
                content=content,
                bulk=content is not None,
                again=again,
                timeout=timeout,
            )
        )


def send_blob(
    client: Client,
    begin: Callable[[], Upload],
    descriptor: Descriptor,
    stream: BinaryIO,
    reopen: Callable[[], BinaryIO] | None,
) -> None:
    """Send a blob by one upload, and by others while that helps; leave none behind."""
    attempts, before = Attempts(client.options.retries), b""
    with ExitStack() as stack:
        while True:
            upload = begin()
            try:
                upload.send(descriptor, stream, before)
                return
            except UploadLost as error:
                upload.cancel()
                wait = attempts.next()
                if wait is None or (error.kept is None and reopen is None):
                    raise
                client.pause(wait)
                before = error.kept or b""
                if error.kept is None and reopen is not None:
                    stream = stack.enter_context(reopen())
            except BaseException:
                upload.cancel()
                raise


def begun(client: Client, base: Ask, response: httpx.Response) -> Upload:
    """The upload that a 202 has begun; the answer is closed."""
    discard(response)
    least = response.headers.get("oci-chunk-min-length", "")
    wanted = int(least[:12]) if least.isascii() and least.isdigit() else 0
    if wanted > _CHUNK_LIMIT:
        raise RegistryError(f"{client.registry}: {base.what}: wants chunks of {wanted} bytes")
    return Upload(client, base, location(response, None), wanted)


def location(response: httpx.Response, otherwise: str | None) -> str:
    """Where an answer says that it goes on, in full."""
    text = response.headers.get("location")
    if not text:
        if otherwise is None:
            raise RegistryError("an upload was begun, but the registry does not say where")
        return otherwise
    try:
        return str(response.request.url.join(text))
    except httpx.InvalidURL as error:
        raise RegistryError("an upload was begun at what is no address") from error


def _check_end(stream: BinaryIO) -> None:
    """Nothing may follow; a stream that is verified says so itself."""
    if stream.read(1):
        raise InvalidImage("a blob that goes on after its size")


def _read(stream: BinaryIO, count: int) -> bytes:
    """``count`` bytes, fewer only at the end; the read that finds the end is made."""
    parts = []
    while count and (data := stream.read(min(count, 1 << 20))):
        parts.append(data)
        count -= len(data)
    return b"".join(parts)
