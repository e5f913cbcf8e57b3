"""Scheme, host, port, path and prefix as the client wrote them, and what Kong tells an upstream.

The rules are those of Kong's ``kong.request.get_forwarded_*`` and of its runloop (reference,
section 9). Whether a peer is believed is Kong's own test and not nginx's (section 3.3).

All text is Latin-1, as in Starlette's headers: a byte is a character, and nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from kongrealip.realip.networks import KongTrust
from kongrealip.realip.numbers import port_number
from kongrealip.realip.received import (
    FOR,
    HOST,
    MOST_LINES,
    PATH,
    PORT,
    PREFIX,
    REAL_IP,
    SCHEME,
    UPSTREAM_NAMES,
    Headers,
    received,
)
from kongrealip.realip.resolve import Resolution

#: Whom to believe: as Kong does, nobody, or as Kong does where no preamble came with the connection.
TRUSTED, OFF, AUTO = "trusted", "off", "auto"
_HTTPS_PORT = 443
_LAST_PORT, _PORT_DIGITS = 65535, 5
_DEFAULT_PORTS = {"http": 80, "https": 443}
# A name or an address, and a port: nothing that could begin a path or end a header.
_HOST_HEADER = rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_PLAIN_PATH = rb"(?:/[A-Za-z0-9._~-]+)+"


class ForwardedRules:
    """What the operator decided: whom to believe beyond the client's address.

    ``port_maps`` leads from the listener's port, as text, to the port outside.
    """

    __slots__ = ("believe", "most_lines", "port_maps", "resolution", "scheme_from_preamble", "trust")

    def __init__(
        self,
        trust: KongTrust,
        believe: str = TRUSTED,
        scheme_from_preamble: bool = False,
        port_maps: Mapping[str, float] = {},
        most_lines: int = MOST_LINES,
    ) -> None:
        self.trust = trust
        self.believe = believe
        self.scheme_from_preamble = scheme_from_preamble
        self.port_maps = port_maps
        self.most_lines = most_lines
        #: The class of what is decided under these rules.
        self.resolution = _resolution_under(self)

    def believes(self, resolution: Resolution) -> bool:
        """Whether X-Forwarded-Proto and its kin count in requests of this peer.

        With ``auto`` they do not on a connection that came with a preamble: a balancer that works
        below HTTP passes them on as the client wrote them.
        """
        if self.believe == OFF or (self.believe == AUTO and resolution.preamble is not None):
            return False
        return self.trust.trusts(resolution.peer.ip)

    def preamble_says_https(self, resolution: Resolution) -> bool:
        """Whether a trusted peer's preamble tells of TLS that ended before this connection."""
        preamble = resolution.preamble
        if not self.scheme_from_preamble or preamble is None or not resolution.peer_trusted:
            return False
        ssl = preamble.tlvs.ssl if preamble.tlv_area else None
        return preamble.destination_port == _HTTPS_PORT if ssl is None else ssl.over_tls


class ResolutionUnderRules(Resolution):
    """A Resolution that knows by which rules its request is to be seen, should somebody ask.

    They belong to the class, of which each ForwardedRules makes one: so that they cost nothing for
    each request.
    """

    __slots__ = ()
    rules: ClassVar[ForwardedRules]


def _resolution_under(rules: ForwardedRules) -> type[ResolutionUnderRules]:
    class Bound(ResolutionUnderRules):
        __slots__ = ()

    Bound.rules = rules
    # As it is shown.
    Bound.__name__ = Resolution.__name__
    return Bound


class Request(NamedTuple):
    """A request as it arrived. Header names are in lower case.

    ``scheme`` is the connection's own, ``http`` or ``https``; ``path`` is the raw one without the
    query; ``port`` is the listener's or None; ``prefix`` is what routing takes off, or None.
    """

    headers: Headers
    scheme: str
    path: bytes
    port: int | None
    prefix: str | None

    @property
    def host(self) -> bytes:
        """nginx's ``$host``: the header in lower case, without port and trailing dot."""
        for name, value in self.headers:
            if name == b"host":
                host = value.rstrip(b" ").lower()
                end = host.find(b"]") + 1 if host[:1] == b"[" else host.find(b":")
                return host[: end if end > 0 else None].removesuffix(b".")
        return b""


