"""Names of containers and snapshots: which there can be, and made-up ones."""

from __future__ import annotations

import os
import re

from lamina.errors import InvalidName

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{1,64}")

_QUALITIES = """
    amber ample basal bedded blue bold bright broad brisk calm clear crisp deep dense dry
    early even faint fine firm fluted folded free glassy gold gray green hardy jolly keen
    late layered light lithe lucid mellow merry mild neat nimble noble opal pale patient
    plain proud quick quiet rapid red ribbed rough rustic sandy sharp silver smooth soft
    solid spry steady still stout sunny swift tidy tilted veined vivid warm wavy white wide
    wise young
""".split()  # noqa: SIM905 - to be read by people
_STONES = """
    agate alabaster anorthite apatite arkose augite azurite barite basalt beryl borax
    breccia calcite chalk chert clay coal coral dacite diorite dolerite dolomite feldspar
    flint fluorite gabbro galena garnet gneiss granite graphite gravel gypsum halite
    hematite hornfels jasper kaolin lapis lava lignite limestone loam loess magnetite
    malachite marble marl mica moraine mudstone obsidian olivine onyx opal peat peridot
    pumice pyrite quartz rhyolite ruby sand sandstone schist serpentine shale silt slate
    spinel talc till topaz tuff zeolite zircon
""".split()  # noqa: SIM905 - to be read by people


def check_name(name: str, what: str) -> str:
    """``name`` if a container or snapshot (``what``) can be called that.

    Raises:
        InvalidName: unless it is 1 to 128 letters, digits and ``_.-``, the first a letter or
            digit; or if it could be mistaken for a whole id.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(
            f"not a {what} name: {str(name)[:100]!r} (1 to 128 letters, digits and _.-, "
            "a letter or digit first)"
        )
    if len(name) == 64 and is_hex(name):
        raise InvalidName(f"a {what} can't have a name that looks like an id: {name}")
    return name


def is_hex(text: str) -> bool:
    """Whether the text can be an id or the beginning of one."""
    return bool(_HEX.fullmatch(text))


def made_up() -> str:
    """A name for a container that was given none: ``quiet_gneiss``. Not unique by itself."""
    number = int.from_bytes(os.urandom(8), "big")
    number, quality = divmod(number, len(_QUALITIES))
    return f"{_QUALITIES[quality]}_{_STONES[number % len(_STONES)]}"


def new_id() -> str:
    """64 random hex digits: the id of a layer or container."""
    return os.urandom(32).hex()
