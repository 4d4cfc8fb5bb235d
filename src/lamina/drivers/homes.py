"""Several homes of drivers, remembered on disk: what a server needs whose clients name them.

A client says once where its layers are to lie, by which driver, with which options and owners
(:meth:`Homes.begin`); from then on it names layers only. The server may be restarted in between,
so all of that is written down, in one file that is replaced by rename(2):

    {"homes": [{"home": "/var/lib/docker/lamina", "driver": "overlay", "options": {},
                "uids": [[0, 100000, 65536]], "gids": [[0, 100000, 65536]]}, ...]}

The home that was begun last is first. A new layer goes there, or where its parent is; a layer
that is there is found in whichever home has it.

A home says itself which driver it is of, in the file ``lamina-driver``; one without it that looks
like Docker's AUFS layout is of ``aufs``.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from lamina.drivers.base import NO_OPTIONS, Driver, check_id
from lamina.drivers.registry import choose_for, driver_class
from lamina.errors import (
    InvalidName,
    LaminaError,
    LayerExists,
    LayerNotFound,
    StoreError,
    printable,
)
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.lock import try_lock, unlock
from lamina.kernel.mountinfo import mounts_below
from lamina.log import Log
from lamina.types import LayerId

log = Log(__name__)

_MARK = "lamina-driver"


class Home(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One home, as it is written down."""

    home: str
    driver: str
    options: dict[str, str] = {}
    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()

    @property
    def idmap(self) -> IdMap:
        """The owners."""
        return IdMap(tuple(IdRange(*r) for r in self.uids), tuple(IdRange(*r) for r in self.gids))


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    homes: tuple[Home, ...] = ()


