from __future__ import annotations

import errno
import io
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.errors import StoreError
from lamina.store import Store
from lamina.store.database import Database
from lamina.store.schema import MIGRATIONS
from tests.store import children


def _count(db: Database) -> int:
    with db.read() as tx:
        return int(tx.value("SELECT count(*) FROM settings"))


def test_a_transaction_that_raises_changes_nothing(tmp_path: Path) -> None:
    db = Database(tmp_path / "lamina.db")
    with pytest.raises(KeyError), db.write() as tx:
        tx.insert("settings", key="a", value="1")
        raise KeyError
    assert _count(db) == 0
    db.close()


def test_threads_write_side_by_side(tmp_path: Path) -> None:
    db = Database(tmp_path / "lamina.db")

    def work(number: int) -> None:
        for i in range(20):
            with db.write() as tx:
                tx.insert("settings", key=f"{number}-{i}", value="")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _count(db) == 160
    db.close()


def test_processes_may_all_be_the_first_to_open(tmp_path: Path) -> None:
    path = tmp_path / "lamina.db"
    code = """
        import pathlib, sys
        from lamina.store.database import Database
        db = Database(pathlib.Path(sys.argv[1]))
        with db.write() as tx:
            tx.insert("settings", key=sys.argv[2], value="")
        db.close()
    """
    running = [children.start(code, path, number) for number in range(6)]
    assert [child.wait() for child in running] == [0] * 6
    db = Database(path)
    assert _count(db) == 6
    db.close()


def test_a_forked_child_uses_a_connection_of_its_own(tmp_path: Path) -> None:
    db = Database(tmp_path / "lamina.db")
    with db.write() as tx:
        tx.insert("settings", key="parent", value="")
    child = os.fork()
    if child == 0:
        try:
            with db.write() as tx:
                tx.insert("settings", key="child", value="")
            db.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _count(db) == 2
    assert db.damage() == []
    db.close()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "lamina.db").close()
    connection = sqlite3.connect(tmp_path / "lamina.db")
    connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreError, match="written by a newer Lamina"):
        Database(tmp_path / "lamina.db")


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "lamina.db")
    connection.execute("PRAGMA user_version=1")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        Database(tmp_path / "lamina.db")


@pytest.mark.parametrize("garbage", [b"not a database at all" * 500, b"SQLite format 3\0" * 300])
def test_a_damaged_database_says_what_to_do(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "lamina.db").write_bytes(garbage)
    with pytest.raises(StoreError, match=r"damaged.*backup"):
        Database(tmp_path / "lamina.db")


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_lost_database_is_not_made_anew(
    tmp_path: Path, root_fs: bytes, lost: Callable[[Path], object]
) -> None:
    with Store(tmp_path / "root", run=tmp_path / "run", driver="vfs") as store:
        store.import_tar(io.BytesIO(root_fs), "image")
        layers = list(store.driver.ids())
    lost(tmp_path / "root/lamina.db")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"missing or empty.*restore"):
            Store(tmp_path / "root", run=tmp_path / "run", driver="vfs")
    assert sorted(os.listdir(tmp_path / "root/vfs/layers")) == sorted(layers)


@pytest.mark.root
def test_a_disk_too_full_to_open_the_database_is_said(tmpfs_small: Path, tmp_path: Path) -> None:
    Store(tmpfs_small / "root", run=tmp_path / "run", driver="vfs").close()
    with pytest.raises(OSError, match="No space left"), open(tmpfs_small / "fill", "wb", 0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(OSError, match="No space left") as caught:
        Store(tmpfs_small / "root", run=tmp_path / "run", driver="vfs")
    assert caught.value.errno == errno.ENOSPC


def test_a_damaged_page_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lamina.db"
    db = Database(path)
    with db.write() as tx:
        tx.run_all("INSERT INTO settings VALUES (?, ?)", [(str(n), "v" * 100) for n in range(2000)])
    db.close()
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 8192] = os.urandom(8192)
    path.write_bytes(data)
    db = Database(path)
    assert db.damage()
    with pytest.raises(StoreError, match="damaged"), db.read() as tx:
        tx.rows("SELECT * FROM settings")
    db.close()
