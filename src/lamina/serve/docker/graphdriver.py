"""What each method of the protocol does, in calls of a driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lamina import __version__
from lamina.archive.changes import Kind
from lamina.drivers.base import check_id, check_options
from lamina.drivers.homes import Homes
from lamina.errors import OptionUnsupported, printable
from lamina.serve.docker.messages import Init, Layer, Nothing
from lamina.types import LayerId

_KINDS = {Kind.MODIFIED: 0, Kind.ADDED: 1, Kind.DELETED: 2}
_LAYER_OPTIONS = frozenset({"size", "volatile"})
"""Storage options of a container that may come from outside: ``base`` would show any directory."""

Answer = dict[str, Any]


class GraphDriver:
    """The plugin: layers in ``homes``.

    ``names`` are those by which Docker's storage options may call it (``NAME.key=value``). The
    methods raise LaminaError and OSError. They may be called from any thread.
    """

    def __init__(self, homes: Homes, names: frozenset[str]) -> None:
        self.homes = homes
        self._names = names

    # -- the daemon ---------------------------------------------------------------------

    def activate(self, _: Nothing) -> Answer:
        """Plugin.Activate."""
        return {"Implements": ["GraphDriver"]}

    def init(self, request: Init) -> Answer:
        """GraphDriver.Init: take up a home, also one that is at work already."""
        options = self._options(request.opts or [])
        driver = options.pop("driver", None)
        self.homes.begin(Path(request.home), driver=driver, options=options, idmap=request.idmap)
        return {"Err": ""}

    def _options(self, texts: list[str]) -> dict[str, str]:
        options = {}
        for text in texts:
            key, equals, value = text.partition("=")
            name, dot, key = key.strip().partition(".")
            if not equals or not dot or name not in self._names:
                known = " or ".join(f"{name}.KEY=VALUE" for name in sorted(self._names))
                raise OptionUnsupported(f"unknown storage option '{printable(text)}' (not {known})")
            options[key.lower()] = value.strip()
        return options

    def capabilities(self, _: Nothing) -> Answer:
        """GraphDriver.Capabilities."""
        exact = self.homes.current().keeps_tars
        return {"Capabilities": {"ReproducesExactDiffs": exact}, "Err": ""}

    def status(self, _: Nothing) -> Answer:
        """GraphDriver.Status: what ``docker info`` shows."""
        driver = self.homes.current()
        facts = [("Lamina Version", __version__), ("Driver", driver.name), *driver.status()]
        return {"Status": [list(fact) for fact in facts], "Err": ""}

    def cleanup(self, _: Nothing) -> Answer:
        """GraphDriver.Cleanup: the daemon stops."""
        self.homes.cleanup()
        return {"Err": ""}

    # -- layers -------------------------------------------------------------------------

    def create(self, request: Layer) -> Answer:
        """GraphDriver.Create: an image's layer."""
        id, parent = LayerId(request.id), _parent(request.parent)
        driver = self.homes.place(id, parent)
        check_options(driver.name, request.storage_opt or {}, frozenset())
        driver.create(id, parent)
        return {"Err": ""}

    def create_read_write(self, request: Layer) -> Answer:
        """GraphDriver.CreateReadWrite: a container's layer."""
        id, parent = LayerId(request.id), _parent(request.parent)
        driver = self.homes.place(id, parent)
        given = {key.lower(): value for key, value in (request.storage_opt or {}).items()}
        check_options(driver.name, given, driver.layer_options & _LAYER_OPTIONS)
        driver.create_read_write(id, parent, mount_label=request.mount_label, options=given)
        return {"Err": ""}

    def remove(self, request: Layer) -> Answer:
        """GraphDriver.Remove: also of a layer that is mounted."""
        id = LayerId(request.id)
        self.homes.of(id).remove(id, pins=True)
        return {"Err": ""}

    def exists(self, request: Layer) -> Answer:
        """GraphDriver.Exists."""
        id = LayerId(request.id)
        return {"Exists": self.homes.of(id).exists(id)}

    def metadata(self, request: Layer) -> Answer:
        """GraphDriver.GetMetadata: what ``docker inspect`` shows."""
        id = LayerId(request.id)
        return {"Metadata": self.homes.holding(id).metadata(id), "Err": ""}

    # -- mounts: references outlive this process, as Docker's use of them does ----------------

    def get(self, request: Layer) -> Answer:
        """GraphDriver.Get."""
        id = LayerId(request.id)
        path = self.homes.holding(id).pin(id, request.mount_label, here=True)
        return {"Dir": str(path), "Err": ""}

    def put(self, request: Layer) -> Answer:
        """GraphDriver.Put."""
        id = LayerId(request.id)
        self.homes.of(id).unpin(id)
        return {"Err": ""}

    # -- differences --------------------------------------------------------------------

    def changes(self, request: Layer) -> Answer:
        """GraphDriver.Changes: what ``docker diff`` shows."""
        id = LayerId(request.id)
        found = self.homes.holding(id).changes(id, _parent(request.parent))
        # JSON has no bytes; what is not UTF-8 comes as Go's encoder would have it.
        rows = [{"Path": c.path.decode("utf-8", "replace"), "Kind": _KINDS[c.kind]} for c in found]
        return {"Changes": rows, "Err": ""}

    def diff_size(self, request: Layer) -> Answer:
        """GraphDriver.DiffSize."""
        id = LayerId(request.id)
        size = self.homes.holding(id).diff_size(id, _parent(request.parent))
        return {"Size": size, "Err": ""}

    def diff(self, request: Layer) -> BinaryIO:
        """GraphDriver.Diff: the layer's tar, made while it is read."""
        id = LayerId(request.id)
        return self.homes.holding(id).diff(id, _parent(request.parent))

    def apply_diff(self, id: str, parent: str, tar: BinaryIO) -> Answer:
        """GraphDriver.ApplyDiff."""
        layer = check_id(id)
        size = self.homes.holding(layer).apply_diff(layer, _parent(parent), tar)
        return {"Size": size, "Err": ""}


class Method(NamedTuple):
    """A method with JSON in and out."""

    call: Callable[[GraphDriver, Any], Answer]
    request: type[Init] | type[Layer] | type[Nothing]


METHODS: Mapping[str, Method] = {
    "Plugin.Activate": Method(GraphDriver.activate, Nothing),
    "GraphDriver.Init": Method(GraphDriver.init, Init),
    "GraphDriver.Capabilities": Method(GraphDriver.capabilities, Nothing),
    "GraphDriver.Status": Method(GraphDriver.status, Nothing),
    "GraphDriver.Cleanup": Method(GraphDriver.cleanup, Nothing),
    "GraphDriver.Create": Method(GraphDriver.create, Layer),
    "GraphDriver.CreateReadWrite": Method(GraphDriver.create_read_write, Layer),
    "GraphDriver.Remove": Method(GraphDriver.remove, Layer),
    "GraphDriver.Exists": Method(GraphDriver.exists, Layer),
    "GraphDriver.GetMetadata": Method(GraphDriver.metadata, Layer),
    "GraphDriver.Get": Method(GraphDriver.get, Layer),
    "GraphDriver.Put": Method(GraphDriver.put, Layer),
    "GraphDriver.Changes": Method(GraphDriver.changes, Layer),
    "GraphDriver.DiffSize": Method(GraphDriver.diff_size, Layer),
}
DIFF, APPLY_DIFF = "GraphDriver.Diff", "GraphDriver.ApplyDiff"
"""The two that have a tar instead."""


def _parent(id: str) -> LayerId | None:
    return check_id(id) if id else None
