"""Layers, images and containers over one driver; everything that is kept in a database."""

from lamina.store.checking import Problem
from lamina.store.container import Container, State
from lamina.store.images import Image
from lamina.store.layers import Layer
from lamina.store.policy import SyncPolicy
from lamina.store.pruning import Pruned
from lamina.store.store import Store
from lamina.store.usage import ContainerUsage, ImageUsage, Usage
from lamina.store.work import Work

__all__ = [
    "Container",
    "ContainerUsage",
    "Image",
    "ImageUsage",
    "Layer",
    "Problem",
    "Pruned",
    "State",
    "Store",
    "SyncPolicy",
    "Usage",
    "Work",
]
