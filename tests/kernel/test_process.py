from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamina.kernel import process

SOURCE = str(Path(process.__file__).parents[2])


def python(code: str) -> str:
    """The output of ``code`` in a process of its own, for what can't be undone."""
    prelude = f"import sys; sys.path.insert(0, {SOURCE!r})\nfrom lamina.kernel import process\n"
    return subprocess.check_output([sys.executable, "-S", "-c", prelude + code], text=True).strip()


def test_capability_mask_knows_names_with_and_without_prefix() -> None:
    assert process.capability_mask(["CAP_CHOWN", "kill", "cap_setgid"]) == 1 | 1 << 5 | 1 << 6
    assert process.capability_mask(["ALL"]) == (1 << 41) - 1
    assert process.capability_mask([]) == 0
    with pytest.raises(ValueError, match="CAP_NONSENSE"):
        process.capability_mask(["CAP_NONSENSE"])


def test_capget_agrees_with_proc() -> None:
    status = dict(
        line.split(":\t")
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":\t" in line
    )
    effective, permitted, inheritable = process.capget()
    assert effective == int(status["CapEff"], 16)
    assert permitted == int(status["CapPrm"], 16)
    assert inheritable == int(status["CapInh"], 16)
    assert process.bounding_set() == int(status["CapBnd"], 16)


@pytest.mark.root
def test_capset_and_the_bounding_set_limit_what_is_left() -> None:
    code = """
mask = process.capability_mask(["CHOWN", "KILL"])
process.limit_bounding_set(mask)
process.capset(mask, mask, mask)
process.raise_ambient(mask)
import os
os.execv("/bin/grep", ["grep", "^Cap", "/proc/self/status"])
"""
    masks = dict(line.split(":\t") for line in python(code).splitlines())
    assert {int(value, 16) for value in masks.values()} == {0b100001}
    assert set(masks) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}


def test_no_new_privs_is_inherited() -> None:
    code = """
process.set_no_new_privs()
import os
os.execv("/bin/grep", ["grep", "NoNewPrivs", "/proc/self/status"])
"""
    assert python(code) == "NoNewPrivs:\t1"


def test_the_parents_death_is_the_childs() -> None:
    code = """
import os, signal, time
r, w = os.pipe()
child = os.fork()
if child == 0:
    process.set_parent_death_signal(signal.SIGKILL)
    os.write(w, b"x")
    os.close(1)
    time.sleep(60)
os.read(r, 1)
print(child)
"""
    child = int(python(code))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            process.start_time(child)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def test_a_pidfd_tells_the_end() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        fd = process.pidfd_open(child.pid)
        try:
            assert not select.select([fd], [], [], 0)[0]
            child.kill()
            assert select.select([fd], [], [], 5)[0]
        finally:
            os.close(fd)


def test_start_time_names_a_process() -> None:
    own = process.start_time(os.getpid())
    assert own == process.start_time(os.getpid())
    assert own >= process.start_time(1)
    with pytest.raises(ProcessLookupError):
        process.start_time(2**22 + 1)


def test_start_time_of_a_process_with_an_odd_name() -> None:
    code = """
import ctypes, os
process.prctl(process.PR_SET_NAME, ctypes.addressof(ctypes.create_string_buffer(b"a) R 1 (")))
print(process.start_time(os.getpid()))
"""
    assert int(python(code)) > 0


def test_a_refused_prctl_is_an_oserror() -> None:
    with pytest.raises(OSError):
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 7)
