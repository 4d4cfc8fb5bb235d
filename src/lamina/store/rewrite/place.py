"""Where a rewriting stands: the directories and files that say so."""

from __future__ import annotations

import enum
import os
from pathlib import Path

import msgspec

from lamina.errors import StoreError
from lamina.kernel.copy import syncfs
from lamina.store.adopt.leaving import LeftOut


class Stage(enum.Enum):
    """How far a rewriting is."""

    BEGUN = "begun"
    DONE = "done"


class Before(msgspec.Struct):
    """What was in the old tree when it was rewritten."""

    images: list[str] = []
    """Ids of all images."""
    containers: list[str] = []
    """Ids of the containers that come over."""
    damaged: LeftOut = LeftOut()
    left_out: list[str] = []
    """Ids of the containers that did not come over; when all is done."""


class Place:
    """The paths of a rewriting in the Docker root ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stage = root / "lamina-rewrite"
        self.new_layers = self.stage / "overlay2"
        self.new_image = self.stage / "image"
        self.saved = self.stage / "containers"
        self.layers = root / "overlay2"
        self.image = root / "image/overlay2"
        self._committing = self.stage / "committing"
        self._done = self.stage / "done"

    @property
    def is_done(self) -> bool:
        """Whether everything is in its place."""
        return self._done.exists()

    @property
    def is_begun(self) -> bool:
        """Whether there is something of a rewriting that is not done."""
        return self.stage.is_dir() and not self.is_done

    def is_switched(self, container: str) -> bool:
        """Whether a container has come over: what its configuration was is kept."""
        return (self.saved / container / "config.v2.json").exists()

    @property
    def is_committing(self) -> bool:
        """Whether the new tree is complete, and its being put in place was begun."""
        return self._committing.exists()

    @property
    def before(self) -> Before:
        """What there was before; when the new tree is complete."""
        path = self._done if self.is_done else self._committing
        return msgspec.json.decode(path.read_bytes(), type=Before)

    def check_free(self) -> None:
        """Raise :class:`StoreError` where Docker's overlay2 has something of its own already."""
        if not self.is_committing:
            self._check_has_none(self.layers)
            self._check_has_none(self.image)

    def _check_has_none(self, place: Path) -> None:
        parts = ("layerdb/sha256", "layerdb/mounts") if place == self.image else ("",)
        for path in (place / part for part in parts):
            if any(name not in ("l", "backingFsBlockDev") for name in _names(path)):
                raise StoreError(
                    f"{path} has layers of Docker's storage driver overlay2 already: "
                    "rewriting would mix two stores"
                )

    def begin(self) -> None:
        """Make the stage."""
        self.stage.mkdir(mode=0o700, exist_ok=True)
        self.saved.mkdir(mode=0o700, exist_ok=True)

    def commit_tree(self, before: Before) -> None:
        """Put the new tree in its place, and note what there was. May be done again.

        Raises :class:`StoreError` where a dockerd has layers there by now.
        """
        self.sync()
        if not self.is_committing:
            _write(self._committing, before)
            self.sync()
        for new, place in ((self.new_layers, self.layers), (self.new_image, self.image)):
            if new.exists():
                if place.exists():  # what a dockerd made that was once started with overlay2
                    self._check_has_none(place)
                    os.rename(place, self.stage / f"empty-{place.name}-{place.parent.name}")
                os.rename(new, place)
        self.sync()

    def finish(self) -> None:
        """Say that all is done."""
        self.sync()
        done = self.before
        done.left_out = sorted(set(_names(self.root / "containers")).difference(_names(self.saved)))
        _write(self._done, done)
        self.sync()

    def sync(self) -> None:
        """Wait until what was written is safely down."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)


def stage_of(root: Path) -> Stage | None:
    """How far the rewriting of a Docker root is; None where there is none."""
    place = Place(root)
    return Stage.DONE if place.is_done else Stage.BEGUN if place.is_begun else None


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file's content in one step; its owner and mode stay."""
    temporary = path.with_name(f"{path.name}.lamina")
    status = path.stat()
    with open(temporary, "wb") as file:
        os.fchown(file.fileno(), status.st_uid, status.st_gid)
        os.fchmod(file.fileno(), status.st_mode & 0o7777)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _write(path: Path, facts: object) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(msgspec.json.encode(facts))
    os.rename(temporary, path)


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
