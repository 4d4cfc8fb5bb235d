"""Which file system something lies on, and which ones this kernel knows (statfs(2))."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from types import MappingProxyType

from lamina.kernel._syscall import c_char_p, c_int, c_void_p, check, encode, function

MAGIC_9P = 0x01021997
MAGIC_AUFS = 0x61756673
MAGIC_BCACHEFS = 0xCA451A4E
MAGIC_BTRFS = 0x9123683E
MAGIC_CEPH = 0x00C36400
MAGIC_CGROUP = 0x0027E0EB
MAGIC_CGROUP2 = 0x63677270
MAGIC_CIFS = 0xFF534D42
MAGIC_CRAMFS = 0x28CD3D45
MAGIC_DEVPTS = 0x1CD1
MAGIC_ECRYPTFS = 0xF15F
MAGIC_EROFS = 0xE0F5E1E2
MAGIC_EXFAT = 0x2011BAB0
MAGIC_EXTFS = 0xEF53  # ext2, ext3 and ext4
MAGIC_F2FS = 0xF2F52010
MAGIC_FUSE = 0x65735546
MAGIC_GFS2 = 0x01161970
MAGIC_GPFS = 0x47504653
MAGIC_ISO9660 = 0x9660
MAGIC_JFFS2 = 0x72B6
MAGIC_JFS = 0x3153464A
MAGIC_LUSTRE = 0x0BD00BD0
MAGIC_MSDOS = 0x4D44  # vfat too
MAGIC_NFS = 0x6969
MAGIC_NILFS = 0x3434
MAGIC_NTFS = 0x7366746E
MAGIC_OCFS2 = 0x7461636F
MAGIC_OVERLAY = 0x794C7630
MAGIC_PROC = 0x9FA0
MAGIC_RAMFS = 0x858458F6
MAGIC_REISERFS = 0x52654973
MAGIC_SMB = 0x517B
MAGIC_SMB2 = 0xFE534D42
MAGIC_SQUASHFS = 0x73717368
MAGIC_SYSFS = 0x62656572
MAGIC_TMPFS = 0x01021994
MAGIC_UDF = 0x15013346
MAGIC_VXFS = 0xA501FCF5
MAGIC_XFS = 0x58465342
MAGIC_ZFS = 0x2FC12FC1

FS_NAMES = MappingProxyType(
    {
        MAGIC_9P: "9p",
        MAGIC_AUFS: "aufs",
        MAGIC_BCACHEFS: "bcachefs",
        MAGIC_BTRFS: "btrfs",
        MAGIC_CEPH: "ceph",
        MAGIC_CGROUP: "cgroup",
        MAGIC_CGROUP2: "cgroup2",
        MAGIC_CIFS: "cifs",
        MAGIC_CRAMFS: "cramfs",
        MAGIC_DEVPTS: "devpts",
        MAGIC_ECRYPTFS: "ecryptfs",
        MAGIC_EROFS: "erofs",
        MAGIC_EXFAT: "exfat",
        MAGIC_EXTFS: "extfs",
        MAGIC_F2FS: "f2fs",
        MAGIC_FUSE: "fuse",
        MAGIC_GFS2: "gfs2",
        MAGIC_GPFS: "gpfs",
        MAGIC_ISO9660: "iso9660",
        MAGIC_JFFS2: "jffs2",
        MAGIC_JFS: "jfs",
        MAGIC_LUSTRE: "lustre",
        MAGIC_MSDOS: "msdos",
        MAGIC_NFS: "nfs",
        MAGIC_NILFS: "nilfs2",
        MAGIC_NTFS: "ntfs",
        MAGIC_OCFS2: "ocfs2",
        MAGIC_OVERLAY: "overlay",
        MAGIC_PROC: "proc",
        MAGIC_RAMFS: "ramfs",
        MAGIC_REISERFS: "reiserfs",
        MAGIC_SMB: "smb",
        MAGIC_SMB2: "smb2",
        MAGIC_SQUASHFS: "squashfs",
        MAGIC_SYSFS: "sysfs",
        MAGIC_TMPFS: "tmpfs",
        MAGIC_UDF: "udf",
        MAGIC_VXFS: "vxfs",
        MAGIC_XFS: "xfs",
        MAGIC_ZFS: "zfs",
    }
)
"""``f_type`` to the name that people use, as Docker's graph drivers say it where they do."""

PROC_FILESYSTEMS = "/proc/filesystems"

_statfs = function("statfs", None, c_char_p, c_void_p)
_fstatfs = function("fstatfs", None, c_int, c_void_p)
_STATFS_SIZE = 256  # struct statfs is 120 bytes on 64-bit machines; f_type is a long, and first
_F_TYPE = struct.Struct("@L")


def magic(path: str | bytes | os.PathLike[str] | int) -> int:
    """``f_type`` of the file system of a path (links followed) or descriptor; raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if isinstance(path, int):
        check(_fstatfs(path, buffer))
    else:
        check(_statfs(encode(path), buffer), path)
    return int(_F_TYPE.unpack_from(buffer)[0]) & 0xFFFFFFFF


def name(magic: int) -> str:
    """What people call the file system of this ``f_type``."""
    return FS_NAMES.get(magic) or f"unknown (0x{magic:x})"


def supported(fstype: str) -> bool:
    """Whether this kernel can mount ``fstype``, after loading its module if need and right be."""
    return _known(fstype) or (_load_module(fstype) and _known(fstype))


def _known(fstype: str) -> bool:
    with open(PROC_FILESYSTEMS, encoding="ascii") as table:
        return any(line.split()[-1:] == [fstype] for line in table)


@functools.cache
def _load_module(fstype: str) -> bool:
    """Ask modprobe(8), once a process: what is not there does not come while we wait."""
    if os.geteuid() != 0:
        return False
    import shutil  # rarely needed, and slow to import
    import subprocess

    tool = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if tool is None:
        return False
    command = [tool, "--quiet", "--", f"fs-{fstype}"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
