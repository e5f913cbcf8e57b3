"""The door for WSGI applications: Flask, Django and whatever else speaks PEP 3333."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from kongrealip.address import Address, bounded_decimal
from kongrealip.config import Settings
from kongrealip.errors import ResolutionMissingError, SettingsError
from kongrealip.middleware import asgi, scope
from kongrealip.preamble import Preamble
from kongrealip.realip import (
    Forwarded,
    PeerResolver,
    Request,
    RequestResolution,
    Resolution,
    ResolutionUnderRules,
    Rules,
    with_request,
)
from kongrealip.realip.networks import UNIX

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ORIGINAL_KEY", "RESOLUTION_KEY", "RealIPMiddleware", "resolution_of"]

#: Where the environ has the :class:`Resolution`; PEP 3333 wants a name with a dot for what is no text.
RESOLUTION_KEY = "kongrealip.resolution"
#: Where it keeps, as a mapping, what the server had put into it.
ORIGINAL_KEY = "kongrealip.original"
_KEPT = ("REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme", "HTTPS", "HTTP_HOST", "SCRIPT_NAME", "PATH_INFO")
# The accepted connection, which no other server hands over.
_GUNICORN_SOCKET = "gunicorn.socket"
_PROTO = "HTTP_X_FORWARDED_PROTO"
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_HIGHEST_PORT = 65535


class RealIPMiddleware:
    """A WSGI application around another, which sees the client that Kong would have seen.

    ``REMOTE_ADDR`` becomes the decided address, empty for a Unix socket or where nobody can tell,
    ``REMOTE_PORT`` its port or absent, as servers have both on a Unix socket, and
    ``wsgi.url_scheme`` what a believed peer says of it. :func:`resolution_of` gives the whole
    :class:`Resolution`; what the server had said is under ``environ[ORIGINAL_KEY]``. Where a server
    joins several lines of a header they are read as one, and the last address counts.
    Where two of these middlewares meet, the inner one decides anew from the same peer.
    """

    def __init__(
        self,
        app: WSGIApplication,
        settings: Settings | None = None,
        *,
        trusted_ips: str | Iterable[str] | None = None,
        real_ip_header: str | None = None,
        real_ip_recursive: bool | str | None = None,
        forwarded_headers: str | None = None,
        scheme_from_preamble: bool | str | None = None,
        replace_host: bool | str | None = None,
        replace_root_path: bool | str | None = None,
    ) -> None:
        """Read the process environment where there are no ``settings``; arguments win over both.

        They mean what the variable of their name does. Raises SettingsError where any of it cannot
        be used, also for a header with an underscore in its name, which a WSGI environ cannot tell
        from the one with a dash.
        """
        arguments = {
            "trusted_ips": trusted_ips,
            "real_ip_header": real_ip_header,
            "real_ip_recursive": real_ip_recursive,
            "forwarded_headers": forwarded_headers,
            "scheme_from_preamble": scheme_from_preamble,
            "replace_host": replace_host,
            "replace_root_path": replace_root_path,
        }
        if settings is None:
            settings = asgi.environment_settings(arguments)
        self._app = app
        self._settings = settings.replaced(**arguments)
        self._rules = self._settings.rules()
        self._forwarded = self._settings.forwarded_rules()
        self._header = _environ_name(self._rules)
        # gunicorn tells of a connection's preamble with its first request alone.
        self._preambles: WeakKeyDictionary[Any, Preamble] = WeakKeyDictionary()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        resolution = self._decide(environ)
        self._replace(environ, resolution)
        if asgi.on_resolution is None:
            return self._app(environ, start_response)
        context = copy_context()
        context.run(asgi.on_resolution, resolution)
        return _AnswerInContext(context, context.run(self._app, environ, start_response))

    def _decide(self, environ: WSGIEnvironment) -> Resolution:
        outer = environ.get(RESOLUTION_KEY)
        if isinstance(outer, Resolution):
            peer, preamble = outer.peer, outer.preamble
        else:
            peer, preamble = _peer(environ), self._preamble(environ)
        resolver = PeerResolver(self._rules, peer, preamble, self._forwarded.resolution)
        value = environ.get(self._header)
        # Servers join lines with a comma. One in front is an empty line that came first, and must
        # not spoil what the balancer wrote behind it, as in one line it would.
        return resolver.resolve([] if value is None else [_bytes(value.lstrip(", "))])

    def _preamble(self, environ: WSGIEnvironment) -> Preamble | None:
        sock = environ.get(_GUNICORN_SOCKET)
        if sock is None:
            return None
        if "PROXY_PROTOCOL" in environ:
            self._preambles[sock] = _gunicorns_preamble(environ)
        return self._preambles.get(sock)

    def _replace(self, environ: WSGIEnvironment, resolution: Resolution) -> None:
        environ.setdefault(ORIGINAL_KEY, {key: environ[key] for key in _KEPT if key in environ})
        environ[RESOLUTION_KEY] = resolution
        ip, port = resolution.client
        environ["REMOTE_ADDR"] = "" if ip == UNIX else ip
        environ.pop("REMOTE_PORT", None)
        if port is not None:
            environ["REMOTE_PORT"] = str(port)
        scheme = "https" if self._forwarded.preamble_says_https(resolution) else _own_scheme(environ)
        if _PROTO in environ or self._settings.replace_host or self._settings.replace_root_path:
            forwarded = Forwarded(self._forwarded, resolution, _request_of(environ))
            scheme = _SCHEMES.get(forwarded.scheme, scheme)
            self._replace_host_and_prefix(environ, forwarded)
        environ["wsgi.url_scheme"] = scheme
        if "HTTPS" in environ:
            environ["HTTPS"] = "on" if scheme == "https" else "off"

    def _replace_host_and_prefix(self, environ: WSGIEnvironment, forwarded: Forwarded) -> None:
        host = forwarded.host_header if self._settings.replace_host else None
        if host is not None:
            environ["HTTP_HOST"] = host.decode("ascii")
        prefix = forwarded.root_path if self._settings.replace_root_path else None
        if prefix is not None:
            environ["SCRIPT_NAME"] = prefix.decode("ascii") + environ.get("SCRIPT_NAME", "")


class _AnswerInContext:
    """An answer that is produced where the hook has set its variables.

    They end with the answer: a thread that serves the next request must not find them.
    """

    def __init__(self, context: Context, answer: Iterable[bytes]) -> None:
        self._context = context
        self._answer = answer
        self._parts: Iterator[bytes] = context.run(iter, answer)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(next, self._parts)

    def close(self) -> None:
        close = getattr(self._answer, "close", None)
        if close is not None:
            self._context.run(close)


class _WithEnviron(Protocol):
    @property
    def environ(self) -> dict[str, Any]: ...


class _WithMeta(Protocol):
    @property
    def META(self) -> dict[str, Any]: ...  # noqa: N802 - Django's name


class _WithScope(Protocol):
    @property
    def scope(self) -> Any: ...


def resolution_of(source: dict[str, Any] | _WithEnviron | _WithMeta | _WithScope) -> RequestResolution:
    """The Resolution of a WSGI environ, of Flask's ``request``, or of a Django request.

    Django's may have come over ASGI as well. Its ``forwarded`` and ``upstream_headers`` are what
    Kong calls forwarded values. Raises ResolutionMissingError where no RealIPMiddleware has seen
    the request.
    """
    over_asgi = getattr(source, "scope", None)
    if over_asgi is not None:
        return scope.resolution_of(over_asgi)
    environ: Any = getattr(source, "environ", None) or getattr(source, "META", source)
    found = environ.get(RESOLUTION_KEY)
    if isinstance(found, RequestResolution):
        return found
    if not isinstance(found, ResolutionUnderRules):
        raise ResolutionMissingError(
            "no RealIPMiddleware has seen this request: app.wsgi_app = RealIPMiddleware(app.wsgi_app)"
        )
    # Made for who asks first, and kept for who asks again.
    joined = environ[RESOLUTION_KEY] = with_request(found, found.rules, _request_of(environ))
    return joined


def _peer(environ: WSGIEnvironment) -> Address:
    """The other end of the connection; an address that nobody trusts where the server has none."""
    sock = environ.get(_GUNICORN_SOCKET)
    ip = environ.get("REMOTE_ADDR")
    # With a preamble gunicorn puts its source there.
    if sock is not None and ("PROXY_PROTOCOL" in environ or not ip):
        return _peer_of(sock)
    return Address(ip or "", _number(environ.get("REMOTE_PORT")) or None)


def _peer_of(sock: Any) -> Address:
    try:
        if not isinstance(sock.getsockname(), tuple):
            return Address(UNIX, None)
        ip, port = sock.getpeername()[:2]
    except OSError:
        # It has reset the connection, and nobody can tell any more who it was.
        return Address("", None)
    return Address(ip, port)


def _gunicorns_preamble(environ: WSGIEnvironment) -> Preamble:
    """What gunicorn tells of a preamble: neither version nor TLVs."""
    kind = environ["PROXY_PROTOCOL"]
    if kind not in ("TCP4", "TCP6"):
        return Preamble(0, "LOCAL" if kind == "LOCAL" else "PROXY")
    return Preamble(
        0,
        "PROXY",
        environ["REMOTE_ADDR"],
        _number(environ["REMOTE_PORT"]),
        environ["PROXY_ADDR"],
        _number(environ["PROXY_PORT"]),
    )


def _own_scheme(environ: WSGIEnvironment) -> str:
    sock = environ.get(_GUNICORN_SOCKET)
    if sock is None:
        scheme: str = environ[ORIGINAL_KEY]["wsgi.url_scheme"]
        return scheme
    # Not what gunicorn says: it believes X-Forwarded-Proto by rules of its own. Its TLS sockets have
    # a cipher, and no others.
    return "https" if hasattr(sock, "cipher") else "http"


def _request_of(environ: WSGIEnvironment) -> Request:
    """The request as it arrived. Whoever routes it changes SCRIPT_NAME and PATH_INFO."""
    original = environ[ORIGINAL_KEY]
    # On a Unix socket gunicorn takes SERVER_PORT from the header Host.
    port = None if environ[RESOLUTION_KEY].peer.ip == UNIX else _number(environ.get("SERVER_PORT"))
    prefix = _bytes(original.get("SCRIPT_NAME", "")).decode("utf-8", "surrogateescape")
    host = {"HTTP_HOST": original["HTTP_HOST"]} if "HTTP_HOST" in original else {}
    headers = _header_lines({**environ, **host})
    return Request(headers, _own_scheme(environ), _raw_path(environ), port or None, prefix or None)


def _raw_path(environ: WSGIEnvironment) -> bytes:
    raw: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if raw[:1] == "/":
        return _bytes(raw.partition("?")[0])
    # Imported when it is needed: only where a server does not tell, or the target is a whole URL.
    from urllib.parse import quote

    original = environ[ORIGINAL_KEY]
    path = original.get("SCRIPT_NAME", "") + original.get("PATH_INFO", "")
    return quote(_bytes(path), safe="/!$&'()*+,;=:@~").encode("ascii")


def _header_lines(environ: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Names in lower case. All are taken for spelt with dashes: servers drop the other spelling."""
    return [
        (_bytes(key[5:].replace("_", "-").lower()), _bytes(value))
        for key, value in environ.items()
        if key[:5] == "HTTP_"
    ]


def _environ_name(rules: Rules) -> str:
    """Where an environ has the header, or "" where the preamble is the source."""
    if rules.header_name is None:
        return ""
    if "_" in rules.header:
        raise SettingsError(
            [
                f"real_ip_header {rules.header!r}: a WSGI environ cannot tell an underscore from a dash,"
                " have the balancer send a header that is spelt with dashes"
            ]
        )
    return "HTTP_" + rules.header_name.upper().decode("latin-1").replace("-", "_")


def _number(text: object) -> int | None:
    """A port, which most servers give as text and some as a number."""
    return bounded_decimal(str(text), _HIGHEST_PORT)


def _bytes(text: str) -> bytes:
    """Text of an environ is Latin-1; servers that add the process environment have other text too."""
    return text.encode("latin-1", "replace")
