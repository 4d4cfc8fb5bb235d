"""Tar streams and directory trees: reading, writing, comparing, packing and unpacking layers."""