class Forwarded:
    """The view of one request. Nothing is computed before it is read.

    Reading never raises, whatever the headers hold.
    """

    __slots__ = ("_resolution", "_rules", "_sent", "_told", "request")

    def __init__(self, rules: ForwardedRules, resolution: Resolution, request: Request) -> None:
        self._rules = rules
        self._resolution = resolution
        self.request = request
        # What the getters believe, and all that is passed on, once somebody has asked.
        self._told: Mapping[bytes, bytes] | None = None
        self._sent: Mapping[bytes, bytes] = {}

    @property
    def scheme(self) -> str:
        """``kong.request.get_forwarded_scheme``: in lower case and otherwise as the peer wrote it."""
        value = self._getter(SCHEME)
        return self._own_scheme() if value is None else value.lower().decode("latin-1")

    @property
    def host(self) -> str:
        """``get_forwarded_host``: without port."""
        value = self._getter(HOST)
        host = self.request.host if value is None else _authority(value).partition(b":")[0].lower()
        return host.decode("latin-1")

    @property
    def port(self) -> int | float | None:
        """``get_forwarded_port``: None on a Unix socket. Fractions survive, as in Kong."""
        port = _port(self._getter(PORT))
        if port is None:
            host = self._getter(HOST)
            port = None if host is None else _port(_authority(host).partition(b":")[2])
        return self._own_port() if port is None else port

    @property
    def path(self) -> str:
        """``get_forwarded_path``: the request's own is normalised."""
        value = self._getter(PATH)
        return (normalised(self.request.path) if value is None else value).decode("latin-1")

    @property
    def prefix(self) -> str | None:
        """``get_forwarded_prefix``, or None."""
        value = self._getter(PREFIX)
        return self._own_prefix() if value is None else value.decode("latin-1")

    @property
    def host_header(self) -> bytes | None:
        """The header Host as the client wrote it to the believed peer, or None where that is not known.

        X-Forwarded-Host with its port, or with that of X-Forwarded-Port where it has none and the
        scheme has another. None as well where it is no host: it would end up in links.
        """
        host = _authority(self._getter(HOST) or b"")
        if re.fullmatch(_HOST_HEADER, host) is None:
            return None
        port = _port(self._getter(PORT))
        if (
            isinstance(port, int)
            and port != _DEFAULT_PORTS.get(self.scheme)
            and not re.search(rb":[0-9]+$", host)
        ):
            return b"%b:%d" % (host, port)
        return host

    @property
    def root_path(self) -> bytes | None:
        """X-Forwarded-Prefix as ASGI's ``root_path``, or None where there is none that can be used.

        Plain segments only, and no double slash: with ``//evil.example`` each redirect would lead there.
        """
        prefix = (self._getter(PREFIX) or b"").removesuffix(b"/")
        return prefix if re.fullmatch(_PLAIN_PATH, prefix) and normalised(prefix) == prefix else None

    @property
    def upstream_headers(self) -> dict[str, str]:
        """What Kong would send upstream of the X-Forwarded family and X-Real-IP.

        They replace all lines of these names that were received; a name that is not in here is
        not to be sent at all.
        """
        return {UPSTREAM_NAMES[name]: value.decode("latin-1") for name, value in self.upstream_lines}

    @property
    def upstream_lines(self) -> tuple[tuple[bytes, bytes], ...]:
        """The same as bytes, with names in lower case."""
        if self._told is None:
            self._look()
        sent, request, resolution = self._sent, self.request, self._resolution
        client, peer = resolution[0][0].encode(), resolution[1][0].encode()
        lines = (
            (REAL_IP, client),
            (FOR, sent[FOR] + b", " + peer if FOR in sent else client),
            (SCHEME, sent[SCHEME] if SCHEME in sent else self._own_scheme().encode()),
            (HOST, sent.get(HOST, request.host)),
            (PORT, sent[PORT] if PORT in sent else self._own_port_text()),
            (PATH, sent.get(PATH, request.path)),
            (PREFIX, sent[PREFIX] if PREFIX in sent else self._own_prefix_text()),
        )
        return tuple([line for line in lines if line[1]])

    def _own_scheme(self) -> str:
        return "https" if self._rules.preamble_says_https(self._resolution) else self.request.scheme

    def _own_port(self) -> int | float | None:
        port = self.request.port
        mapped = self._rules.port_maps.get(str(port)) if port is not None else None
        return port if mapped is None else _plain(mapped)

    def _own_port_text(self) -> bytes:
        port = self._own_port()
        return b"" if port is None else str(port).encode() if isinstance(port, int) else b"%.14g" % port

    def _own_prefix_text(self) -> bytes:
        return (self._own_prefix() or "").encode("utf-8", "surrogateescape")

    def _own_prefix(self) -> str | None:
        return None if self.request.prefix == "/" else self.request.prefix

    def _getter(self, name: bytes) -> bytes | None:
        told = self._told
        if told is None:
            told = self._look()
        return told.get(name)

    def _look(self) -> Mapping[bytes, bytes]:
        found = received(self.request.headers, self._rules.most_lines)
        if self._rules.believes(self._resolution):
            self._told, self._sent = found
        else:
            # Kong appends to X-Forwarded-For for everybody.
            appended = found.upstream.get(FOR)
            self._told, self._sent = {}, {} if appended is None else {FOR: appended}
        return self._told


class RequestResolution(Resolution):
    """A Resolution together with the request that it was made for.

    ``forwarded`` is that request's view. Made by the middlewares, when somebody asks.
    """

    forwarded: Forwarded

    @property
    def upstream_headers(self) -> dict[str, str]:
        """What Kong would send upstream; see :attr:`Forwarded.upstream_headers`."""
        return self.forwarded.upstream_headers


def with_request(resolution: Resolution, rules: ForwardedRules, request: Request) -> RequestResolution:
    """Join the two."""
    joined = tuple.__new__(RequestResolution, resolution)
    joined.forwarded = Forwarded(rules, resolution, request)
    return joined


def _authority(value: bytes) -> bytes:
    """What stands behind a user's name."""
    return value.partition(b"@")[2] if b"@" in value else value


def _port(text: bytes | None) -> int | float | None:
    if text is None:
        return None
    if text.isdigit() and len(text) <= _PORT_DIGITS:
        # As everybody writes it: nothing to look up in the grammar of numbers.
        return int(text) if 0 < int(text) <= _LAST_PORT else None
    port = port_number(text.decode("latin-1"))
    return None if port is None else _plain(port)


def _plain(port: float) -> int | float:
    return int(port) if port == int(port) else port


# Those that stay encoded: they would mean something else.
_RESERVED = frozenset(b"!*'();:@&=+$,/?%#[]")
_ENCODED = rb"%([0-9A-Fa-f]{2})"


def normalised(path: bytes) -> bytes:
    """``kong.request.get_path``: decoded but for what is reserved, without dots and double slashes."""
    if b"%" in path:
        path = re.sub(_ENCODED, _decoded, path)
    if path[:1] != b"/" or (b"." not in path and b"//" not in path):
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    # What ends in a slash or in dots is a folder.
    end = b"/" if kept and segments[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(kept) + end


def _decoded(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return match[0].upper() if byte in _RESERVED else bytes((byte,))
