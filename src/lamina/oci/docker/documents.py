"""Docker's JSON documents, as far as they are read here."""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec


class Repositories(msgspec.Struct):
    """``repositories.json``: names and digests, by repository."""

    Repositories: dict[str, dict[str, str]] = {}


class _State(msgspec.Struct, rename="pascal"):
    running: bool = False
    exit_code: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 32)] = 0
    started_at: str = ""
    finished_at: str = ""


class _Config(msgspec.Struct, rename="pascal"):
    hostname: str = ""
    user: str = ""
    env: list[str] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None


class _MountPoint(msgspec.Struct):
    Source: str = ""
    Destination: str = ""
    RW: bool = True


class Container(msgspec.Struct, rename="pascal"):
    """``config.v2.json``."""

    state: _State = msgspec.field(default_factory=_State)
    created: str = ""
    path: str = ""
    args: list[str] | None = None
    config: _Config = msgspec.field(default_factory=_Config)
    image: str = ""
    name: str = ""
    driver: str = ""
    mount_points: dict[str, _MountPoint] | None = None

    def command(self) -> tuple[str, ...]:
        """What it runs."""
        return (self.path, *(self.args or ())) if self.path else ()

    def environment(self) -> dict[str, str]:
        """Variables of that."""
        pairs = (item.partition("=") for item in self.config.env or ())
        return {name: value for name, _, value in pairs}

    def volumes(self) -> tuple[tuple[str, str, bool], ...]:
        """Path on the host, in the container, whether read-only."""
        points = (self.mount_points or {}).values()
        return tuple(
            (point.Source, point.Destination, not point.RW) for point in points if point.Source
        )


class HostConfig(msgspec.Struct, rename="pascal"):
    """``hostconfig.json``."""

    network_mode: str = ""


def moment(text: str) -> datetime.datetime | None:
    """A time as Go writes it; None for its zero and for what is none."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.year > 1 and found.tzinfo else None
