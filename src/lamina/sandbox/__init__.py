"""Running commands: in a mounted root (``sandbox.run``), or on a fork of this machine
(``sandbox.fork``). Nothing is imported here: the helper interpreter loads its part alone.
"""
