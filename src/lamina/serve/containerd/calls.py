"""From bytes to a function and back: what every call of every service has in common.

A call is parsed here and not by grpcio, which would answer INTERNAL to what is no message; it is
counted, timed and logged; and what it raises becomes a status.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from lamina.errors import (
    DigestMismatch,
    InvalidArchive,
    InvalidImage,
    InvalidName,
    InvalidSnapshotRequest,
    LayerInUse,
    OptionUnsupported,
    PermissionRequired,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotRefused,
    printable,
)
from lamina.serve.metrics import Registry
from lamina.serve.tracing import Spans

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Unsupported(Exception):
    """What this server does not do, and another may: UNIMPLEMENTED."""


class Unknown(Exception):
    """Something that is asked about and not there, beside snapshots: NOT_FOUND."""


class Busy(Exception):
    """There is too much of it already; later there may not be: RESOURCE_EXHAUSTED."""


_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (SnapshotNotFound, grpc.StatusCode.NOT_FOUND),
    (SnapshotExists, grpc.StatusCode.ALREADY_EXISTS),
    (SnapshotRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (LayerInUse, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidSnapshotRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidName, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidImage, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidArchive, grpc.StatusCode.INVALID_ARGUMENT),
    (OptionUnsupported, grpc.StatusCode.INVALID_ARGUMENT),
    (DecodeError, grpc.StatusCode.INVALID_ARGUMENT),
    (DigestMismatch, grpc.StatusCode.DATA_LOSS),
    (PermissionRequired, grpc.StatusCode.PERMISSION_DENIED),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (Unknown, grpc.StatusCode.NOT_FOUND),
    (Busy, grpc.StatusCode.RESOURCE_EXHAUSTED),
)


class Call(NamedTuple):
    """One call of a service."""

    request: type[Message]
    run: Callable[[Any, grpc.ServicerContext], Any]
    """From a request to an answer, or to an iterator of answers."""
    stream: bool = False


class Watched:
    """Counts, times and logs calls; ``span`` is entered around each."""

    def __init__(self, metrics: Registry, span: Spans) -> None:
        self.span = span
        self._calls = metrics.counter("lamina_calls_total", "Calls, by method and status.")
        self._errors = metrics.counter("lamina_errors_total", "Calls that failed, by method.")
        self._seconds = metrics.histogram("lamina_call_seconds", "How long calls took.")

    def done(self, method: str, key: str, seconds: float, error: Exception | None) -> None:
        """Note a call that ended."""
        code = grpc.StatusCode.OK if error is None else code_of(error)
        self._calls.add(method=method, code=code.name)
        self._seconds.observe(seconds, method=method)
        fields = {"method": method, "key": key, "code": code.name, "seconds": seconds}
        if error is None:
            _log.debug("call", extra={"fields": fields})
            return
        self._errors.add(method=method, code=code.name)
        unexpected = code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)
        level = logging.ERROR if unexpected else logging.INFO
        trace = error if unexpected and _log.isEnabledFor(logging.DEBUG) else None
        fields["error"] = message_of(error)
        _log.log(level, "call failed", extra={"fields": fields}, exc_info=trace)


def service(name: str, calls: Mapping[str, Call], watched: Watched) -> grpc.GenericRpcHandler:
    """A service of gRPC; methods that it does not have are UNIMPLEMENTED."""
    handlers = {
        method: _streaming(method, call, watched) if call.stream else _single(method, call, watched)
        for method, call in calls.items()
    }
    return grpc.method_handlers_generic_handler(name, handlers)


def _single(method: str, call: Call, watched: Watched) -> grpc.RpcMethodHandler:
    def run(data: bytes, context: grpc.ServicerContext) -> bytes:
        with _watching(method, watched, data, call, context) as request:
            answer: Message = call.run(request, context)
            return answer.SerializeToString()

    return grpc.unary_unary_rpc_method_handler(run)


def _streaming(method: str, call: Call, watched: Watched) -> grpc.RpcMethodHandler:
    def run(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        with _watching(method, watched, data, call, context) as request:
            for answer in call.run(request, context):
                yield answer.SerializeToString()

    return grpc.unary_stream_rpc_method_handler(run)


@contextmanager
def _watching(
    method: str, watched: Watched, data: bytes, call: Call, context: grpc.ServicerContext
) -> Iterator[Message]:
    begun = time.monotonic()
    key = ""
    try:
        request = call.request.FromString(data)
        key = _key(request)
        with watched.span(method):
            yield request
    except Exception as error:
        watched.done(method, key, time.monotonic() - begun, error)
        _abort(context, error)
    else:
        watched.done(method, key, time.monotonic() - begun, None)


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    context.abort(code_of(error), message_of(error))
    raise AssertionError  # abort raises


def code_of(error: Exception) -> grpc.StatusCode:
    """The status that an error is told as."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, OSError) and error.errno in _FULL:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(error, grpc.RpcError):
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNAVAILABLE
        return grpc.StatusCode(code)
    return grpc.StatusCode.INTERNAL


def message_of(error: Exception) -> str:
    """What the client is told: one line."""
    if isinstance(error, DecodeError):
        return "the request is no message of this method"
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"containerd: {error.details()}"
    return str(error) or type(error).__name__


def _key(request: Message) -> str:
    """What a log line calls the snapshot, or the blob."""
    for name in ("key", "ref"):
        value = getattr(request, name, "")
        if value:
            return printable(value)
    info = getattr(request, "info", None) or getattr(request, "diff", None)
    return printable(getattr(info, "name", "") or getattr(info, "digest", ""))
