"""Counts that live and die with their processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lamina.drivers.references import References
from lamina.types import LayerId

ID = LayerId("box")


@pytest.fixture
def references(tmp_path: Path) -> References:
    return References(tmp_path)


def test_the_last_release_of_one_process_is_the_last(references: References) -> None:
    with references.transition(ID):
        assert references.acquire(ID) == 1
        assert references.acquire(ID) == 2
        assert not references.release(ID)
        assert references.release(ID)
        assert not references.taken(ID)


def test_two_objects_count_as_two_processes(references: References, tmp_path: Path) -> None:
    other = References(tmp_path)
    with references.transition(ID):
        references.acquire(ID)
    with other.transition(ID):
        other.acquire(ID)
        assert other.taken_elsewhere(ID)
        assert not other.release(ID)
    with references.transition(ID):
        assert not references.taken_elsewhere(ID)
        assert references.taken(ID)
        assert references.release(ID)


def test_asking_does_not_lose_our_own_reference(references: References, tmp_path: Path) -> None:
    other = References(tmp_path)
    with references.transition(ID):
        references.acquire(ID)
        assert not references.taken_elsewhere(ID)
    with other.transition(ID):
        assert other.taken(ID)
    with references.transition(ID):
        assert references.release(ID)


def test_a_pin_counts_until_it_is_taken_back(references: References, tmp_path: Path) -> None:
    with references.transition(ID):
        references.pin(ID)
        references.pin(ID)
    other = References(tmp_path)
    with other.transition(ID):
        assert other.taken(ID)
        assert other.unpin(ID)
        assert other.taken(ID)
        assert other.unpin(ID)
        assert not other.unpin(ID)
        assert not other.taken(ID)


def test_forgetting_leaves_no_file(references: References, tmp_path: Path) -> None:
    with references.transition(ID):
        references.acquire(ID)
        references.pin(ID)
        references.unpin(ID)
        references.release(ID)
        references.forget(ID)
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_forgotten_id_gets_a_lock_that_counts(
    references: References, tmp_path: Path
) -> None:
    other = References(tmp_path)
    order: list[str] = []

    def wait() -> None:
        with other.transition(ID):
            order.append("other")
            inode = os.stat(tmp_path / "box.lock").st_ino
            order.append("linked" if inode else "")

    with references.transition(ID):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)
        order.append("first")
        references.forget(ID)
    thread.join()
    assert order == ["first", "other", "linked"]


def test_transitions_exclude_threads_and_processes(references: References, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from lamina.drivers.references import References\n"
        f"counter = Path({str(tmp_path / 'counter')!r})\n"
        f"references = References(Path({str(tmp_path)!r}))\n"
        "for _ in range(200):\n"
        "    with references.transition('box'):\n"
        "        counter.write_text(str(int(counter.read_text()) + 1))\n"
    )
    (tmp_path / "counter").write_text("0")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    children = [subprocess.Popen([sys.executable, "-c", program], env=env) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "600"
