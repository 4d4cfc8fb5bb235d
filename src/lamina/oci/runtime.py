"""The configuration of an OCI runtime (runtime-spec 1.0.2, config.md and config-linux.md).

Read by runc and crun: a bundle is this document as ``config.json`` beside a root. Built of plain
dictionaries: a ``lamina run`` by a runtime needs nothing else of this room.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina.errors import InvalidName

if TYPE_CHECKING:
    from lamina.kernel.idmap import IdMap, IdRange

VERSION = "1.0.2"
_SAFE = ("nosuid", "noexec", "nodev")
_TTY_GROUP = 5
_ALL_DEVICES = {"allow": False, "access": "rwm"}


class Mount(NamedTuple):
    """One member of ``mounts``."""

    destination: str
    type: str
    source: str
    options: Sequence[str] = ()


class Process(NamedTuple):
    """What is run, as whom. ``groups`` are supplementary; capabilities are names (``CAP_...``)."""

    args: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    uid: int
    gid: int
    groups: Sequence[int]
    capabilities: Sequence[str]
    terminal: bool = False
    no_new_privs: bool = False


class Isolation(NamedTuple):
    """What the container has of its own, and what is hidden from it.

    ``in_user_namespace`` for a runtime without the rights of root: started in such a namespace,
    or, with an ``id_map``, making one itself. There cgroups are left alone.
    """

    private_network: bool
    hostname: str | None = None
    masked_paths: Sequence[str] = ()
    readonly_paths: Sequence[str] = ()
    in_user_namespace: bool = False
    id_map: IdMap | None = None


def bind(source: str, destination: str, *, read_only: bool = False) -> Mount:
    """What is at and below ``source`` on this machine, at ``destination``.

    "rro" (runtime-spec 1.1) makes what is mounted below read-only too; crun 1.8 knows it for
    directories only.
    """
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    if read_only and os.path.isdir(source):
        options.append("rro")
    return Mount(destination, "bind", source, options)


def configuration(
    process: Process,
    isolation: Isolation,
    *,
    root: str,
    mounts: Iterable[Mount] = (),
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The document. ``mounts`` come after those that every container has.

    No resource limit is set: a runtime fails where it may not raise one.
    """
    all_mounts = [*_standard_mounts(isolation), *mounts]
    document = {
        "ociVersion": VERSION,
        "process": _process(process, isolation),
        "root": {"path": root},
        "hostname": isolation.hostname,
        "mounts": [_plain(mount) for mount in all_mounts],
        "annotations": dict(annotations or {}),
        "linux": _linux(isolation),
    }
    return {key: value for key, value in document.items() if value not in (None, {})}


def encode(document: Mapping[str, Any]) -> bytes:
    """As JSON. :class:`InvalidName` for a word that is not UTF-8, which JSON has no way to say."""
    try:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        word = error.object[:200].encode("utf-8", "backslashreplace").decode()
        raise InvalidName(f"an OCI runtime takes nothing that is not UTF-8: {word!r}") from None


def _process(process: Process, isolation: Isolation) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": process.uid, "gid": process.gid}
    # runc refuses supplementary groups when it is started by an ordinary user.
    if process.groups and not isolation.id_map:
        user["additionalGids"] = list(process.groups)
    capabilities = list(process.capabilities)
    # execve(2) leaves others none; held until then they would let one execute what it may not.
    sets = ("bounding", "effective", "permitted") if process.uid == 0 else ("bounding",)
    return {
        "terminal": process.terminal,
        "user": user,
        "args": list(process.args),
        "env": [f"{name}={value}" for name, value in process.env.items()],
        "cwd": process.cwd,
        "capabilities": dict.fromkeys(sets, capabilities),
        "noNewPrivileges": process.no_new_privs,
    }


def _linux(isolation: Isolation) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in _namespaces(isolation)],
        "maskedPaths": list(isolation.masked_paths),
        "readonlyPaths": list(isolation.readonly_paths),
    }
    if isolation.id_map:
        linux["uidMappings"] = [_mapping(r) for r in isolation.id_map.uids]
        linux["gidMappings"] = [_mapping(r) for r in isolation.id_map.gids]
    if not isolation.in_user_namespace:
        linux["resources"] = {"devices": [_ALL_DEVICES]}  # a runtime adds the harmless ones
    return linux


def _namespaces(isolation: Isolation) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount", "cgroup"]
    if isolation.private_network:
        kinds.append("network")
    if isolation.id_map:
        kinds.append("user")
    return kinds


def _mapping(ids: IdRange) -> dict[str, int]:
    return {"containerID": ids.container, "hostID": ids.host, "size": ids.size}


def _plain(mount: Mount) -> dict[str, Any]:
    plain = {"destination": mount.destination, "type": mount.type, "source": mount.source}
    return {**plain, "options": list(mount.options)} if mount.options else plain


def _standard_mounts(isolation: Isolation) -> list[Mount]:
    """The file systems of config-linux.md, with runc's options."""
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if _has_tty_group(isolation):
        pts.append(f"gid={_TTY_GROUP}")
    mounts = [
        Mount("/proc", "proc", "proc", _SAFE),
        Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        Mount("/dev/pts", "devpts", "devpts", pts),
        Mount("/dev/shm", "tmpfs", "shm", (*_SAFE, "mode=1777", "size=65536k")),
        Mount("/dev/mqueue", "mqueue", "mqueue", _SAFE),
    ]
    if not isolation.in_user_namespace:
        mounts.append(Mount("/sys", "sysfs", "sysfs", (*_SAFE, "ro")))
        mounts.append(Mount("/sys/fs/cgroup", "cgroup", "cgroup", (*_SAFE, "relatime", "ro")))
    elif isolation.private_network:
        mounts.append(Mount("/sys", "sysfs", "sysfs", (*_SAFE, "ro")))
    else:  # sysfs shows the network namespace, which has to be the user namespace's own
        mounts.append(Mount("/sys", "bind", "/sys", ("rbind", "rprivate", *_SAFE, "ro")))
    return mounts


def _has_tty_group(isolation: Isolation) -> bool:
    if not isolation.id_map:
        return not isolation.in_user_namespace
    return any(0 <= _TTY_GROUP - r.container < r.size for r in isolation.id_map.gids)
