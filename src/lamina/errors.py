"""Every error that a caller of Lamina can catch.

One tree with :class:`LaminaError` at the root; below it, what a caller would handle
differently. ``str(error)`` is one line that says what happened and, where something can
be done about it, what. A failed system call is an :class:`OSError` with errno and path;
where Lamina adds to what the kernel said, the class is both.
"""

from __future__ import annotations

import errno
import os


def printable(path: bytes | str | os.PathLike[str]) -> str:
    """A path or name for a message: one line, of some 200 characters at most, controls escaped."""
    text = os.fsdecode(path)
    if len(text) <= 200:
        return _escaped(text)
    return f"{_escaped(text[:120])}...{_escaped(text[-60:])} ({len(text)} characters)"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a write fails with on a full disk."""


def name_full(error: OSError, path: str | os.PathLike[str]) -> None:
    """Let the error of a full disk name ``path``, if it names no file: write(2) knows none."""
    if error.errno in FULL and error.filename is None:
        error.filename = os.fspath(path)


class LaminaError(Exception):
    """The root of all errors that Lamina raises on purpose."""


class InvalidName(LaminaError, ValueError):
    """An id, name or reference that can't be one (empty, a path, a control character)."""


class DriverUnsupported(LaminaError):
    """The driver can't work here; the message is the reason."""

    def __init__(self, driver: str, reason: str) -> None:
        super().__init__(f"driver {driver} does not work here: {reason}")
        self.driver = driver
        self.reason = reason


class OptionUnsupported(LaminaError, ValueError):
    """A storage option that this driver, kernel or file system does not have."""


class LayerNotFound(LaminaError, LookupError):
    """No such layer."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"no such layer: {printable(layer)}")
        self.layer = layer


class LayerExists(LaminaError):
    """A layer of this id is there already."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"layer already exists: {printable(layer)}")
        self.layer = layer


class LayerInUse(LaminaError):
    """The layer has children, is mounted, or is held by an image or a container."""

    def __init__(self, layer: str, by: str) -> None:
        super().__init__(f"layer {printable(layer)} is in use: {by}")
        self.layer = layer
        self.by = by


class LayerBroken(LaminaError):
    """What lies on disk is not what the layer should be."""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(f"layer {printable(layer)} is broken: {why}")
        self.layer = layer
        self.why = why


class LayerUnsupported(LaminaError):
    """A sound layer with something in it that this driver's format has no place for."""

    def __init__(self, driver: str, what: str) -> None:
        super().__init__(f"driver {driver} can't keep this layer: {what}")
        self.driver = driver
        self.what = what


class InvalidArchive(LaminaError, ValueError):
    """An archive that is damaged, truncated or hostile.

    ``entry`` is the name of the entry concerned, as the archive has it, or None when the
    damage lies before any name could be read.
    """

    def __init__(self, why: str, entry: bytes | None = None) -> None:
        where = f" at entry '{printable(entry)}'" if entry is not None else ""
        super().__init__(f"invalid archive{where}: {why}")
        self.entry = entry
        self.why = why


class NotAnArchive(InvalidArchive):
    """A file or stream that is something else from its first byte on; ``why`` says what."""


class InvalidImage(LaminaError, ValueError):
    """A manifest, index, configuration, layout or image archive that is not what it should be."""


class SnapshotNotFound(LaminaError, LookupError):
    """No snapshot has this key, or this name."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no such snapshot: {printable(key)}")
        self.key = key


class SnapshotExists(LaminaError):
    """A snapshot of this key, or this name, is there already."""

    def __init__(self, key: str) -> None:
        super().__init__(f"snapshot already exists: {printable(key)}")
        self.key = key


class SnapshotRefused(LaminaError):
    """What the snapshot is does not allow it: committed already, not yet, or with others on it."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"snapshot {printable(key)}: {why}")
        self.key = key


class InvalidSnapshotRequest(LaminaError, ValueError):
    """A key, parent, label, filter or field that can't be."""


