"""Servers that let others keep their layers with Lamina: they translate protocols, and no more."""
