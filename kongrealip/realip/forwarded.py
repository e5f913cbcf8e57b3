"""Scheme, host, port, path and prefix as the client wrote them, and what Kong tells an upstream.

The view of one request, by the names of Kong's ``kong.request.get_forwarded_*`` (reference, section 9).
All text is Latin-1, as in Starlette's headers: a byte is a character, and nothing is lost.
"""

from __future__ import annotations

import re

from kongrealip.address import parse_hop
from kongrealip.realip.belief import ForwardedRules, Request, Said, authority, read_port
from kongrealip.realip.paths import normalised
from kongrealip.realip.received import FOR, HOST, PATH, PORT, PREFIX, REAL_IP, received_for
from kongrealip.realip.resolve import Resolution

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# A name or an address, and a port: nothing that could begin a path or end a header.
_HOST_HEADER = rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
_PLAIN_PATH = rb"(?:/[A-Za-z0-9._~-]+)+"


class Forwarded:
    """The view of one request. Nothing is computed before it is read.

    Reading never raises, whatever the headers hold.
    """

    __slots__ = ("_resolution", "_rules", "_said", "request")

    def __init__(self, rules: ForwardedRules, resolution: Resolution, request: Request) -> None:
        self._rules = rules
        self._resolution = resolution
        self._said: Said | None = None
        self.request = request

    @property
    def scheme(self) -> str:
        """``kong.request.get_forwarded_scheme``: in lower case and otherwise as the peer wrote it."""
        return (self._said or self._listen()).scheme

    @property
    def host(self) -> str:
        """``get_forwarded_host``: without port."""
        return (self._said or self._listen()).host

    @property
    def port(self) -> int | float | None:
        """``get_forwarded_port``: None on a Unix socket. Fractions survive, as in Kong."""
        return (self._said or self._listen()).port

    @property
    def path(self) -> str:
        """``get_forwarded_path``: the request's own is normalised."""
        value = (self._said or self._listen()).told.get(PATH)
        return (normalised(self.request.path) if value is None else value).decode("latin-1")

    @property
    def prefix(self) -> str | None:
        """``get_forwarded_prefix``, or None."""
        return (self._said or self._listen()).prefix

    @property
    def host_header(self) -> bytes | None:
        """The header Host as the client wrote it to the believed peer, or None where that is not known.

        X-Forwarded-Host with its port, or with that of X-Forwarded-Port where it has none and the
        scheme has another. None as well where it is no host: it would end up in links.
        """
        told = self._listen().told
        host = authority(told.get(HOST, b""))
        match = re.fullmatch(_HOST_HEADER, host)
        if match is None or (match[1] and read_port(match[1][1:]) is None):
            return None
        if host[:1] == b"[" and not _is_ipv6(host[1 : host.index(b"]")]):
            return None
        port = read_port(told.get(PORT))
        if match[1] or not isinstance(port, int) or port == _DEFAULT_PORTS.get(self.scheme):
            return host
        return b"%b:%d" % (host, port)

    @property
    def root_path(self) -> bytes | None:
        """X-Forwarded-Prefix as ASGI's ``root_path``, or None where there is none that can be used.

        Plain segments only, and no double slash: with ``//evil.example`` each redirect would lead there.
        """
        prefix = self._listen().told.get(PREFIX, b"").removesuffix(b"/")
        return prefix if re.fullmatch(_PLAIN_PATH, prefix) and normalised(prefix) == prefix else None

    @property
    def upstream_headers(self) -> dict[str, str]:
        """What Kong would send upstream of the X-Forwarded family and X-Real-IP.

        They replace all lines of these names that were received; a name that is not in here is
        not to be sent at all.
        """
        client, addresses, path = self._upstream_addresses_and_path()
        headers = {
            "X-Real-IP": client.decode("latin-1"),
            "X-Forwarded-For": addresses.decode("latin-1"),
            "X-Forwarded-Path": path.decode("latin-1"),
            **self._listen().upstream_texts,
        }
        return headers if client and path else {name: text for name, text in headers.items() if text}

    @property
    def upstream_lines(self) -> tuple[tuple[bytes, bytes], ...]:
        """The same as bytes, with names in lower case."""
        client, addresses, path = self._upstream_addresses_and_path()
        lines = ((REAL_IP, client), (FOR, addresses), (PATH, path), *self._listen().upstream)
        return lines if client and path else tuple([line for line in lines if line[1]])

    def _upstream_addresses_and_path(self) -> tuple[bytes, bytes, bytes]:
        """What is new with each request. Only the client can be empty, and the path that was received."""
        resolution, path = self._resolution, self._listen().upstream_path
        client = resolution[0][0].encode()
        # Kong appends for everybody, also for who is not believed.
        received = received_for(self.request.headers, self._rules.most_lines)
        addresses = client if received is None else received + b", " + resolution[1][0].encode()
        return client, addresses, self.request.path if path is None else path

    def _listen(self) -> Said:
        if self._said is None:
            self._said = self._rules.said_of(self._resolution, self.request)
        return self._said


def _is_ipv6(text: bytes) -> bool:
    return b":" in text and parse_hop(text.decode("latin-1")) is not None


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
