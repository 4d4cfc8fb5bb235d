"""Copying a whole tree that is no layer, with everything that a tree has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lamina.archive.nodes import Copier
from lamina.archive.owners import Owners, Warn, for_process
from lamina.archive.stack import walk
from lamina.archive.target import Target
from lamina.archive.whiteout import PLAIN
from lamina.kernel.idmap import IdMap
from lamina.log import Log

log = Log(__name__)

AnyPath = str | bytes | Path


def copy_tree(
    src: AnyPath,
    dst: AnyPath,
    *,
    owners: Owners | None = None,
    warn: Warn = log.warning,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Copy the directory ``src`` to ``dst``, which is made, or is an empty directory.

    Contents share blocks where the file system can, and are copied in the kernel where not; holes
    stay holes. Owners, modes, attributes, times and hard links within the tree are kept. Sockets
    are left out. As an ordinary user, everything is the user's, and devices are left out.
    ``progress`` is called with the bytes of each regular file that was copied.

    Returns the bytes of the regular files, a hard-linked one once. Raises OSError.
    """
    try:
        os.mkdir(dst, 0o700)
    except FileExistsError:
        pass
    copier = Copier(owners or for_process(IdMap()), PLAIN, warn)
    size = 0
    root_fd = os.open(dst, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Target(root_fd, copier) as target:
            for node in walk([src], PLAIN):
                fd = target.stand(node)
                if node.fd >= 0:
                    if node.depth:
                        os.mkdir(node.name, 0o700, dir_fd=fd)
                    target.enter(node)
                elif node.status is not None and not target.link(node, node.name):
                    more = copier.node(node.dir_fd, node.name, node.status, fd, node.name)
                    size += more or 0
                    if more and progress is not None:
                        progress(more)
    finally:
        os.close(root_fd)
    return size