class Homes:
    """The homes of one server, and their drivers, which are made when they are used first.

    Args:
        state: the file in which they are remembered; its directory is made if missing (0700).
            It is locked: a second server that uses it is refused.
        run: where each home gets a run directory (:class:`Driver`).
        driver: which driver a new home is of; None for the best that works there.
        options: storage options for it, beside those that are said when a home is begun.

    Raises (the constructor):
        StoreError: another server uses the file, or it is damaged.
    """

    def __init__(
        self,
        state: Path,
        run: Path,
        *,
        driver: str | None = None,
        options: Mapping[str, str] = NO_OPTIONS,
    ) -> None:
        if driver is not None:
            driver_class(driver)
        self._state, self._run = state, run
        self._driver, self._options = driver, options
        self._mutex = threading.Lock()
        self._drivers: dict[str, Driver] = {}
        state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = try_lock(f"{state}.lock")
        if lock is None:
            raise StoreError(f"another server uses {printable(state)}")
        self._lock = lock
        try:
            self._homes = [home for home in self._read() if os.path.isdir(home.home)]
        except BaseException:
            unlock(lock)
            raise

    def close(self) -> None:
        """Give up what is held in this process; mounts and their references stay."""
        with self._mutex:
            drivers = list(self._drivers.values())
            self._drivers.clear()
        for driver in drivers:
            driver.close()
        unlock(self._lock)

    # -- homes --------------------------------------------------------------------------

    def begin(
        self,
        home: Path,
        *,
        driver: str | None = None,
        options: Mapping[str, str] = NO_OPTIONS,
        idmap: IdMap = IdMap(),
    ) -> Driver:
        """Take up a home, made if missing, or take it up anew, and make it the first.

        Raises:
            InvalidName: ``home`` is not an absolute path, or there is no such driver.
            DriverUnsupported: the driver can't work there, or not with these owners.
            OptionUnsupported: as the driver's constructor.
            StoreError: the directory holds layers of another driver, or something else.
        """
        if not home.is_absolute() or "\0" in str(home):
            raise InvalidName(f"a home is an absolute path, not '{printable(home)}'")
        home = Path(os.path.realpath(home))
        name = self._driver_for(home, driver, idmap)
        options = {**(self._options if name == self._driver else NO_OPTIONS), **options}
        uids, gids = ([(r.container, r.host, r.size) for r in ranges] for ranges in idmap)
        record = Home(str(home), name, options, tuple(uids), tuple(gids))
        made = self._make(record)
        _write_mark(home, name)
        with self._mutex:
            others = [other for other in self._homes if other.home != record.home]
            self._homes = [record, *others]
            self._write()
            self._drivers[record.home] = made  # whoever is still at it goes on with the former
        return made

    def _driver_for(self, home: Path, wanted: str | None, idmap: IdMap) -> str:
        begun = _mark(home)
        wanted = wanted or self._driver
        if begun is not None:
            if wanted not in (None, begun):
                where = printable(home)
                raise StoreError(f"{where} holds layers of driver {begun}, not {wanted}")
            wanted = begun
        if wanted is None:
            return choose_for(home, idmap)
        if idmap:
            driver_class(wanted).probe(home, idmap=idmap)  # rather than at the first mount
        return wanted

    def _make(self, record: Home) -> Driver:
        digest = hashlib.sha256(os.fsencode(record.home)).hexdigest()[:16]
        return driver_class(record.driver)(
            Path(record.home), self._run / digest, options=record.options, idmap=record.idmap
        )

    def _driver_of(self, record: Home) -> Driver:
        with self._mutex:
            made = self._drivers.get(record.home)
            if made is None:
                made = self._drivers[record.home] = self._make(record)
            return made

    def drivers(self) -> Iterator[Driver]:
        """The drivers of all homes, the one begun last first. One that can't be had is logged."""
        with self._mutex:
            records = list(self._homes)
        for record in records:
            try:
                yield self._driver_of(record)
            except (LaminaError, OSError) as error:
                if record is records[0]:
                    raise
                log.warning("forgotten till the next start: home %s: %s", record.home, error)
                with self._mutex:
                    self._homes = [home for home in self._homes if home is not record]

    def current(self) -> Driver:
        """The driver of the home that was begun last.

        Raises:
            StoreError: none was.
        """
        for driver in self.drivers():
            return driver
        raise StoreError("no home was begun here (GraphDriver.Init)")

    def cleanup(self) -> None:
        """Unmount what nobody refers to. In a sole home the pins are given back too: it is its one
        client that stops."""
        drivers = list(self.drivers())
        for driver in drivers:
            driver.cleanup(pins=len(drivers) == 1)

    def mounts(self) -> dict[Path, int]:
        """How many mounts stand below each home."""
        found = {}
        for driver in self.drivers():
            found[driver.home] = len(mounts_below(driver.home))
        return found

    # -- layers -------------------------------------------------------------------------

    def place(self, id: LayerId, parent: LayerId | None) -> Driver:
        """The driver of the home that a new layer goes to.

        Raises:
            InvalidName: one of the two is no id.
            LayerExists: some home has it.
            LayerNotFound: no home has the parent.
        """
        driver = self.of(id)
        if driver.exists(id):
            raise LayerExists(id)
        return self.current() if parent is None else self.holding(parent)

    def of(self, id: LayerId) -> Driver:
        """The driver of the home that has a layer; of the current one if none has.

        Raises:
            InvalidName: it is no id.
        """
        check_id(id)
        return next((driver for driver in self.drivers() if driver.exists(id)), self.current())

    def holding(self, id: LayerId) -> Driver:
        """The driver of the home that has a layer.

        Raises:
            LayerNotFound: none has.
        """
        driver = self.of(id)
        if not driver.exists(id):
            raise LayerNotFound(id)
        return driver

    # -- on disk ------------------------------------------------------------------------

    def _read(self) -> tuple[Home, ...]:
        try:
            data = self._state.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            return msgspec.json.decode(data, type=_State).homes
        except (msgspec.MsgspecError, ValueError) as error:
            raise StoreError(f"{printable(self._state)} is damaged: {error}") from error

    def _write(self) -> None:
        new = f"{self._state}.new"
        with open(new, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_State(tuple(self._homes)))))
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self._state)


def _mark(home: Path) -> str | None:
    """The driver that a home is of; None where there is nothing yet.

    Raises:
        StoreError: it holds what is no home.
    """
    try:
        return (home / _MARK).read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        pass
    try:
        names = set(os.listdir(home))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise StoreError(f"{printable(home)} is no directory") from error
    if {"diff", "layers", "mnt"} <= names:
        return "aufs"
    if names:
        raise StoreError(f"{printable(home)} holds something else than layers")
    return None


def _write_mark(home: Path, driver: str) -> None:
    path = home / _MARK
    if not path.exists():
        staged = home / f"{_MARK}.new"
        staged.write_text(f"{driver}\n", encoding="ascii")
        staged.rename(path)
