"""The on-disk format: what of EROFS an index uses, and the bounds that come of it.

Source: the kernel's fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst. Everything is
little-endian. A block is 512 bytes (Linux 6.4): file data in a tar begin on such a block.

==================== =========================================================================
at                   what
==================== =========================================================================
0                    1,024 bytes for boot sectors, zeros
1,024                superblock, 128 bytes; its checksum covers the whole block
1,152                device table: 128 bytes for each file that holds data
from there           inodes of 64 bytes, at multiples of 32: their number is position / 32. Each is
                     followed by its attributes, then by its inline data or its chunk map
next block           blocks of directories, and of symbolic links too long to be inline
next block           attributes too large to stand behind their inode
block 2^24 and up    no part of the index: the devices, one behind the other
==================== =========================================================================
"""

from __future__ import annotations

import functools
import stat
from struct import Struct
from typing import Final, NamedTuple

BLOCK_BITS: Final = 9
BLOCK: Final = 1 << BLOCK_BITS

SUPER_OFFSET: Final = 1024
MAGIC: Final = 0xE0F5E1E2
SUPER: Final = Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
CHECKSUM_OFFSET: Final = 4
COMPAT_CHECKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
INCOMPAT_CHUNKED: Final = 0x4
INCOMPAT_DEVICES: Final = 0x8
VOLUME_NAME: Final = b"lamina"


class Superblock(NamedTuple):
    """The fields of SUPER, in order."""

    magic: int
    checksum: int
    compatible: int
    block_bits: int
    extra_slots: int
    """Of 16 bytes, behind the superblock."""
    root_nid: int
    inodes: int
    build_time: int
    build_nanoseconds: int
    blocks: int
    meta_block: int
    """Inode numbers count from here."""
    xattr_block: int
    """Positions of shared attributes count from here."""
    uuid: bytes
    volume_name: bytes
    incompatible: int
    compression: int
    devices: int
    device_slot: int
    """Start of the device table, in units of 128 bytes."""
    directory_bits: int
    """More to the size of directory blocks; the kernel takes 0 alone."""
    prefixes: int
    prefix_start: int
    packed_nid: int
    filter: int


DEVICE: Final = Struct("<64sII56x")
"""tag, blocks, first block in the common address space."""
DEVICE_TABLE: Final = SUPER_OFFSET + 128
DEVICES_MAX: Final = 0xFFFF
DEVICE_BASE: Final = 1 << 24
"""The block at which the devices begin; so an index is 8 GiB at most."""
BLOCKS_MAX: Final = (1 << 32) - 1
"""Block addresses are 32 bits and all ones a hole: 2 TiB for index and devices together."""

SLOT_BITS: Final = 5
INODE: Final = Struct("<HHHHQIIIIqII16x")
"""format, attribute count, mode, reserved, size, data, number, uid, gid, mtime and its
nanoseconds, links."""
PLAIN: Final = 0
INLINE: Final = 2
CHUNKED: Final = 4
EXTENDED: Final = 1
CHUNK_BITS_MASK: Final = 0x1F
CHUNK_INDEXES: Final = 0x20
HOLE: Final = 0xFFFFFFFF

DIRENT: Final = Struct("<QHBx")
"""nid, offset of the name in the block, file type."""
NAME_MAX: Final = 255
FILE_TYPES: Final = {
    stat.S_IFREG >> 12: 1,
    stat.S_IFDIR >> 12: 2,
    stat.S_IFCHR >> 12: 3,
    stat.S_IFBLK >> 12: 4,
    stat.S_IFIFO >> 12: 5,
    stat.S_IFSOCK >> 12: 6,
    stat.S_IFLNK >> 12: 7,
}
"""File type of a directory entry, by the type bits of the mode."""

XATTR_HEADER: Final = Struct("<IB7x")
"""Name filter (not used), number of shared attributes; their positions follow."""
XATTR_ENTRY: Final = Struct("<BBH")
"""Length of the name, index of its prefix, size of the value."""
XATTR_PREFIXES: Final = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
}
XATTR_VALUE_MAX: Final = 0xFFFF
"""One byte less than Linux takes elsewhere."""
XATTR_INLINE_MAX: Final = 16 << 10
"""Bytes of attributes behind an inode; more go to the shared ones. (16 bits count words of them;
older kernels keep the bytes in 16 bits too.)"""
XATTR_SHARED_MAX: Final = 127

_CASTAGNOLI = 0x82F63B78


def device_number(major: int, minor: int) -> int:
    """A device number as an inode has it (new_encode_dev in include/linux/kdev_t.h)."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def device_parts(number: int) -> tuple[int, int]:
    """Major and minor, the inverse."""
    return (number & 0xFFF00) >> 8, (number & 0xFF) | (number >> 12 & 0xFFF00)


def checksum(block: bytes | bytearray | memoryview) -> int:
    """CRC-32C of the superblock's block with a zero checksum, without the last inversion."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in block:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (_CASTAGNOLI if number & 1 else 0)
        table.append(number)
    return tuple(table)