class DigestMismatch(LaminaError):
    """Bytes that do not have the digest they were said to have."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(f"{what}: expected digest {expected}, got {actual}")
        self.expected = expected
        self.actual = actual


class ImageNotFound(LaminaError, LookupError):
    """No such image; ``hint`` says where to look which there are."""

    def __init__(self, image: str, hint: str = "'lamina images' lists them") -> None:
        super().__init__(f"no such image: {printable(image)} ({hint})")
        self.image = image


class ImageInUse(LaminaError):
    """Containers stand on the image."""


class ContainerNotFound(LaminaError, LookupError):
    """No such container."""

    def __init__(self, container: str) -> None:
        super().__init__(f"no such container: {printable(container)} ('lamina ps -a' lists them)")
        self.container = container


class NameInUse(LaminaError):
    """The name of a container, snapshot or image is taken."""


class AmbiguousName(LaminaError, LookupError):
    """An id prefix that fits more than one thing."""


class ContainerRunning(LaminaError):
    """The container runs or is mounted elsewhere; stop or unmount it first."""


class CommandNotFound(LaminaError):
    """The command to run is not in the container (``exit_code`` 127) or can't be run (126)."""

    def __init__(self, message: str, exit_code: int = 127) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserNotFound(LaminaError, LookupError):
    """A user or group name that the root's own ``file`` does not have."""

    def __init__(self, name: str, file: str) -> None:
        super().__init__(f"no such user or group: {printable(name)} (not in the root's {file})")
        self.name = name


class ApplyConflict(LaminaError):
    """Applying a fork would overwrite what changed meanwhile at ``paths``."""

    def __init__(self, paths: list[bytes]) -> None:
        shown = ", ".join(printable(p) for p in paths[:10])
        more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
        super().__init__(f"not applied, changed meanwhile: {shown}{more}")
        self.paths = paths


class BlobNotFound(LaminaError, LookupError):
    """A layout, archive or registry that does not have a blob which something in it names."""

    def __init__(self, digest: str, where: str) -> None:
        super().__init__(f"blob {printable(digest)} is missing ({where})")
        self.digest = digest
        self.where = where


class PlatformNotFound(LaminaError, LookupError):
    """An index that has no image for the platform asked for; the message says which it has."""

    def __init__(self, wanted: str, available: list[str]) -> None:
        has = ", ".join(available) or "none"
        super().__init__(f"no image for platform {printable(wanted)} (there are: {has})")
        self.wanted = wanted
        self.available = available


class RuntimeFailed(LaminaError):
    """An OCI runtime (runc, crun) that is not installed, or could not start the container."""


class RegistryError(LaminaError):
    """A registry refused, can't be reached, or said what it should not.

    ``status`` is the HTTP status, None where there was no answer; ``code`` is the first error code
    of the answer (distribution-spec, "Error Codes"), if it had one.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unauthorized(RegistryError):
    """The registry wants a login, or refused the one it got ('lamina login' makes one)."""


class StoreError(LaminaError):
    """The store itself: can't be opened, is damaged, or was written by a newer Lamina."""


class PermissionRequired(LaminaError, PermissionError):
    """A right that this process lacks. The message says which, and how to get it."""


class UnmappedId(LaminaError, ValueError):
    """A user or group id that the id map of this store has no place for."""


class MountError(LaminaError, OSError):
    """A mount that the kernel refused.

    ``errno`` and ``filename`` as in any :class:`OSError`; ``kernel_log`` is what the kernel
    said on the file system context (fsopen(2)), one string a message, perhaps none.
    """

    def __init__(
        self, errno: int, what: str, target: str, kernel_log: tuple[str, ...] = ()
    ) -> None:
        OSError.__init__(self, errno, f"{what}: {os.strerror(errno)}", target)
        self.kernel_log = kernel_log

    def __str__(self) -> str:
        said = f" ({'; '.join(self.kernel_log)})" if self.kernel_log else ""
        return f"{self.strerror}: {printable(str(self.filename))}{said}"
