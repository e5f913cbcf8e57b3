"""The head that an upstream is sent, and what a client gets of the answer's.

Nobody can smuggle a second request into the first, for nothing that a client says decides how this
side frames a message. Its own framing was taken off by the parser; what is written is one
Content-Length that is counted, or chunks, and never both. Names, values and the target are joined
and then counted: a head with one more CR or LF than it has lines is not sent. What HTTP/2 allows
and HTTP/1.1 would read otherwise (a blank in a target, a colon in a name) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kongrealip.proxy.failures import RefusalError, UpstreamError
from kongrealip.realip.received import UPSTREAM_NAMES, named_in_connection

Lines = Sequence[tuple[bytes, bytes]]

#: How much body there is: a number of bytes, or one of these. HTTP/2 need not tell.
CHUNKED, UNTOLD, NO_BODY = -1, -2, -3
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te")
)
# Not passed on as they came. nginx leaves Expect and Keep-Alive out, and Kong Proxy.
_OURS = _HOP_BY_HOP | {b"host", b"content-length", b"expect", b"proxy", *UPSTREAM_NAMES}
# A trailer that says how the message is framed or routed would come too late to be true.
_NO_TRAILERS = _OURS | {b"trailer", b"content-encoding", b"content-type", b"content-range", b"authorization"}
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A path, as from nginx: what has a host would be another one than the header Host.
_TARGET = re.compile(rb"/[!-~\x80-\xff]*|\*")
# A refusal of nginx's as well: both would show or become something else than what was asked for.
_NOT_PROXIED = ("CONNECT", "TRACE")
_MOST_DIGITS = 18


class Head(NamedTuple):
    """A request's head without its framing, and how much body is to follow."""

    request_line: bytes
    #: None for the upstream's own.
    host: bytes | None
    lines: list[bytes]
    length: int
    wants_trailers: bool

    def framed(self, length: int, own_host: bytes) -> bytes:
        """The bytes. ``length`` is the body's, but not UNTOLD.

        ``own_host`` is the upstream's. Raises RefusalError where this would be more lines than it should.
        """
        lines = [self.request_line, b"host: " + (self.host or own_host), *self.lines]
        if length == CHUNKED:
            lines.append(b"transfer-encoding: chunked")
        elif length != NO_BODY:
            lines.append(b"content-length: %d" % length)
        lines += _END
        head = b"\r\n".join(lines)
        ends = len(lines) - 1
        if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
            raise RefusalError(400, "a header value that HTTP/1.1 has no room for")
        return head


def request_head(scope: Any, target: bytes, forwarded: Lines, preserve_host: bool, may_tunnel: bool) -> Head:
    """The head for an upstream.

    ``target`` is as the client wrote it, ``forwarded`` are the lines that replace those of their
    names, and with ``may_tunnel`` a WebSocket is asked for. Raises RefusalError for what cannot be passed on.
    """
    headers, method = scope["headers"], scope["method"]
    passed = [line for line in headers if line[0] not in _OURS]
    _check_method(method)
    host, length, wants_trailers = None, NO_BODY, False
    if scope["http_version"] == "2":
        _check_http2(method, target, headers)
        length = UNTOLD
    if len(passed) != len(headers):
        for name, value in headers:
            if name not in _OURS:
                continue
            if name == b"host":
                host = value if preserve_host and host is None else host
            elif name == b"content-length":
                length = _length(value, length)
            elif name == b"transfer-encoding":
                length = _chunked(value)
            elif name == b"te":
                wants_trailers = wants_trailers or b"trailers" in _tokens(value)
            elif name == b"connection":
                passed = _without_named(passed, headers)
    lines = _CONNECTION_OF_WEBSOCKET[:] if may_tunnel else _CONNECTION[:]
    if wants_trailers:
        lines.append(b"te: trailers")
    lines += map(b": ".join, forwarded)
    lines += map(b": ".join, passed)
    return Head(b"%b %b HTTP/1.1" % (method.encode(), target), host, lines, length, wants_trailers)


# As Kong has them.
_END = (b"", b"")
_CONNECTION = [b"connection: keep-alive"]
_CONNECTION_OF_WEBSOCKET = [b"connection: keep-alive, Upgrade", b"upgrade: websocket"]


def _check_method(method: str) -> None:
    if method in _NOT_PROXIED:
        raise RefusalError(405, f"{method} is not passed on")


def _check_http2(method: str, target: bytes, headers: Lines) -> None:
    names = [name for name, _ in headers]
    if not (_TOKEN.fullmatch(method.encode()) and _TARGET.fullmatch(target)):
        raise RefusalError(400, "a method or a target that HTTP/1.1 has no room for")
    if not all(map(_TOKEN.fullmatch, names)):
        raise RefusalError(400, "a header name that HTTP/1.1 has no room for")


def _length(value: bytes, before: int) -> int:
    if not value.isdigit() or len(value) > _MOST_DIGITS or before not in (UNTOLD, NO_BODY, int(value)):
        raise RefusalError(400, "not one Content-Length")
    return int(value)


def _chunked(value: bytes) -> int:
    if value.strip().lower() != b"chunked":
        # Only the last coding has been taken off, and the others would be passed on unnamed.
        raise RefusalError(501, "a transfer coding that is not known here")
    return CHUNKED


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip().lower() for token in value.split(b",")]


def _without_named(passed: list[tuple[bytes, bytes]], headers: Lines) -> list[tuple[bytes, bytes]]:
    """Leave out what Connection names, which is never what is set here."""
    named = named_in_connection(headers)
    return [line for line in passed if line[0].replace(b"_", b"-") not in named] if named else passed


class Answer(NamedTuple):
    """What a client gets of an answer's head."""

    headers: list[tuple[bytes, bytes]]
    is_chunked: bool


def answer_head(status: int, headers: Lines, now: bytes) -> Answer:
    """Filter an answer's lines. Raises UpstreamError where its framing is not understood.

    ``now`` is the date for an answer that has none.
    """
    passed, is_chunked, is_dated, is_listed = [], False, False, False
    for line in headers:
        name, value = line
        if name in _HOP_BY_HOP:
            if name == b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise UpstreamError(f"unknown transfer coding {value!r}")
                is_chunked = True
            is_listed = is_listed or name == b"connection"
            continue
        is_second_date = is_dated and name == b"date"
        is_dated = is_dated or name == b"date"
        # A 204 has no length, and some send one.
        if not is_second_date and not (status == 204 and name == b"content-length"):
            passed.append(line)
    if is_listed:
        named = named_in_connection(headers) - {b"content-length"}
        passed = [line for line in passed if line[0].replace(b"_", b"-") not in named] if named else passed
    if not is_dated:
        passed.append((b"date", now))
    return Answer(passed, is_chunked)


def trailers_of(lines: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Trailers that may be passed on."""
    return [line for line in lines if line[0] not in _NO_TRAILERS]
