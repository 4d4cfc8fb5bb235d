"""Tar archives, whiteouts, and layers in and out of them."""
