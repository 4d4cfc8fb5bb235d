"""How layers lie on disk and are stacked; one contract (:class:`Driver`), several drivers."""

from lamina.drivers.base import Driver, FileGetter, check_id
from lamina.drivers.registry import Availability, availability, choose, driver_class, register

__all__ = [
    "Availability",
    "Driver",
    "FileGetter",
    "availability",
    "check_id",
    "choose",
    "driver_class",
    "register",
]
