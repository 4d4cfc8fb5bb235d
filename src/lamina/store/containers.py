"""The containers of a store: making, finding and listing them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lamina.errors import InvalidName, LayerNotFound
from lamina.store.branches import layer_options, new_top
from lamina.store.container import Container, own
from lamina.store.core import Core
from lamina.store.database import Transaction
from lamina.store.images import Image, top_layer
from lamina.store.making import making
from lamina.store.names import new_id
from lamina.store.records import Record, fetch_in, free_name, from_row, insert, resolve
from lamina.types import LayerId


class Plan(NamedTuple):
    """How a container is to be made. See :meth:`Store.container`."""

    name: str | None
    keep: bool
    options: Mapping[str, str]
    labels: Mapping[str, str]
    command: Sequence[str]


class Containers:
    """The containers of a store."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def get(self, ref: str) -> Container:
        """The container of this name, id or beginning of an id.

        Raises:
            ContainerNotFound: there is none.
            AmbiguousName: the beginning of several ids.
        """
        with self._core.db.read() as tx:
            record = fetch_in(tx, resolve(tx, ref))
        return Container(self._core, record)

    def __iter__(self) -> Iterator[Container]:
        """All containers, the newest first."""
        with self._core.db.read() as tx:
            rows = tx.rows("SELECT * FROM containers ORDER BY created DESC, id")
        return (Container(self._core, from_row(row)) for row in rows)

    def create(self, base: Image | Path, plan: Plan) -> Container:
        """Make a container over an image or a directory."""
        id = new_id()
        with ExitStack() as stack:
            lock = None
            if not plan.keep:
                lock = own(self._core, id)
                stack.callback(lock.close)
            if isinstance(base, Image):
                record = self._over_image(id, base, plan)
            else:
                record = self._over_directory(id, base, plan)
            stack.pop_all()
        return Container(self._core, record, lock=lock)

    def _over_image(self, id: str, image: Image, plan: Plan) -> Record:
        with self._core.db.read() as tx:
            floor = top_layer(tx, image.id, self._core.driver_name)
            free_name(tx, plan.name)
        try:
            with new_top(self._core, floor, plan.options) as top, self._core.db.write() as tx:
                self._require(tx, image)
                top.record(tx, kind="writable", parent=floor)
                name = free_name(tx, plan.name)
                record = self._record(id, name, top.id, floor, plan, image=image)
                insert(tx, record)
        except LayerNotFound:
            with self._core.db.read() as tx:
                self._require(tx, image)
            raise
        return record

    def _require(self, tx: Transaction, image: Image) -> None:
        """:class:`ImageNotFound` if another process removed the image meanwhile."""
        top_layer(tx, image.id, self._core.driver_name)

    def _over_directory(self, id: str, directory: Path, plan: Plan) -> Record:
        directory = directory.absolute()
        if not directory.is_dir():
            raise InvalidName(f"not a directory: {directory}")
        with self._core.db.read() as tx:
            free_name(tx, plan.name)
        options = {**layer_options(plan.options), "base": str(directory)}
        with (
            making(
                self._core, lambda driver, new: driver.create_read_write(new, options=options)
            ) as top,
            self._core.db.write() as tx,
        ):
            top.record(tx, kind="writable", parent=None)
            record = self._record(id, free_name(tx, plan.name), top.id, None, plan, base=directory)
            insert(tx, record)
        return record

    def _record(
        self,
        id: str,
        name: str,
        layer: LayerId,
        floor: LayerId | None,
        plan: Plan,
        *,
        image: Image | None = None,
        base: Path | None = None,
    ) -> Record:
        return Record(
            id=id,
            name=name,
            driver=self._core.driver_name,
            layer=layer,
            floor=floor,
            image=None if image is None else image.id,
            base=base,
            ephemeral=not plan.keep,
            options=plan.options,
            labels=plan.labels,
            command=plan.command,
            created=time.time(),
        )
