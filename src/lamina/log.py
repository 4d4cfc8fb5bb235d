"""Messages about what is amiss without being an error: to the standard library's logging.

That is imported for the first message. Most runs have none, and the import would take a tenth of
the time in which a container starts.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

_prepare: list[Callable[[], None]] = []


def before_first(prepare: Callable[[], None]) -> None:
    """Have ``prepare`` called before the first message; it may configure logging."""
    _prepare.append(prepare)


class Log:
    """As ``logging.getLogger(name)``, as far as Lamina uses it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, text: str, *values: object) -> None:
        """Log what is normal. ``values`` are formatted into ``text`` by ``%``."""
        self._logger().debug(text, *values, stacklevel=2)

    def warning(self, text: str, *values: object) -> None:
        """Log what somebody should know."""
        self._logger().warning(text, *values, stacklevel=2)

    def error(self, text: str, *values: object) -> None:
        """Log what somebody has to mend."""
        self._logger().error(text, *values, stacklevel=2)

    def _logger(self) -> logging.Logger:
        import logging

        while _prepare:
            _prepare.pop()()
        return logging.getLogger(self._name)
