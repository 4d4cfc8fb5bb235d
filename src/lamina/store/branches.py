"""Snapshots, forks and going back, all in constant time.

The writable layer becomes a frozen one by getting a child: a fresh writable layer, on which
the container goes on. A fork is another child of the frozen layer. Nothing is copied (by
drivers that stack; vfs copies).

    before        after snapshot("a")        after fork()

    box: W1       box: W2                    box: W2   fork: W3
         |             |                          \\    /
       image          W1 frozen, "a"               W1 frozen
                       |                            |
                     image                        image

A layer that nothing was written to is not frozen but stood in for by its parent, so that a
container can be forked any number of times without growing tall.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack

from lamina.errors import InvalidName, LaminaError, NameInUse
from lamina.store.core import Core
from lamina.store.database import Transaction
from lamina.store.making import Making, making
from lamina.store.names import check_name
from lamina.store.records import Record, free_name, insert
from lamina.store.removal import discard, release
from lamina.types import LayerId

_LAYER_OPTIONS = ("size", "volatile")


def new_top(
    core: Core, parent: LayerId | None, options: Mapping[str, str]
) -> AbstractContextManager[Making]:
    """A writable layer for a container of these options."""
    mine = layer_options(options)
    return making(core, lambda driver, new: driver.create_read_write(new, parent, options=mine))


def layer_options(options: Mapping[str, str]) -> dict[str, str]:
    """Those of a container's options that are its writable layer's."""
    return {name: value for name, value in options.items() if name in _LAYER_OPTIONS}


# Each takes the record of a container that nobody uses (locks.USE alone) and is not mounted.


def fork(core: Core, record: Record, id: str, name: str | None, *, ephemeral: bool) -> Record:
    """Add a container ``id`` that begins as ``record`` is now."""
    ground = _ground(core, record)
    with ExitStack() as stack:
        fresh = None
        if ground == record.layer:
            fresh = stack.enter_context(new_top(core, ground, record.options))
        top = stack.enter_context(new_top(core, ground, record.options))
        _try_mount(core, record, top.id)
        with core.db.write() as tx:
            if fresh is not None:
                _go_on(tx, record, fresh)
            top.record(tx, kind="writable", parent=ground)
            other = record._replace(
                id=id,
                name=free_name(tx, name),
                layer=top.id,
                ephemeral=ephemeral,
                created=time.time(),
            )
            insert(tx, other)
    return other


def snapshot(core: Core, record: Record, name: str) -> None:
    """Give the state of now a name.

    Raises:
        NameInUse: the container has a snapshot of that name.
        InvalidName: a snapshot can't be called that.
    """
    check_name(name, "snapshot")
    ground = _ground(core, record)
    with ExitStack() as stack:
        fresh = None
        if ground is None or ground == record.layer:
            ground = record.layer
            fresh = stack.enter_context(new_top(core, ground, record.options))
            _try_mount(core, record, fresh.id)
        with core.db.write() as tx:
            if _find(tx, record, name) is not None:
                raise NameInUse(f"container {record.name} has a snapshot called {name} already")
            if fresh is not None:
                _go_on(tx, record, fresh)
            tx.insert(
                "snapshots", container=record.id, name=name, layer=ground, created=time.time()
            )


def rollback(core: Core, record: Record, name: str) -> None:
    """Go back to a snapshot; what was written since is gone, later snapshots stay.

    Raises:
        InvalidName: there is no such snapshot.
    """
    with core.db.read() as tx:
        ground = _need(tx, record, name)
    with new_top(core, ground, record.options) as top, core.db.write() as tx:
        _need(tx, record, name)
        top.record(tx, kind="writable", parent=ground)
        tx.run("UPDATE containers SET layer = ? WHERE id = ?", (top.id, record.id))
        doomed = release(tx, record.layer, core.leases.token)
    discard(core, doomed)


def remove_snapshot(core: Core, record: Record, name: str) -> None:
    """Forget a snapshot. Its layer goes too unless something stands on it."""
    with core.db.write() as tx:
        layer = _need(tx, record, name)
        tx.run("DELETE FROM snapshots WHERE container = ? AND name = ?", (record.id, name))
        doomed = release(tx, layer, core.leases.token)
    discard(core, doomed)


def _ground(core: Core, record: Record) -> LayerId | None:
    """What a fork of the container can stand on: its top, or, if that is empty, what is below.

    Emptiness is asked of the driver by the first block of the layer's tar, which costs no
    more than one directory listing where the driver stacks.
    """
    with core.db.read() as tx:
        parent = tx.value("SELECT parent FROM layers WHERE id = ?", (record.layer,))
    if parent is None:
        return record.layer
    with core.driver_named(record.driver).diff(record.layer, parent) as tar:
        untouched = not tar.read(512).strip(b"\0")
    return LayerId(parent) if untouched else record.layer


def _try_mount(core: Core, record: Record, top: LayerId) -> None:
    """Over a directory, mount what is to be, before the old is given up.

    overlayfs refuses (ELOOP) a lower layer that lies below another one on the same file system,
    as a frozen layer does when the directory holds the store.
    """
    if record.base is None:
        return
    try:
        with core.driver_named(record.driver).mounted(top):
            pass
    except OSError as error:
        raise LaminaError(
            f"container {record.name} can't go on from a frozen layer over {record.base}: {error}"
        ) from error


def _go_on(tx: Transaction, record: Record, fresh: Making) -> None:
    """Freeze a container's top and put a fresh one on it."""
    fresh.record(tx, kind="writable", parent=record.layer)
    tx.run("UPDATE layers SET kind = 'frozen' WHERE id = ?", (record.layer,))
    tx.run("UPDATE containers SET layer = ? WHERE id = ?", (fresh.id, record.id))


def _find(tx: Transaction, record: Record, name: str) -> LayerId | None:
    layer: LayerId | None = tx.value(
        "SELECT layer FROM snapshots WHERE container = ? AND name = ?", (record.id, name)
    )
    return layer


def _need(tx: Transaction, record: Record, name: str) -> LayerId:
    layer = _find(tx, record, name)
    if layer is None:
        known = tx.rows("SELECT name FROM snapshots WHERE container = ?", (record.id,))
        names = ", ".join(sorted(row[0] for row in known)) or "none"
        raise InvalidName(
            f"container {record.name} has no snapshot called {name[:100]!r} (it has: {names})"
        )
    return layer
