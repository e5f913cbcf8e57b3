"""A peer for as long as it is remembered, with the last answer that its headers led to."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from kongrealip.address import Address
from kongrealip.preamble import Preamble
from kongrealip.realip import ForwardedRules, PeerResolver, Resolution, Rules
from kongrealip.realip.networks import UNIX
from kongrealip.realip.received import SCHEME, SCHEME_SPELLINGS, names_nothing, received

# Of a peer the last line is remembered, if that is not longer: how long lines may be is up to the server.
_LONGEST_LINE = 1024
# What Address.ip is where ASGI has no client.
_NO_ADDRESS = (UNIX, "")
# As ``scope["scheme"]`` has it, for http and for websocket. What else the header may hold would
# only break the links that are made of it.
_CLEAR, _TLS = ("http", "ws"), ("https", "wss")
_SCHEMES: dict[bytes | None, tuple[str, str]] = {
    b"http": _CLEAR, b"https": _TLS, b"ws": _CLEAR, b"wss": _TLS,
}  # fmt: skip


class KnownPeer(PeerResolver):
    """A peer for as long as it is remembered, with the last answer it got.

    ``resolution``, ``client`` and ``scheme`` (as the scope has them; a scheme of None is the
    connection's own) are that answer; ``line`` is the single header line that the first two came
    from, or None where it was not one, or a long one. ``quiet`` is the answer where none of the
    headers is there that are ``wanted``, and ``silent`` that it was the last one.
    """

    __slots__ = (
        "_forwarded",
        "_longest_line",
        "_name",
        "_names_scheme",
        "client",
        "line",
        "own_scheme",
        "quiet",
        "resolution",
        "scheme",
        "silent",
        "wanted",
    )

    client: tuple[str, int] | None
    line: bytes | None
    resolution: Resolution

    def __init__(
        self, rules: Rules, forwarded: ForwardedRules, peer: Address, preamble: Preamble | None
    ) -> None:
        super().__init__(rules, peer, preamble, forwarded.resolution)
        self._forwarded = forwarded
        self._name = rules.header_name if self.fixed is None else None
        self.quiet = self.fixed or self.unchanged
        self.wanted = _wanted(self._name, forwarded.believes(self.quiet))
        # An operator may have chosen X-Forwarded-Proto itself, which then says two things.
        self._names_scheme = self._name in SCHEME_SPELLINGS and len(self.wanted) > 1
        self._longest_line = -1 if self._names_scheme else _LONGEST_LINE
        self.own_scheme = _TLS if forwarded.preamble_says_https(self.quiet) else None
        self._answer(self.quiet)
        self.silent = True
        self.scheme = self.own_scheme

    def read(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Decide from a request's headers."""
        wanted, name = self.wanted, self._name
        line = scheme = None
        lines = schemes = 0
        for key, value in headers:
            if key in wanted:
                if key == name:
                    line = value
                    lines += 1
                else:
                    scheme = value
                    schemes += 1
        if lines == 1 and line == self.line and not schemes:
            # The same client again.
            self.scheme = self.own_scheme
            return
        if line is None:
            self._answer(self.quiet)
        elif lines > 1:
            self._answer(self.resolve([value for key, value in headers if key == name]))
        elif line != self.line:
            self._walk(line)
        self.silent = not (lines or schemes)
        if self._names_scheme:
            scheme, schemes = line or scheme, schemes + lines
        self.scheme = self._told_scheme(headers, scheme, schemes) if schemes else self.own_scheme

    def _told_scheme(
        self, headers: list[tuple[bytes, bytes]], value: bytes | None, lines: int
    ) -> tuple[str, str] | None:
        """What a believed peer says; ``value`` is that of the last of ``lines``."""
        plain = _SCHEMES.get(value) if lines == 1 else None
        if plain is not None and names_nothing(headers):
            return plain
        told = received(headers, self._forwarded.most_lines).getters.get(SCHEME)
        return self.own_scheme if told is None else _SCHEMES.get(told.lower(), self.own_scheme)

    def _walk(self, line: bytes) -> None:
        reached = self.rules.reached(line)
        self.line = line if len(line) <= self._longest_line else None
        self.resolution = self._replaced(reached)
        self.client = reached or _client_of(self.unchanged)

    def _answer(self, resolution: Resolution) -> None:
        self.line = None
        self.resolution = resolution
        self.client = _client_of(resolution)


def _client_of(resolution: Resolution) -> tuple[str, int] | None:
    """As the scope has it."""
    ip, port = resolution[0]
    return None if ip in _NO_ADDRESS else (ip, port or 0)


def is_quiet(wanted: frozenset[bytes], headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether nothing is wanted of what is there: for a peer that was silent, most likely it is still."""
    for key, _ in headers:  # noqa: SIM110 - half the time of all()
        if key in wanted:
            return False
    return True


@cache
def _wanted(name: bytes | None, is_believed: bool) -> frozenset[bytes]:
    """The headers that can change anything."""
    names = SCHEME_SPELLINGS if is_believed else frozenset[bytes]()
    return names if name is None else names | {name}
