"""What every server needs: the right to mount, and the libraries of the extra ``serve``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lamina.errors import LaminaError, PermissionRequired


@contextmanager
def requirements() -> Iterator[None]:
    """Import a server in the block.

    Raises:
        LaminaError: a library is not installed.
        PermissionRequired: we are not root, nor the root of a user namespace; the layers would
            be of no use to a containerd or Docker that is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise LaminaError(
            f"there is no Python module {error.name}: servers take Lamina's extra 'serve', as by "
            "pipx install --force '.[serve]' in a clone of it"
        ) from error
    if os.geteuid() != 0:
        raise PermissionRequired("servers take root, as containerd and Docker do: use sudo")
