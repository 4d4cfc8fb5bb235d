"""What every verb gets: the settings, and the store that they name."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lamina import log
from lamina.cli.messages import say
from lamina.cli.settings import Settings

if TYPE_CHECKING:
    from lamina.api import Store
    from lamina.progress import Progress, ProgressCallback


class Session:
    """One run of the command."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def quiet(self) -> bool:
        """Whether remarks and progress bars are unwanted."""
        return self.settings.quiet

    def enter(self) -> None:
        """Let an ordinary user enter a user namespace, where mounts and other owners' files can
        be had. That takes a process of one thread, so enter before starting any.
        """
        if os.geteuid() != 0:
            from lamina.cli import rootless

            self.settings = rootless.enter(self.settings)

    @contextmanager
    def store(self, *, progress: bool = False, work: str | None = None) -> Iterator[Store]:
        """The store, open; with ``progress``, long work in it draws bars on a terminal, or else
        is told as ``work`` when it begins.

        :meth:`enter` comes first.
        """
        self.enter()
        settings = self.settings
        log.before_first(self._hear_warnings)
        with ExitStack() as stack:
            report = stack.enter_context(self.progress(work=work)) if progress else None
            from lamina.api import Store

            store = Store(
                settings.root,
                run=settings.run_root,
                driver=settings.driver,
                options=settings.storage_options,
                progress=report,
            )
            yield stack.enter_context(store)

    def remark(self, text: str) -> None:
        """Tell something on stderr that nobody has to read."""
        if not self.quiet:
            say(text)

    @contextmanager
    def progress(
        self, *, quiet: bool = False, work: str | None = None
    ) -> Iterator[ProgressCallback | None]:
        """What draws bars of long work on a terminal; where there is none it says ``work`` once,
        if that is given. None if there is nothing to tell, or ``quiet``.
        """
        if quiet or self.quiet or not sys.stderr.isatty():
            yield self._once(work) if work and not quiet and not self.quiet else None
            return
        from lamina.cli.progress import Bars

        with Bars() as bars:
            yield bars

    def _once(self, work: str) -> ProgressCallback:
        told = threading.Event()

        def tell(_progress: Progress) -> None:
            if not told.is_set():
                told.set()
                self.remark(work)

        return tell

    def _hear_warnings(self) -> None:
        """What the rooms below log comes as ``lamina: ...`` like all else."""
        import logging

        logging.basicConfig(
            format="lamina: %(message)s",
            level=logging.ERROR if self.quiet else logging.WARNING,
        )
