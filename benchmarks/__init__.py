"""Lamina measured against its peers, on one file system and in turn with them.

``scripts/bench [GROUP...]`` runs the groups (:mod:`benchmarks.groups`) and writes
``results/table.md`` and ``results/plot.svg``. See :mod:`benchmarks.measure` for how it is measured.
"""
