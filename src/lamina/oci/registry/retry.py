"""When something is tried again, and after which wait."""

from __future__ import annotations

import email.utils
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamina.oci.registry.options import Retries

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may be others a little later."""


class Attempts:
    """Counts the attempts at one thing; the first has been made when this is made."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._made = 1
        self._waited = 0.0

    def next(
        self, retry_after: float | None = None, *, connected: bool = True, silent: bool = False
    ) -> float | None:
        """Seconds to wait before the next attempt; None if there is to be none."""
        retries = self._retries
        most = retries.tries if connected else min(retries.connects, retries.tries)
        if self._made >= (min(retries.silences, most) if silent else most):
            return None
        wait = min(retries.first * 2.0 ** (self._made - 1), retries.longest)
        wait *= random.uniform(0.5, 1)
        wait = max(wait, retry_after or 0.0)
        if self._waited + wait > retries.total:
            return None
        self._made += 1
        self._waited += wait
        return wait


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` asks for (RFC 9110, section 10.2.3): a number or a date."""
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
