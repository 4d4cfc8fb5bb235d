"""Extended attributes (xattr(7)), with what a file system lacks and what a user may not told apart.

A file is named by a path, or by a descriptor that was not opened with O_PATH; a file below a
directory descriptor by :func:`lamina.kernel.path.fd_path`. A last symbolic link is never
followed. Names are ``str`` as :func:`os.listxattr` gives them, values ``bytes``.
"""

from __future__ import annotations

import os
from errno import EEXIST, EISDIR, ENODATA, ENOENT, ENOTSUP, EOPNOTSUPP
from typing import NoReturn, TypeAlias

File: TypeAlias = "int | str | bytes | os.PathLike[str]"

_PROBE_NAME = b".lamina-xattr-probe-%d"


class XattrUnsupported(OSError):
    """The file system has no place for attributes of this namespace (ENOTSUP).

    A right that is missing is a :class:`PermissionError` instead: another user could do it.
    """


def get(file: File, name: str) -> bytes | None:
    """The value of an attribute, or None when the file does not have it.

    ``trusted.*`` reads as absent for a process without CAP_SYS_ADMIN in the first user namespace.
    """
    try:
        return os.getxattr(file, name, follow_symlinks=isinstance(file, int))
    except OSError as error:
        if error.errno == ENODATA:
            return None
        _raise(error, file)


def set(file: File, name: str, value: bytes) -> None:
    """Create or replace an attribute."""
    try:
        os.setxattr(file, name, value, 0, follow_symlinks=isinstance(file, int))
    except OSError as error:
        _raise(error, file)


def remove(file: File, name: str) -> None:
    """Remove an attribute; one that is not there is no error."""
    try:
        os.removexattr(file, name, follow_symlinks=isinstance(file, int))
    except OSError as error:
        if error.errno != ENODATA:
            _raise(error, file)


def list_all(file: File) -> dict[str, bytes]:
    """Every attribute that this process can see, in the file system's order.

    Empty where the file system has no attributes at all: then nothing is lost by not reading them.
    """
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        if error.errno == ENOTSUP:
            return {}
        _raise(error, file)
    if not names:
        return {}
    found = {}
    for name in names:
        value = get(file, name)
        if value is not None:
            found[name] = value
    return found


def probe(directory: str | bytes | os.PathLike[str], namespace: str) -> bool:
    """Whether this process can set ``namespace`` (as ``"user"``) attributes on files made here."""
    fd = _scratch_file(os.fsencode(directory))
    try:
        set(fd, namespace + ".lamina.probe", b"y")
    except (XattrUnsupported, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def _scratch_file(directory: bytes) -> int:
    """A file without a name, so that nothing is left however the process ends."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # NFS and overlayfs before 6.3 have no O_TMPFILE; EISDIR is what kernels unaware of it say.
        if error.errno not in (EOPNOTSUPP, EISDIR, ENOENT):
            raise
    name = os.path.join(directory, _PROBE_NAME % os.getpid())
    while True:
        try:
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != EEXIST:
                raise
            os.unlink(name)
        else:
            os.unlink(name)
            return fd


def _raise(error: OSError, file: File) -> NoReturn:
    if error.filename is None and not isinstance(file, int):
        error.filename = file
    if error.errno == ENOTSUP:
        raise XattrUnsupported(error.errno, error.strerror, error.filename) from None
    raise error
