"""What ``import lamina`` offers, with the rooms put together: a store that can run commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina import store

if TYPE_CHECKING:
    from lamina.kernel.idmap import IdMap
    from lamina.sandbox.run import Bind


def _run(
    root: Path,
    argv: Sequence[str],
    *,
    runtime: str | None = None,
    runtime_state: Path | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    from lamina.sandbox.run import run  # a store that runs nothing needs none of it

    if runtime is not None:
        from lamina.sandbox.runtime import Runtime

        assert runtime_state is not None
        options["runtime"] = Runtime(runtime, runtime_state)
    return run(root, argv, **options)


class Store(store.Store):
    """A store whose containers run commands (:mod:`lamina.sandbox.run`)."""

    __doc__ = store.Store.__doc__
    _runner = staticmethod(_run)

    def bundle(
        self,
        image: store.Image | str,
        target: str | os.PathLike[str],
        argv: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        network: str = "host",
        hostname: str | None = None,
        terminal: bool = False,
        mounts: Sequence[Bind] = (),
        idmap: IdMap | None = None,
    ) -> None:
        """Write an OCI runtime bundle, which runc and crun start, with a copy of an image's files.

        ``argv``, directory and user default to what the image says; ``env`` adds to it. Other
        arguments are those of :func:`lamina.sandbox.run.run`. ``target`` must not exist, or be an
        empty directory. As root the bundle is for root to run, else for the user who made it;
        ``idmap`` is the user namespace to run it in.

        Raises:
            InvalidName: ``target`` is taken, or no command is given and the image has none.
            UserNotFound: the image has no such user.
            ImageNotFound, AmbiguousName, OSError. Nothing is left of the bundle.
        """
        from lamina.oci import conversion
        from lamina.sandbox.bundle import Command, write_bundle

        source = self.image(image) if isinstance(image, str) else image
        defaults = source.defaults
        command = Command(
            argv or defaults.argv(),
            {**defaults.env, **(env or {})},
            cwd or defaults.working_dir,
            user or defaults.user,
            network,
            hostname,
            terminal,
            mounts,
        )
        with self.container(source, volatile=True) as box:
            write_bundle(
                Path(target),
                box.root,
                command,
                annotations=conversion.image_annotations(source.config),
                volumes=conversion.image_volumes(source.config),
                idmap=idmap,
                sync=self._core.durable,
            )
