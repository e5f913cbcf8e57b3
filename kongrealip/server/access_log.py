"""The access log: one line for each request, in the form that Kong writes or as JSON.

A layer of our own, because uvicorn's knows neither the peer nor the bytes. It stands inside the
middleware, which has decided on the client by then.

Nearly all of a line comes from the network, so each text is escaped on its way into it: whatever
is sent, a request is one line, and nobody can write a second one.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _json_text
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kongrealip.errors import StartError
from kongrealip.realip import EXTENSION_KEY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from kongrealip.address import Address
    from kongrealip.realip import Resolution

_SECONDS_BETWEEN_WARNINGS = 10.0

# Where the application has not answered, the server does with 500, unless nobody is there any
# more, for which nginx has a number.
_FAILED = 500
_CLIENT_GONE = 499
_LOGGED_TYPES = ("http", "websocket")
_HANDSHAKES = {"websocket.accept": 101, "websocket.close": 403}

_LOGGED_HEADERS = (b"authorization", b"host", b"referer", b"user-agent", b"x-kong-request-id")
_NGINX_ESCAPES = re.compile(r'["\\]|[^ -~]')
_NGINX_VERSIONS = {"2": "2.0", "3": "3.0"}
# strftime would ask the locale, which an application may set.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# OpenTelemetry wants every other method to be _OTHER, so that there are not endless values.
_KNOWN_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))


class AccessLog:
    """Where the lines go, and in which form: ``kong`` or ``json``.

    ``destination`` is a path, ``/dev/stdout`` or ``/dev/stderr``; StartError where it cannot be
    opened. ``dropped`` counts the lines that could not be written.
    """

    def __init__(self, destination: str, form: str) -> None:
        self.dropped = 0
        self._destination = destination
        self.begin, self._line = _FORMS[form]
        self._torn = False
        self._quiet_until = 0.0
        try:
            self._descriptor = _opened(destination)
        except OSError as error:
            raise StartError(
                f"KONG_PROXY_ACCESS_LOG: cannot open {destination!r}: {error.strerror};"
                " give a file that can be written, /dev/stdout, /dev/stderr or off"
            ) from error

    def write(self, begun: Any, status: int, size: int) -> None:
        """Write the line of a request that ``begin`` took down. A failure does not reach the request."""
        line = self._line(begun, status, size).encode("ascii")
        if self._torn:
            # The rest of the line before is lost. It is not to be continued with this one.
            line = b"\n" + line
        try:
            # In one piece, so that several processes do not mix their lines. Gathering those of a
            # turn of the loop would save about a tenth of what a line costs, under full load only.
            written = os.write(self._descriptor, line)
        except OSError as error:
            self._drop(error.strerror or repr(error))
            return
        self._torn = written != len(line)
        if self._torn:
            self._drop("a line was written in part only")

    def close(self) -> None:
        os.close(self._descriptor)

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _SECONDS_BETWEEN_WARNINGS
            logging.getLogger("kongrealip.server").warning(
                "access log %s: %s, lines lost so far: %d", self._destination, reason, self.dropped
            )


def _opened(destination: str) -> int:
    if destination in ("/dev/stdout", "/dev/stderr"):
        # The names cannot be opened where the stream is a socket, or another user's.
        return os.dup(1 if destination == "/dev/stdout" else 2)
    return os.open(destination, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def logged(app: ASGIApp, log: AccessLog) -> ASGIApp:
    """Wrap an application so that each of its requests and WebSockets becomes a line of ``log``.

    A request's line is written behind the last byte of its response, and does not wait for what
    the application does in the background afterwards.
    """
    begin, write = log.begin, log.write

    async def with_line(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _LOGGED_TYPES:
            await app(scope, receive, send)
            return
        begun = begin(scope)
        is_head = scope.get("method") == "HEAD"
        status = size = 0
        gone = written = False

        async def noting_receive() -> Message:
            nonlocal gone
            message = await receive()
            if message["type"].endswith(".disconnect"):
                gone = True
            return message

        async def counting_send(message: Message) -> None:
            nonlocal status, size, written
            await send(message)
            if gone or written:
                # What is sent to nobody disappears without an error.
                return
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
            elif kind == "http.response.body":
                if not is_head:
                    size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    written = True
                    write(begun, status, size)
            else:
                status, sent = _after_websocket_message(message, status)
                size += sent

        try:
            await app(scope, noting_receive, counting_send)
        finally:
            if not written:
                write(begun, status or (_CLIENT_GONE if gone else _FAILED), size)

    return with_line


def _after_websocket_message(message: Message, status: int) -> tuple[int, int]:
    """The status of the handshake, as far as it is known now, and the bytes that were sent."""
    kind = message["type"]
    if kind == "websocket.http.response.start":
        return message["status"], 0
    sent = message.get("bytes") or message.get("body") or (message.get("text") or "").encode()
    return status or _HANDSHAKES.get(kind, 0), len(sent)


def _raw_path(scope: Scope) -> bytes:
    """The path as it came, which servers need not give."""
    raw: bytes | None = scope.get("raw_path")
    return quote(scope["path"]).encode() if raw is None else raw


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers by name, repeated ones joined as nginx joins them for its variables."""
    headers = scope["headers"]
    found = dict(headers)
    if len(found) != len(headers):
        for name in _LOGGED_HEADERS:
            if name in found:
                found[name] = b", ".join([value for key, value in headers if key == name])
    return found


