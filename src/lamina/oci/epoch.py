"""The time that things made now are said to be made at."""

from __future__ import annotations

import os

from lamina.errors import LaminaError, printable

_LIMIT = 253_402_300_799  # the last second that RFC 3339 has a year of four digits for


def source_date_epoch() -> int | None:
    """What ``SOURCE_DATE_EPOCH`` says, in seconds since 1970; None if it is unset or empty.

    See https://reproducible-builds.org/specs/source-date-epoch.

    Raises:
        LaminaError: it is no such number.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LIMIT):
        raise LaminaError(
            f"SOURCE_DATE_EPOCH is no number of seconds since 1970: '{printable(text[:80])}'"
        )
    return int(text)
