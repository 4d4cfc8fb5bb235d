"""File systems are told by their magic, and known ones by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.kernel import filesystems


def test_every_magic_has_a_name_and_they_differ() -> None:
    magics = {k: v for k, v in vars(filesystems).items() if k.startswith("MAGIC_")}
    assert set(magics.values()) == set(filesystems.FS_NAMES)
    assert len(set(filesystems.FS_NAMES.values())) == len(magics)


def test_the_names_of_dockers_graph_drivers_are_known() -> None:
    docker = """aufs btrfs cramfs ecryptfs extfs f2fs fuse gpfs jffs2 jfs nfs overlay ramfs reiserfs
        smb squashfs tmpfs vxfs xfs zfs"""
    assert set(docker.split()) <= set(filesystems.FS_NAMES.values())


def test_proc_is_proc_by_path_and_by_descriptor() -> None:
    assert filesystems.magic("/proc/self") == filesystems.MAGIC_PROC
    fd = os.open("/proc", os.O_PATH)
    try:
        assert filesystems.magic(fd) == filesystems.MAGIC_PROC
    finally:
        os.close(fd)
    assert filesystems.name(filesystems.MAGIC_PROC) == "proc"


def test_an_unknown_magic_shows_its_number() -> None:
    assert filesystems.name(0x1234ABCD) == "unknown (0x1234abcd)"


def test_a_missing_path_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        filesystems.magic(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")


def test_the_kernel_says_what_it_supports() -> None:
    assert filesystems.supported("proc")
    assert not filesystems.supported("no-such-fs")


def test_a_module_that_is_missing_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    modprobe = tmp_path / "modprobe"
    modprobe.write_text(f'#!/bin/sh\necho "$@" >>{calls}\necho nodev lazyfs >>{tmp_path}/table\n')
    modprobe.chmod(0o755)
    (tmp_path / "table").write_text("nodev\tproc\n\text4\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(filesystems, "PROC_FILESYSTEMS", str(tmp_path / "table"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    filesystems._load_module.cache_clear()
    assert filesystems.supported("ext4")
    assert not calls.exists()
    assert filesystems.supported("lazyfs")
    assert filesystems.supported("lazyfs")
    assert calls.read_text() == "--quiet -- fs-lazyfs\n"


def test_an_ordinary_user_loads_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystems._load_module.cache_clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not filesystems._load_module("proc")
