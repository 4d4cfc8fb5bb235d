"""What the requests of the protocol hold: names and types are Docker's."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from lamina.errors import LaminaError
from lamina.kernel.idmap import IdMap, IdRange


class BadRequest(LaminaError):
    """A request that is not what the protocol says."""


class Mapping(msgspec.Struct, frozen=True):
    """A range of ids inside and on the host."""

    container_id: int
    host_id: int
    size: int


class Nothing(msgspec.Struct, frozen=True):
    """No argument."""


class Init(msgspec.Struct, frozen=True, rename="pascal"):
    """Take up a home."""

    home: str
    opts: list[str] | None = None
    uid_maps: list[Mapping] | None = msgspec.field(default=None, name="UIDMaps")
    gid_maps: list[Mapping] | None = msgspec.field(default=None, name="GIDMaps")

    @property
    def idmap(self) -> IdMap:
        """The owners; BadRequest where that can be no map."""
        try:
            uids, gids = (
                tuple(IdRange(m.container_id, m.host_id, m.size) for m in maps or ())
                for maps in (self.uid_maps, self.gid_maps)
            )
            return IdMap(uids, gids)
        except ValueError as error:
            raise BadRequest(str(error)) from error


class Layer(msgspec.Struct, frozen=True):
    """One layer, perhaps one against another."""

    id: str = msgspec.field(name="ID")
    parent: str = msgspec.field(default="", name="Parent")
    mount_label: str = msgspec.field(default="", name="MountLabel")
    storage_opt: dict[str, str] | None = msgspec.field(default=None, name="StorageOpt")


Message = TypeVar("Message", bound=msgspec.Struct)


def decode(body: bytes, kind: type[Message]) -> Message:
    """A request's body; members that nobody knows are passed over. An empty one is ``{}``.

    Raises:
        BadRequest: it is not JSON, or not of this kind.
    """
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request can't be read: {error}") from error
