"""Reading what servers answer: bounded, and refusals turned into errors that say why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lamina.errors import RegistryError, Unauthorized, printable

if TYPE_CHECKING:
    import httpx

ERROR_LIMIT = 8 << 10
"""Bytes of a refusal that are looked at."""
LIST_LIMIT = 4 << 20
"""Bytes that one page of a list may have."""
TOKEN_LIMIT = 1 << 20
"""Bytes that a token server's answer may have."""


def read_body(response: httpx.Response, limit: int, what: str) -> bytes:
    """All of an answer's body; then it is closed.

    Raises:
        RegistryError: it has over ``limit`` bytes.
        httpx.TransportError: the connection broke.
    """
    try:
        data = _read(response, limit)
    finally:
        response.close()
    if len(data) > limit:
        raise RegistryError(f"{what}: an answer of over {limit} bytes", status=response.status_code)
    return data


def discard(response: httpx.Response) -> None:
    """Close an answer whose body does not matter; reading a short one keeps the connection."""
    import httpx

    try:
        _read(response, ERROR_LIMIT)
    except httpx.TransportError:
        pass
    finally:
        response.close()


def _read(response: httpx.Response, limit: int) -> bytes:
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > limit:
            break
    return bytes(data)


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object that an answer is; :class:`RegistryError` for anything else."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{what}: an answer that is no JSON") from error
    if not isinstance(document, dict):
        raise RegistryError(f"{what}: an answer that is no JSON object")
    return document


def refusal(response: httpx.Response, what: str, *, ours: bool = True) -> RegistryError:
    """The error of an answer that is none that was hoped for; the answer is closed.

    ``what`` names registry, repository and what was asked. ``ours`` is False for a server that the
    registry sent us to, which knows no login.
    """
    import httpx

    try:
        body = _read(response, ERROR_LIMIT)[:ERROR_LIMIT]
    except httpx.TransportError:
        body = b""
    finally:
        response.close()
    status = response.status_code
    code, said = _said(body, response.headers.get("content-type", ""))
    phrase = httpx.codes.get_reason_phrase(status)
    message = f"{what}: {status} {phrase}".rstrip() + (f" ({said})" if said else "")
    if ours and status in (401, 403):
        return Unauthorized(message, status=status, code=code)
    return RegistryError(message, status=status, code=code)


def _said(body: bytes, content_type: str) -> tuple[str | None, str]:
    """The first error's code, and all errors' codes and messages, or a line of plain text."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        plain = content_type.partition(";")[0].strip().lower() == "text/plain"
        line = body.decode(errors="replace").strip().partition("\n")[0] if plain else ""
        return None, printable(line)
    if not isinstance(document, dict):
        return None, ""
    errors = document.get("errors")
    found = [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
    if not found:  # token servers say it otherwise (RFC 6749, section 5.2)
        names = ("error", "error_description", "details", "message")
        parts = [str(document[name]) for name in names if document.get(name)]
        return None, printable(": ".join(parts))
    texts = [": ".join(str(e[k]) for k in ("code", "message") if e.get(k)) for e in found]
    code = found[0].get("code")
    return str(code) if code else None, printable("; ".join(texts))
