"""Snapshots: a driver's layers as containerd wants them kept.

A snapshot is **active** (made by ``prepare``, to be written), a **view** (made by ``view``, to be
read) or **committed** (made of an active one by ``commit``, never changed again). Active ones and
views are called by a key, committed ones by a name; keys and names are one space, and any text.
A snapshot stands on a committed one, its parent, or on nothing. Nothing is mounted here: the
caller gets mounts to make, and when he unmounts is his affair.

Import a layer, another on it, and run something on both::

    mounts = snapshots.prepare("extract-1")          # mount, unpack, unmount
    snapshots.commit("sha256:base", "extract-1")
    mounts = snapshots.prepare("extract-2", "sha256:base")
    snapshots.commit("sha256:app", "extract-2")
    mounts = snapshots.prepare("container", "sha256:app")
    snapshots.remove("container")

The words and rules are those of containerd's package ``snapshots``.
"""

from lamina.store.snapshots.questions import Usage
from lamina.store.snapshots.records import Info, Kind
from lamina.store.snapshots.snapshots import Snapshots

__all__ = ["Info", "Kind", "Snapshots", "Usage"]
