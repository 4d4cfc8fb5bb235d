"""JSON documents of the image specification that lose nothing when read and written again.

What the specification names is a field; whatever else a document has is kept in ``extra``
and written again.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import msgspec

from lamina.errors import InvalidImage

_EXTRA = "(other members)"  # the name of no member that a document would have


class Document(msgspec.Struct, kw_only=True):
    """A JSON object whose unknown members are kept."""

    extra: dict[str, Any] = msgspec.field(default_factory=dict, name=_EXTRA)

    KIND: ClassVar[str] = "a document"
    """What it is, with its article, for messages."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a document's JSON; :class:`InvalidImage` if it is none."""
        try:
            document = msgspec.json.decode(data, type=dict[str, Any])
            found = msgspec.convert(document, cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidImage(f"not {cls.KIND}: {error}") from error
        _keep_unknown(found, document)
        return found

    def encode(self) -> bytes:
        """Compact JSON, members in a fixed order: the same document, the same bytes."""
        return msgspec.json.encode(_to_document(self))

    def copy(self) -> Self:
        """An independent copy, all the way down."""
        return type(self).decode(self.encode())


def _members(struct: Document) -> dict[str, str]:
    """JSON member names to field names, without ``extra``."""
    names = zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True)
    return {member: field for member, field in names if member != _EXTRA}


def _keep_unknown(struct: Document, document: dict[str, Any]) -> None:
    known = _members(struct)
    struct.extra = {key: value for key, value in document.items() if key not in known}
    for key, field in known.items():
        value = getattr(struct, field)
        if isinstance(value, Document) and key in document:
            _keep_unknown(value, document[key])
        elif isinstance(value, list) and value and isinstance(value[0], Document):
            for item, part in zip(value, document[key], strict=True):
                _keep_unknown(item, part)


def _to_document(value: Any) -> Any:
    """Plain JSON values: None left out, the unknown members after the known."""
    if isinstance(value, list):
        return [_to_document(item) for item in value]
    if not isinstance(value, Document):
        return value
    document = {
        key: _to_document(member)
        for key, field in _members(value).items()
        if (member := getattr(value, field)) not in (None, "")
    }
    return document | value.extra
