"""One repository of a registry, as a source and a target of images (:mod:`lamina.oci.content`)."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final, NoReturn, cast

import msgspec

from lamina.errors import (
    DigestMismatch,
    ImageNotFound,
    InvalidImage,
    InvalidName,
    RegistryError,
    printable,
)
from lamina.oci import mediatypes
from lamina.oci.descriptor import Descriptor
from lamina.oci.digest import check_digest, hasher, sha256
from lamina.oci.manifest import SIZE_LIMIT, Index
from lamina.oci.registry import listing
from lamina.oci.registry.answers import discard
from lamina.oci.registry.blobs import BlobReader
from lamina.oci.registry.client import Ask, Client
from lamina.oci.registry.uploads import Upload, begun, send_blob

if TYPE_CHECKING:
    import httpx

    from lamina.oci.content import Named
    from lamina.oci.registry.options import Options
    from lamina.types import Digest

MANIFEST_TYPES: Final = (
    mediatypes.OCI_INDEX,
    mediatypes.OCI_MANIFEST,
    mediatypes.DOCKER_INDEX,
    mediatypes.DOCKER_MANIFEST,
)
_ACCEPT = ("Accept", ", ".join(MANIFEST_TYPES))
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_NAME = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_NOT_THERE = "the registry has none of this name"
_KEPT = 8  # manifests kept until they are read


class Repository:
    """A repository; threads may share it, and repositories of one registry a :class:`Client`.

    A manifest that was resolved is kept until it is read, so that reading it asks nothing.
    ``mount_from`` names repositories of the same registry that may have blobs that are to be
    written: :meth:`has` lets the registry take them from there.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        *,
        options: Options | None = None,
        client: Client | None = None,
        mount_from: Sequence[str] = (),
    ) -> None:
        """``client`` is shared and not closed; without it there is one with ``options``.

        Raises :class:`InvalidName` for what are no names of a registry and a repository.
        """
        if not _NAME.fullmatch(repository) or len(repository) > 255:
            raise InvalidName(f"not a repository: {printable(repository)!r}")
        self.registry = registry
        self.repository = repository
        self.client = client or Client(registry, options)
        self._owned = client is None
        self._mount_from = [name for name in mount_from if name != repository]
        self._kept: dict[Digest, bytes] = {}
        self._begun: dict[Digest, Upload] = {}
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """``REGISTRY/REPOSITORY``."""
        return f"{self.registry}/{self.repository}"

    @property
    def requests(self) -> int:
        """How many requests the client has sent, for all its repositories."""
        return self.client.requests

    def close(self) -> None:
        """Give up uploads that were not used, and connections that are not shared."""
        with self._lock:
            uploads, self._begun = list(self._begun.values()), {}
        for upload in uploads:
            upload.cancel()
        if self._owned:
            self.client.close()

    def abort(self) -> None:
        """Have requests in other threads end now, with :class:`RegistryError`."""
        self.client.close()

    # --- manifests

    def images(self) -> Sequence[Named]:
        """A repository has no such list: :class:`RegistryError`; see :meth:`tags`."""
        raise RegistryError(f"{self.description}: a registry does not list its images; name one")

    def resolve(self, name: str | None, known: Descriptor | None = None) -> Descriptor:
        """The manifest or index of a tag or digest (None: ``latest``), by one request.

        ``name`` may also be ``REGISTRY/REPOSITORY:TAG`` or ``...@DIGEST``. With ``known``, which
        the tag named before, that is what comes back if it still does, and the registry need not
        send it.

        Raises:
            ImageNotFound: there is none.
            InvalidName: no tag or digest.
            InvalidImage: it is too large, or no manifest.
            DigestMismatch: it has another digest than was asked for, or than the registry says.
            RegistryError: the registry can't be asked.
        """
        reference = self._reference(name)
        headers = [_ACCEPT]
        if known is not None:
            headers.append(("If-None-Match", f'"{known.digest}"'))
        ask = self._manifest("GET", reference, headers, (200, 304, 404))
        response, data = self.client.fetch(ask, SIZE_LIMIT)
        if response.status_code == 404:
            raise ImageNotFound(self._name(reference), _NOT_THERE)
        if response.status_code == 304 and known is not None:
            return known
        found = self._describe(response, data, reference)
        with self._lock:
            self._kept[found.digest] = data
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        return found

    def put_manifest(self, descriptor: Descriptor, data: bytes, name: str | None) -> None:
        """Write a manifest or index by its digest or, with ``name``, a tag.

        A registry without a list of referrers gets the tag that stands for it, if the manifest has
        a subject (distribution-spec, "Pushing Manifests with Subject").

        Raises:
            DigestMismatch: ``data`` has another digest, or the registry says so.
            RegistryError: it was not taken.
        """
        _check(data, descriptor.digest, "manifest")
        reference = descriptor.digest if name is None else self._reference(name)
        headers = [("Content-Type", descriptor.media_type)]
        response = self.client.ask(self._manifest("PUT", reference, headers, (200, 201, 202), data))
        discard(response)
        said = response.headers.get("docker-content-digest")
        same_algorithm = said and said.partition(":")[0] == descriptor.digest.partition(":")[0]
        if same_algorithm and said != descriptor.digest:
            raise DigestMismatch("the manifest as written", descriptor.digest, said)
        subject = _subject(data)
        if subject is not None and "oci-subject" not in response.headers:
            self._add_referrer(subject, descriptor, data)

    def delete_manifest(self, digest: Digest) -> None:
        """Remove a manifest with all its tags, if the registry lets one; ImageNotFound for none."""
        response = self.client.ask(
            self._manifest("DELETE", check_digest(digest), [], (202, 200, 204, 404))
        )
        discard(response)
        if response.status_code == 404:
            raise ImageNotFound(self._name(digest), _NOT_THERE)

    # --- blobs

    def open(self, descriptor: Descriptor, offset: int = 0) -> BinaryIO:
        """The bytes of a blob, manifest or index; see :class:`lamina.oci.content.Source`.

        A cut connection is made again by itself (:class:`~lamina.oci.registry.blobs.BlobReader`).
        """
        with self._lock:
            kept = self._kept.get(descriptor.digest)
        if kept is not None:
            return io.BytesIO(kept[offset:])
        kind, headers = self._kind(descriptor)
        ask = self._ask("GET", f"{kind}/{check_digest(descriptor.digest)}", headers=headers)
        reader = BlobReader(self.client, ask, descriptor.digest, descriptor.size, offset)
        return cast(BinaryIO, reader)

    def has(self, descriptor: Descriptor) -> bool:
        """Whether it is there, or could be mounted from one of ``mount_from``."""
        kind, headers = self._kind(descriptor)
        path = f"{kind}/{check_digest(descriptor.digest)}"
        scopes = self._scopes("pull,push")
        response = self.client.ask(
            self._ask("HEAD", path, headers=headers, accept=(200, 404), scopes=scopes,
                      capability="push")
        )  # fmt: skip
        discard(response)
        if response.status_code == 200:
            length = response.headers.get("content-length")
            return length is None or length == str(descriptor.size)
        return kind == "blobs" and any(self.mount(descriptor, name) for name in self._mount_from)

    def mount(self, descriptor: Descriptor, from_repository: str) -> bool:
        """Have the registry take a blob from another of its repositories; whether it did.

        If not, an upload was begun, which :meth:`put` goes on with.
        """
        if not _NAME.fullmatch(from_repository):
            raise InvalidName(f"not a repository: {printable(from_repository)!r}")
        query = f"?mount={check_digest(descriptor.digest)}&from={from_repository}"
        scopes = (*self._scopes("pull,push"), f"repository:{from_repository}:pull")
        response = self._post(query, scopes)
        if response.status_code == 201:
            discard(response)
            return True
        upload = begun(self.client, self._upload_base(), response)
        with self._lock:
            previous = self._begun.pop(descriptor.digest, None)
            self._begun[descriptor.digest] = upload
        if previous is not None:
            previous.cancel()
        return False

    def put(
        self,
        descriptor: Descriptor,
        stream: BinaryIO,
        *,
        reopen: Callable[[], BinaryIO] | None = None,
    ) -> None:
        """Send a blob: at once if it fits into a chunk, else in chunks.

        A registry may lose what it was sent, when a connection broke; distribution always does.
        ``reopen`` gives the stream once more, from its start, so that it can be sent again; without
        it that is possible while no more than one chunk was read.

        Raises:
            RegistryError: it was not taken.
        """
        send_blob(self.client, lambda: self._begin(descriptor.digest), descriptor, stream, reopen)

    # --- lists

    def tags(self) -> list[str]:
        """All tags; ImageNotFound where there is no such repository."""
        ask = self._ask("GET", "tags/list?n=1000", what="the list of tags", capability="resolve")
        try:
            return listing.tags(self.client, ask)
        except RegistryError as error:
            if error.status == 404:
                raise ImageNotFound(self.description, _NOT_THERE) from error
            raise

    def referrers(self, digest: Digest) -> list[Descriptor]:
        """The manifests that have ``digest`` as their subject.

        Where the registry has no such list, those of the tag that stands for it.
        """
        path = f"referrers/{check_digest(digest)}"
        ask = self._ask("GET", path, what=f"referrers of {digest}", capability="resolve")
        found = listing.referrers(self.client, ask)
        return self._tagged_referrers(digest).manifests if found is None else found

    def _tagged_referrers(self, digest: Digest) -> Index:
        try:
            found = self.resolve(digest.replace(":", "-"))
        except ImageNotFound:
            return Index(manifests=[])
        with self.open(found) as stream:
            document = msgspec.json.decode(stream.read())
        return listing.read_index(document, f"{self.description}: referrers of {digest}")

    def _add_referrer(self, subject: Digest, descriptor: Descriptor, data: bytes) -> None:
        index = self._tagged_referrers(subject)
        if any(each.digest == descriptor.digest for each in index.manifests):
            return
        document = msgspec.json.decode(data)
        entry = descriptor.copy()
        entry.annotations = document.get("annotations")
        config = document.get("config") or {}
        entry.artifact_type = document.get("artifactType") or config.get("mediaType")
        index.manifests.append(entry)
        encoded = index.encode()
        described = Descriptor(
            media_type=mediatypes.OCI_INDEX, digest=sha256(encoded), size=len(encoded)
        )
        self.put_manifest(described, encoded, subject.replace(":", "-"))

    # --- requests

    def _scopes(self, actions: str) -> tuple[str, ...]:
        return (f"repository:{self.repository}:{actions}",)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        what: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        accept: Sequence[int] = (200,),
        scopes: tuple[str, ...] | None = None,
        capability: str = "pull",
        content: bytes | None = None,
    ) -> Ask:
        return Ask(
            method=method,
            path=f"/{self.repository}/{path}",
            what=f"repository {self.repository}, {what or f'{method} {path}'}",
            repository=self.repository,
            scopes=self._scopes("pull") if scopes is None else scopes,
            capability=capability,
            accept=accept,
            headers=tuple(headers),
            content=content,
        )

    def _manifest(
        self,
        method: str,
        reference: str,
        headers: Sequence[tuple[str, str]],
        accept: Sequence[int],
        content: bytes | None = None,
    ) -> Ask:
        actions = {"GET": "pull", "PUT": "pull,push", "DELETE": "delete"}[method]
        named = "pull" if ":" in reference else "resolve"
        return self._ask(
            method,
            f"manifests/{reference}",
            headers=headers,
            accept=accept,
            scopes=self._scopes(actions),
            content=content,
            capability=named if method == "GET" else "push",
        )

    def _upload_base(self) -> Ask:
        return self._ask("PUT", "blobs", what="a blob's upload", scopes=self._scopes("pull,push"))

    def _begin(self, digest: Digest) -> Upload:
        """An upload: the one that an attempt to mount has left, or a new one."""
        with self._lock:
            upload = self._begun.pop(check_digest(digest), None)
        if upload is not None:
            return upload
        response = self._post("", self._scopes("pull,push"))
        return begun(self.client, self._upload_base(), response)

    def _post(self, query: str, scopes: tuple[str, ...]) -> httpx.Response:
        return self.client.ask(
            self._ask(
                "POST",
                f"blobs/uploads/{query}",
                what="a blob's upload",
                scopes=scopes,
                accept=(201, 202) if query else (202,),
                capability="push",
                content=b"",
            )
        )

    def _kind(self, descriptor: Descriptor) -> tuple[str, tuple[tuple[str, str], ...]]:
        if descriptor.media_type in MANIFEST_TYPES:
            return "manifests", (("Accept", descriptor.media_type),)
        return "blobs", ()

    # --- names, and what came back

    def _reference(self, name: str | None) -> str:
        """The tag or digest that a name is."""
        text = "latest" if name is None else name
        if text.startswith(f"{self.description}:"):
            text = text.removeprefix(f"{self.description}:")
        text = text.removeprefix(f"{self.description}@") if "@" in text else text
        if ":" in text:
            try:
                return check_digest(text)
            except InvalidImage as error:
                self._no_tag(name, error)
        if not _TAG.fullmatch(text):
            self._no_tag(name)
        return text

    def _no_tag(self, name: str | None, error: Exception | None = None) -> NoReturn:
        raise InvalidName(
            f"not a tag or digest of {self.description}: {printable(name or '')!r}"
        ) from error

    def _name(self, reference: str) -> str:
        return f"{self.description}{'@' if ':' in reference else ':'}{reference}"

    def _describe(self, response: httpx.Response, data: bytes, reference: str) -> Descriptor:
        """The descriptor of a manifest that came, checked against what was asked for and said."""
        what = f"manifest {self._name(reference)}"
        said = response.headers.get("docker-content-digest")
        digest = check_digest(reference) if ":" in reference else None
        if digest:
            _check(data, digest, what)
        if said and (digest is None or said.partition(":")[0] == digest.partition(":")[0]):
            digest = check_digest(said)
            _check(data, digest, what)
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in MANIFEST_TYPES:
            media_type = _own_type(data) if media_type in _UNSPECIFIC else media_type
        if media_type not in MANIFEST_TYPES:
            raise InvalidImage(f"{what} is no manifest: {printable(media_type or 'no type')}")
        return Descriptor(media_type=media_type, digest=digest or sha256(data), size=len(data))


_UNSPECIFIC = frozenset({"", "application/json", "text/plain", "application/octet-stream"})


def _own_type(data: bytes) -> str:
    """What a manifest says it is, where the registry says nothing of use."""
    return str(_member(data, "mediaType") or "")


def _subject(data: bytes) -> Digest | None:
    subject = _member(data, "subject")
    digest = subject.get("digest") if isinstance(subject, dict) else None
    return check_digest(str(digest)) if digest else None


def _member(data: bytes, name: str) -> object:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return document.get(name) if isinstance(document, dict) else None


def _check(data: bytes, digest: Digest, what: str) -> None:
    found = hasher(digest)
    found.update(data)
    actual = f"{found.name}:{found.hexdigest()}"
    if actual != digest:
        raise DigestMismatch(what, digest, actual)
