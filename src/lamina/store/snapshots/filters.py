"""Which snapshots a list is to have: containerd's filters.

A filter is selectors with commas between, all of which must hold; of several filters one must::

    name==base, kind!=view
    labels."containerd.io/snapshot.ref"~=/^sha256:/
    labels.keep

A selector is a field, or a field, ``==``, ``!=`` or ``~=`` (a regular expression, found anywhere)
and a value. Fields are ``name``, ``parent``, ``kind`` (``active``, ``view``, ``committed``) and
``labels.KEY``. Keys and values with other characters than letters, digits and ``_`` (values: than
spaces and commas) are quoted as in Go; expressions also by ``/`` or ``|``. A field that is not
there is empty, so that ``!=`` holds; ``parent==""`` is what stands on nothing. The grammar is that
of containerd's package ``filters``. Expressions are those of RE2, which Go's are too, and take time
in proportion to what they are looked for in: with Python's one client could stop the server.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

from lamina.errors import InvalidSnapshotRequest, printable
from lamina.store.snapshots.records import Info

Filter = Callable[[Info], bool]

_LONGEST = 16 << 10  # characters of a filter
_ROOM = 1 << 20  # bytes that an expression and its search may take

_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_OPERATOR = re.compile(r"==|!=|~=")
_VALUE = re.compile(r"[^\s,\"]+")
_SLASHED = re.compile(r"/((?:[^/\\\n]|\\.)*)/|\|((?:[^|\\\n]|\\.)*)\|")
_SPACE = re.compile(r"\s*")


def parse_filters(texts: Sequence[str]) -> Filter:
    """Whether a snapshot is one that the filters want; all are, where there is no filter.

    Raises:
        InvalidSnapshotRequest: one of them can't be understood; says where.
    """
    filters = [_Parser(text).filter() for text in texts]
    if not filters:
        return lambda info: True
    return lambda info: any(wanted(info) for wanted in filters)


class _Parser:
    """Reads one filter from its beginning."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        if len(text) > _LONGEST:
            raise InvalidSnapshotRequest(f"a filter of {len(text)} characters is too long")

    def filter(self) -> Filter:
        self._skip()
        if self._ended():
            return lambda info: True
        selectors = [self._selector()]
        while not self._ended():
            if self._take(re.compile(",")) is None:
                raise self._wrong("expected a comma")
            selectors.append(self._selector())
        return lambda info: all(holds(info) for holds in selectors)

    def _selector(self) -> Filter:
        path = self._path()
        operator = self._take(_OPERATOR)
        if operator is None:
            return lambda info: _there(info, path)
        if operator == "~=":
            search = self._search()
            return lambda info: search(field(info, path)[0]) is not None
        value = self._value()
        if operator == "==":
            return lambda info: field(info, path) == (value, True)
        return lambda info: field(info, path)[0] != value

    def _path(self) -> list[str]:
        names = [self._name()]
        while self._text.startswith(".", self._at):
            self._at += 1
            names.append(self._name())
        self._skip()
        return names

    def _name(self) -> str:
        found = self._take(_QUOTED, skip=False)
        if found is not None:
            return self._unquoted(found)
        found = self._take(_FIELD, skip=False)
        if found is None:
            raise self._wrong("expected a field")
        return found

    def _value(self) -> str:
        found = self._take(_QUOTED)
        if found is not None:
            return self._unquoted(found)
        found = self._take(_VALUE)
        if found is None:
            raise self._wrong("expected a value")
        return found

    def _search(self) -> Callable[[str], object | None]:
        slashed = _SLASHED.match(self._text, self._at)
        if slashed is not None:
            self._at = slashed.end()
            self._skip()
            text = slashed[1] if slashed[1] is not None else slashed[2]
        else:
            text = self._value()
        try:
            import re2
        except ModuleNotFoundError as error:
            raise self._wrong("expressions take the Python package google-re2") from error
        options = re2.Options()
        options.max_mem = _ROOM
        options.log_errors = False
        try:
            search: Callable[[str], object | None] = re2.compile(text, options).search
        except (re2.error, UnicodeEncodeError) as error:
            raise self._wrong(f"not a regular expression ({error})") from error
        return search

    def _unquoted(self, text: str) -> str:
        try:
            value: Any = ast.literal_eval(text)  # of what Go has, Python has all but surrogates
            value.encode()
        except (ValueError, SyntaxError) as error:
            raise self._wrong("a string that can't be") from error
        return str(value)

    def _take(self, what: re.Pattern[str], *, skip: bool = True) -> str | None:
        found = what.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        if skip:
            self._skip()
        return found[0]

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _ended(self) -> bool:
        return self._at == len(self._text)

    def _wrong(self, why: str) -> InvalidSnapshotRequest:
        return InvalidSnapshotRequest(
            f"filter '{printable(self._text)}': {why} at character {self._at + 1}"
        )


def _there(info: Info, path: Sequence[str]) -> bool:
    """Whether a selector of a field alone holds; ``parent`` is to say that there is one."""
    value, there = field(info, path)
    return bool(value) if path == ["parent"] else there


def field(info: Info, path: Sequence[str]) -> tuple[str, bool]:
    """The value of a field, and whether it is there."""
    match path:
        case ["name"]:
            return info.name, True
        case ["parent"]:
            return info.parent, True
        case ["kind"]:
            return info.kind.name.lower(), True
        case ["labels", *rest] if rest:
            value = info.labels.get(".".join(rest))
            return value or "", value is not None
    return "", False
