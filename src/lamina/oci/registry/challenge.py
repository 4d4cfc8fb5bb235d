"""``WWW-Authenticate``: how a server says which credentials it wants (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?=,|$)')
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|(?=,|$))")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*\s*(?=,|$)")
_COMMAS = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authorise: its scheme in lower case, and its parameters by lower-case name."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of an answer's headers; what follows something malformed is left out."""
    return [found for header in headers for found in _parse(header)]


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = _skip_commas(header, 0)
    while position < len(header):
        parameter = _PARAMETER.match(header, position) if found else None
        if parameter:
            name, quoted, bare = parameter.groups()
            value = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1].parameters.setdefault(name.lower(), value)
            position = _skip_commas(header, parameter.end())
            continue
        scheme = _SCHEME.match(header, position)
        if not scheme:
            break
        found.append(Challenge(scheme[1].lower()))
        position = scheme.end()
        if not _PARAMETER.match(header, position) and (m := _TOKEN68.match(header, position)):
            position = m.end()
        position = _skip_commas(header, position)
    return found


def _skip_commas(header: str, position: int) -> int:
    match = _COMMAS.match(header, position)
    return match.end() if match else position
