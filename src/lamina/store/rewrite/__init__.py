"""Rewriting a Docker root of storage driver aufs as one of overlay2, where it lies.

    ROOT/lamina-rewrite/
      overlay2/                   layers that are made
      image/                      what becomes image/overlay2
      committing                  from here on the steps below are finished, not begun anew
      containers/ID/config.v2.json  as they were
      done                        everything is in its place

The new tree is made beside the old one: files of image layers are hard links to the old ones,
containers' own files are copies. Then it is put in its place, by one rename for ``overlay2`` and
one for ``image/overlay2``, and the containers' configurations are replaced one by one. Whatever
step a crash comes after, the next run goes on from there. The old tree, ``aufs`` and
``image/aufs``, stays until it is deleted by request.
"""

from lamina.store.adopt.leaving import LeftOut
from lamina.store.rewrite.deleting import Deleted, OnlyThere, delete_source, only_in_old
from lamina.store.rewrite.place import Stage, stage_of
from lamina.store.rewrite.rewriting import DamageFound, Rewrite, Rewritten, remaining_faults

__all__ = [
    "DamageFound",
    "Deleted",
    "LeftOut",
    "OnlyThere",
    "Rewrite",
    "Rewritten",
    "Stage",
    "delete_source",
    "only_in_old",
    "remaining_faults",
    "stage_of",
]
