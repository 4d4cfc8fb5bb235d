"""Bringing what Docker left on AUFS into a store, or reading it where it lies.

    source.py    a Docker root, open for reading and kept from changing
    usage.py     is a dockerd at work on it?
    verifying.py does each layer give back the tar that it was made of?
    verifier.py  the same in a process of its own, while layers are made
    choosing.py  what is meant by a name
    plan.py      what there is to do
    room.py      whether there is room for it
    bringing.py  doing it
    meter.py     how far it is
    causes.py    which faults follow from which
    leaving.py   what is left out for them

The source is read through a mount of our own that is read-only and keeps access times, and
nothing in it is changed; where hard links are made to its files, their link count is one more.
"""

from lamina.store.adopt.bringing import Adopted
from lamina.store.adopt.causes import roots
from lamina.store.adopt.choosing import choose, layers_of
from lamina.store.adopt.leaving import LeftOut, damaged
from lamina.store.adopt.plan import Adoption, Way
from lamina.store.adopt.source import DockerSource, require_root
from lamina.store.adopt.verifying import verify_all

__all__ = [
    "Adopted",
    "Adoption",
    "DockerSource",
    "LeftOut",
    "Way",
    "choose",
    "damaged",
    "layers_of",
    "require_root",
    "roots",
    "verify_all",
]
