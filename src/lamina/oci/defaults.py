"""What starting a container needs of an image's configuration, and nothing else of it.

Read with the standard library's json: importing msgspec, and what it imports in turn, takes
longer than all the rest of a start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self


class Defaults(NamedTuple):
    """How a command is run in a container of the image, unless the caller says otherwise."""

    env: Mapping[str, str] = {}
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    working_dir: str = "/"
    user: str | None = None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From the JSON of a configuration that :class:`lamina.oci.ImageConfig` wrote.

        Of a variable given twice the last counts.
        """
        config = json.loads(data).get("config") or {}
        pairs = (item.partition("=") for item in config.get("Env") or ())
        return cls(
            {name: value for name, _, value in pairs},
            config.get("Entrypoint") or (),
            config.get("Cmd") or (),
            config.get("WorkingDir") or "/",
            config.get("User") or None,
        )

    def argv(self, command: Sequence[str] = ()) -> list[str]:
        """Entrypoint and command, as ``docker run IMAGE COMMAND...`` joins them."""
        return [*self.entrypoint, *(command or self.cmd)]
