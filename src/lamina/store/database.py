"""SQLite: connections, transactions, and what to say when the database is not as it should be.

The database is in WAL mode: readers never wait for a writer. One connection a thread, opened
when first needed. A write transaction takes the one write lock at its start (``BEGIN
IMMEDIATE``), is short, and makes no slow system call; it is the last lock in the lock order
(:mod:`lamina.store.locks`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError, PermissionRequired, StoreError
from lamina.store.schema import APPLICATION_ID, MIGRATIONS

Value = str | int | float | bytes | None
Row = sqlite3.Row

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for another writer; each holds the lock for milliseconds."""

_SMALL = 64 * 1024
"""Bytes that SQLite needs beside the database, at least: 32 KiB of them shared memory."""


class Transaction:
    """What can be done with an open connection: run statements, read rows."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run one statement; returns the number of rows it changed."""
        return self._connection.execute(sql, values).rowcount

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query."""
        return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[Value] = ()) -> Row | None:
        """The first row of a query, or None."""
        row: Row | None = self._connection.execute(sql, values).fetchone()
        return row

    def value(self, sql: str, values: Sequence[Value] = ()) -> Any:
        """The first column of the first row, or None."""
        row = self._connection.execute(sql, values).fetchone()
        return row[0] if row else None

    def insert(self, table: str, **values: Value) -> None:
        """Insert one row. The names come from the code, never from outside."""
        marks = ", ".join("?" * len(values))
        columns = ", ".join(values)
        self._connection.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(values.values())
        )

    def run_all(self, sql: str, values: Iterable[Sequence[Value]]) -> None:
        """Run one statement once for each sequence of values."""
        self._connection.executemany(sql, values)


class Database:
    """The file ``path``; made with its tables if it is not there.

    ``evidence`` are directories in which only a store that was used has anything: where there
    is something, a database that is not there was lost, and is not made anew. ``migrations`` lead
    to the tables, from nothing; ``cache`` (KiB) limits what each thread's connection keeps in
    memory; the log is written back when it has ``log_pages``.

    Raises:
        StoreError: it is no Lamina database, damaged, lost, or written by a newer Lamina.
        PermissionRequired: this user may not write it.
    """

    def __init__(
        self,
        path: Path,
        *,
        evidence: Sequence[Path] = (),
        migrations: Sequence[str] = MIGRATIONS,
        cache: int = 2000,
        log_pages: int = 1000,
    ) -> None:
        self.path = path
        self._evidence = evidence
        self._migrations = migrations
        self._cache = cache
        self._log_pages = log_pages
        self._local = threading.local()
        self._mutex = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        self._pid = os.getpid()
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections of all threads. The object can be used again."""
        with self._mutex:
            connections, self._open = self._open, []
            self._local = threading.local()
            if self._pid != os.getpid():
                _abandoned.extend(connections)
                return
        for connection in connections:
            connection.close()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Run queries; several see one state of the database."""
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield Transaction(connection)
            finally:
                connection.execute("COMMIT")

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[Transaction]:
        """One transaction: all of it when the block ends, nothing of it when the block raises.

        ``durable`` also waits until it is on disk, so that it survives a power cut; else a
        power cut may undo the last transactions, in order, never parts of one.
        """
        with self._errors(), self._connection() as connection:
            self._synchronous(connection, "FULL" if durable else "NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def write_back(self) -> None:
        """Write the log back, so that what comes next begins it anew and it does not grow."""
        with self._errors(), self._connection() as connection:
            connection.execute("PRAGMA wal_checkpoint(RESTART)")

    def damage(self) -> list[str]:
        """What SQLite's own check finds wrong; reads the whole database."""
        try:
            with self.read() as tx:
                found = [row[0] for row in tx.rows("PRAGMA integrity_check")]
                found += [
                    f"row {row[1]} of table {row[0]} refers to a row that is not in {row[2]}"
                    for row in tx.rows("PRAGMA foreign_key_check")
                ]
        except StoreError as error:
            return [str(error)]
        return [line for line in found if line != "ok"]

    # -- connections --------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, for one transaction: they do not nest."""
        connection = self._connect()
        if getattr(self._local, "busy", False):
            raise RuntimeError("a transaction within a transaction")
        if connection.in_transaction:  # a signal came where it could not be ended
            connection.execute("ROLLBACK")
        self._local.busy = True
        try:
            yield connection
        finally:
            self._local.busy = False

    def _synchronous(self, connection: sqlite3.Connection, level: str) -> None:
        """How far a commit waits for the disk. Can't be changed within a transaction."""
        if getattr(self._local, "synchronous", None) != level:
            connection.execute(f"PRAGMA synchronous={level}")
            self._local.synchronous = level

    def _connect(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            self._forget_parent()
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            with self._mutex:
                self._open.append(connection)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute(f"PRAGMA cache_size=-{self._cache}")
            connection.execute(f"PRAGMA wal_autocheckpoint={self._log_pages}")
            self._local.connection = connection
        return connection

    def _forget_parent(self) -> None:
        """After fork(2): a connection of the parent must be neither used nor closed here."""
        _abandoned.extend(self._open)
        self._open = []
        self._local = threading.local()
        self._mutex = threading.Lock()
        self._pid = os.getpid()

    # -- opening ------------------------------------------------------------------------

    def _prepare(self) -> None:
        version = self._version()
        if version > len(self._migrations):
            raise StoreError(
                f"the store {self.path.parent} was written by a newer Lamina "
                f"(format {version}, this one knows {len(self._migrations)}): upgrade lamina"
            )
        if version < len(self._migrations):
            self._migrate()

    def _version(self) -> int:
        connection = self._connect()
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreError(f"{self.path} is the database of another program")
        return version

    def _migrate(self) -> None:
        """Bring the tables to this version. Others who open the store meanwhile wait."""
        with _directory_lock(self.path.parent):
            connection = self._connect()
            if not self._version():
                self._refuse_if_lost()
            connection.execute("PRAGMA journal_mode=WAL")
            with self.write(durable=True):
                for step in self._migrations[self._version() :]:
                    for statement in _statements(step):
                        connection.execute(statement)
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={len(self._migrations)}")

    def _refuse_if_lost(self) -> None:
        """With new tables all layers would be orphans, which the next prune would delete."""
        found = next(
            (path for path in self._evidence if path.is_dir() and any(path.iterdir())), None
        )
        if found is not None:
            raise StoreError(
                f"the database {self.path} is missing or empty, but {found} is not: restore the "
                "file from a backup; to start anew, move the store's directory away"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: sqlite3.Error) -> LaminaError | OSError:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or (
            # What SQLite says when its shared memory or its log can't be made.
            code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(self.path.parent)
        ):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return PermissionRequired(
                f"can't write {self.path} ({error}): use the user that the store belongs to, "
                "or another one with --root DIR"
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreError(
                f"the database {self.path} is damaged ({error}). The layers beside it are not "
                f"touched. Restore the file from a backup, or try `sqlite3 {self.path} .recover`; "
                "to start anew, move the store's directory away"
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"the database {self.path} is locked by another program")
        return StoreError(f"the database {self.path}: {error}")


_abandoned: list[sqlite3.Connection] = []
"""Connections of a parent process: kept, since closing one would disturb the parent's."""


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; ``executescript`` would commit between them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _is_full(directory: Path) -> bool:
    """Whether the file system has no room for another small file."""
    status = os.statvfs(directory)
    no_blocks = status.f_bavail * status.f_frsize < _SMALL
    return no_blocks or (status.f_files > 0 and status.f_favail == 0)


@contextmanager
def _directory_lock(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
