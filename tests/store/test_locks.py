from __future__ import annotations

import threading
from pathlib import Path

from lamina.store.locks import OWNER, RUNNING, USE, LockFile, taken
from tests.store import children


def test_two_objects_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    one, two = LockFile(tmp_path / "a"), LockFile(tmp_path / "a")
    one.share(USE)
    two.share(USE)
    assert not one.try_alone(USE)
    two.release(USE)
    assert one.try_alone(USE)
    one.close()
    two.close()


def test_a_refused_upgrade_keeps_the_shared_lock(tmp_path: Path) -> None:
    one, two = LockFile(tmp_path / "a"), LockFile(tmp_path / "a")
    one.share(USE)
    two.share(USE)
    assert not one.try_alone(USE)
    two.close()
    assert taken(tmp_path / "a", USE)
    one.close()


def test_bytes_are_locks_of_their_own(tmp_path: Path) -> None:
    one = LockFile(tmp_path / "a")
    one.share(RUNNING)
    assert taken(tmp_path / "a", RUNNING)
    assert not taken(tmp_path / "a", USE, OWNER)
    one.close()


def test_the_last_one_deletes_the_file(tmp_path: Path) -> None:
    one, two = LockFile(tmp_path / "a"), LockFile(tmp_path / "a")
    one.share(OWNER)
    two.share(USE)
    two.close()
    assert (tmp_path / "a").exists()
    one.close()
    assert not (tmp_path / "a").exists()
    assert not taken(tmp_path / "a", USE)


def test_who_waited_for_a_deleted_file_locks_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    first = LockFile(path)
    assert first.try_alone(USE)
    waiting = LockFile(path)
    thread = threading.Thread(target=waiting.share, args=(USE,))
    thread.start()
    first.close()
    thread.join()
    assert path.exists()
    assert taken(path, USE)
    waiting.close()


def test_a_process_that_died_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    code = """
        import pathlib, signal, sys
        from lamina.store.locks import USE, LockFile
        lock = LockFile(pathlib.Path(sys.argv[1]))
        lock.share(USE)
        print("locked", flush=True)
        signal.pause()
    """
    with children.start(code, path, stdout=children.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert taken(path, USE)
        child.kill()
    assert not taken(path, USE)
    assert path.exists()


def test_a_dropped_object_holds_nothing(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "a")
    lock.share(USE)
    del lock
    assert not taken(tmp_path / "a", USE)
