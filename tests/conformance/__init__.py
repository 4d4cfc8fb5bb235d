"""What every driver promises (lamina.drivers.base), tested on whatever a factory makes.

The suite knows drivers only by the contract. ``conftest.py`` has the factories; a driver
behind a socket is one more of them.
"""
