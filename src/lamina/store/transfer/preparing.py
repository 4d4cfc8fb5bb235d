"""Making ready what has come, so that the first container on it starts as fast as the others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamina.errors import LaminaError
from lamina.log import Log
from lamina.store.core import Core
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.drivers import Driver

log = Log(__name__)


def prepare(driver: Driver, id: LayerId) -> None:
    """:meth:`Driver.prepare`, if it works: what hinders it hinders no transfer."""
    try:
        driver.prepare(id)
    except (LaminaError, OSError) as error:
        log.debug("layer %s is not made ready ahead: %s", id, error)


@contextmanager
def prepared(core: Core, id: LayerId) -> Iterator[None]:
    """:func:`prepare` beside the block, which waits for the disk; done at its end."""
    with ThreadPoolExecutor(1, "lamina-prepare") as pool:
        preparing = pool.submit(prepare, core.driver, id)
        yield
    preparing.result()
