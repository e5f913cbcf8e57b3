"""Whom to believe beyond the client's address, and what the headers of a request then come to.

Whether a peer is believed is Kong's own test and not nginx's (reference, section 3.3); what is made
of the headers are the rules of its getters and of its runloop (section 9).
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from kongrealip.realip.networks import KongTrust
from kongrealip.realip.numbers import port_number
from kongrealip.realip.received import (
    HOST,
    MOST_LINES,
    NOTHING,
    PATH,
    PORT,
    PREFIX,
    SAYING,
    SCHEME,
    UPSTREAM_NAMES,
    Headers,
    received,
)
from kongrealip.realip.resolve import Resolution

#: Whom to believe: as Kong does, nobody, or as Kong does where no preamble came with the connection.
TRUSTED, OFF, AUTO = "trusted", "off", "auto"
_HTTPS_PORT = 443
# How much is remembered of what headers came to: balancers say the same again and again.
_MOST_KNOWN, _LONGEST_KNOWN = 1024, 1024
_LAST_PORT, _PORT_DIGITS = 65535, 5


class ForwardedRules:
    """What the operator decided: whom to believe beyond the client's address.

    ``port_maps`` leads from the listener's port, as text, to the port outside.
    """

    __slots__ = (
        "_known",
        "believe",
        "most_lines",
        "port_maps",
        "resolution",
        "scheme_from_preamble",
        "trust",
    )

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
        self._known: dict[object, Said] = {}

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

    def said_of(self, resolution: Resolution, request: "Request") -> "Said":
        """What the headers of a request come to, remembered in a bounded way."""
        headers = request.headers
        lines = tuple([(name, value) for name, value in headers if name in SAYING])
        scheme = "https" if self.preamble_says_https(resolution) else request.scheme
        believed = self.believes(resolution)
        if len(headers) > self.most_lines:
            return self._say(believed, scheme, request, headers)
        key = believed, scheme, request.port, request.prefix, lines
        said = self._known.get(key)
        if said is None:
            said = self._say(believed, scheme, request, lines)
            if sum([len(value) for _, value in lines]) <= _LONGEST_KNOWN:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[key] = said
        return said

    def _say(self, believed: bool, scheme: str, request: "Request", lines: Headers) -> "Said":
        found = received(lines, self.most_lines) if believed else NOTHING
        told, sent = found
        port, prefix = self._outside(request.port), None if request.prefix == "/" else request.prefix
        host = request.host
        own = {
            SCHEME: scheme.encode(),
            HOST: host,
            PORT: b"" if port is None else b"%.14g" % port,
            PREFIX: (prefix or "").encode("utf-8", "surrogateescape"),
        }
        lines = tuple([(name, value) for name in own if (value := sent.get(name, own[name]))])
        return Said(
            told,
            told[SCHEME].lower().decode("latin-1") if SCHEME in told else scheme,
            (authority(told[HOST]).partition(b":")[0].lower() if HOST in told else host).decode("latin-1"),
            _told_port(told) or port,
            told[PREFIX].decode("latin-1") if PREFIX in told else prefix,
            sent.get(PATH),
            lines,
            {UPSTREAM_NAMES[name]: value.decode("latin-1") for name, value in lines},
        )

    def _outside(self, port: int | None) -> int | float | None:
        mapped = None if port is None else self.port_maps.get(str(port))
        return port if mapped is None else _plain(mapped)


class Said(NamedTuple):
    """What headers say, but for the client and the path: on a connection mostly the same again.

    ``told`` are the lines that the getters believe; ``upstream`` those that are sent on, but for
    the addresses and the path, of which ``upstream_path`` is what was received.
    """

    told: Mapping[bytes, bytes]
    scheme: str
    host: str
    port: int | float | None
    prefix: str | None
    upstream_path: bytes | None
    upstream: tuple[tuple[bytes, bytes], ...]
    upstream_texts: Mapping[str, str]


class ResolutionUnderRules(Resolution):
    """A Resolution that knows by which rules its request is to be seen, should somebody ask.

    They belong to the class, of which each ForwardedRules makes one: so that they cost nothing for
    each request.
    """

    __slots__ = ()
    rules: ClassVar[ForwardedRules]


def _resolution_under(rules: ForwardedRules) -> "type[ResolutionUnderRules]":
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


def authority(value: bytes) -> bytes:
    """What stands behind a user's name."""
    return value.partition(b"@")[2] if b"@" in value else value


def _told_port(told: Mapping[bytes, bytes]) -> int | float | None:
    port = read_port(told.get(PORT))
    if port is None and HOST in told:
        port = read_port(authority(told[HOST]).partition(b":")[2])
    return port


def read_port(text: bytes | None) -> int | float | None:
    """Number text within 1 to 65535, or None."""
    if text is None:
        return None
    if text.isdigit() and len(text) <= _PORT_DIGITS:
        # As everybody writes it: nothing to look up in the grammar of numbers.
        return int(text) if 0 < int(text) <= _LAST_PORT else None
    port = port_number(text.decode("latin-1"))
    return None if port is None else _plain(port)


def _plain(port: float) -> int | float:
    return int(port) if port == int(port) else port