def _begin_kong(scope: Scope) -> tuple[str, str, str]:
    """Kong's ``kong_log_format``, with the client, the peer and the source behind it.

    In three pieces: between them come the time, and the status and the size.
    """
    header = _headers(scope).get
    resolution: Resolution | None = (scope.get("extensions") or {}).get(EXTENSION_KEY)
    ip = client = peer = source = "-"
    if resolution is not None:
        ip = _escaped(resolution.client.ip) or "-"
        client, peer = _endpoint(resolution.client), _endpoint(resolution.peer)
        source = _escaped(resolution.source)
    referer, agent = _variable(header(b"referer")), _variable(header(b"user-agent"))
    request_id = _variable(header(b"x-kong-request-id"))
    return (
        f"{ip} - {_remote_user(header(b'authorization'))} [",
        f'] "{_request_line(scope)}" ',
        f' "{referer}" "{agent}" kong_request_id: "{request_id}"'
        f' client: "{client}" peer: "{peer}" source: "{source}"\n',
    )


def _kong_line(begun: tuple[str, str, str], status: int, size: int) -> str:
    before, between, behind = begun
    return f"{before}{_local_time(int(time.time()))}{between}{status} {size}{behind}"


@lru_cache(maxsize=1)
def _local_time(second: int) -> str:
    """nginx's ``$time_local``: 24/Nov/2026:18:00:00 +0000."""
    at = time.localtime(second)
    hours, minutes = divmod(abs(at.tm_gmtoff) // 60, 60)
    return (
        f"{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
        f" {'-' if at.tm_gmtoff < 0 else '+'}{hours:02}{minutes:02}"
    )


def _request_line(scope: Scope) -> str:
    target = _raw_path(scope)
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    version = _NGINX_VERSIONS.get(scope["http_version"], scope["http_version"])
    return _escaped(f"{scope.get('method', 'GET')} {target.decode('latin-1')} HTTP/{version}")


def _remote_user(authorization: bytes | None) -> str:
    """The name of HTTP Basic authorization, as ``ngx_http_auth_basic_user`` reads it."""
    if authorization is None or authorization[:6].lower() != b"basic ":
        return "-"
    # nginx stops at the first padding, and needs none.
    encoded = authorization[6:].lstrip(b" ").partition(b"=")[0]
    try:
        decoded = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        return "-"
    user, colon, _ = decoded.partition(b":")
    return _variable(user) if user and colon else "-"


def _endpoint(address: Address) -> str:
    ip, port = address
    if port is None:
        return _escaped(ip) or "-"
    return _escaped(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}")


def _variable(value: bytes | None) -> str:
    return "-" if value is None else _escaped(value.decode("latin-1"))


def _escaped(text: str) -> str:
    """nginx's escaping, of a text whose characters stand for bytes."""
    # Most need none, and this tells in half the time of the regular expression.
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return _NGINX_ESCAPES.sub(lambda odd: f"\\x{ord(odd[0]):02X}", text)


def _begin_json(scope: Scope) -> tuple[float, str]:
    """When it began, and each member that is known by then, under OpenTelemetry's names.

    Put together from encoded pieces, in less than half the time that an encoder takes.
    """
    started = time.perf_counter()
    resolution: Resolution | None = (scope.get("extensions") or {}).get(EXTENSION_KEY)
    who = "" if resolution is None else _who(resolution)
    return started, who + _what(scope) + _said(_headers(scope))


def _json_line(begun: tuple[float, str], status: int, size: int) -> str:
    started, members = begun
    second, millisecond = divmod(int(time.time() * 1000), 1000)
    return (
        f'{{"timestamp":"{_utc_time(second)}.{millisecond:03}Z"{members}'
        f',"http.response.status_code":{status},"http.response.body.size":{size}'
        f',"http.server.request.duration":{time.perf_counter() - started:.6f}}}\n'
    )


@lru_cache(maxsize=1)
def _utc_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _who(resolution: Resolution) -> str:
    client, peer, peer_trusted, source, _ = resolution
    return (
        f"{_address('client', client)}{_address('network.peer', peer)}"
        f',"kongrealip.source":{_json_text(source)}'
        f',"kongrealip.peer_trusted":{"true" if peer_trusted else "false"}'
    )


def _address(prefix: str, address: Address) -> str:
    ip, port = address
    known = f',"{prefix}.address":{_json_text(ip)}' if ip else ""
    return known if port is None else f'{known},"{prefix}.port":{port}'


def _what(scope: Scope) -> str:
    method, query = scope.get("method", "GET"), scope["query_string"]
    original = ""
    if method not in _KNOWN_METHODS:
        method, original = "_OTHER", f',"http.request.method_original":{_json_text(method)}'
    members = (
        f',"network.protocol.version":{_json_text(scope["http_version"])}'
        f',"http.request.method":"{method}"{original}'
        f',"url.scheme":{_json_text(scope["scheme"])},"url.path":{_json_bytes(_raw_path(scope))}'
    )
    return f'{members},"url.query":{_json_bytes(query)}' if query else members


def _said(headers: dict[bytes, bytes]) -> str:
    """The members that repeat a header."""
    members = _server(headers[b"host"]) if b"host" in headers else ""
    if b"user-agent" in headers:
        members += f',"user_agent.original":{_json_bytes(headers[b"user-agent"])}'
    if b"referer" in headers:
        members += f',"http.request.header.referer":[{_json_bytes(headers[b"referer"])}]'
    if b"x-kong-request-id" in headers:
        members += f',"http.request.header.x-kong-request-id":[{_json_bytes(headers[b"x-kong-request-id"])}]'
    return members


def _server(host: bytes) -> str:
    """What was asked for, as the Host header has it: ``name``, ``name:port``, ``[::1]:port``."""
    name, _, port = host.rpartition(b":")
    if name and port.isdigit() and len(port) <= 5 and (b":" not in name or name[-1:] == b"]"):
        return f',"server.address":{_json_bytes(name.strip(b"[]"))},"server.port":{int(port)}'
    return f',"server.address":{_json_bytes(host.strip(b"[]"))}' if host else ""


def _json_bytes(value: bytes) -> str:
    """UTF-8 is shown as what it says, other bytes as ``\\xe9``."""
    return _json_text(value.decode("utf-8", "backslashreplace"))


# The first function takes down what the request says, before an application can change the
# scope, and the second adds what is known at the end.
_FORMS: dict[str, tuple[Callable[[Scope], Any], Callable[[Any, int, int], str]]] = {
    "kong": (_begin_kong, _kong_line),
    "json": (_begin_json, _json_line),
}
