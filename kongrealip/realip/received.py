"""The lines of a request that say what the client saw, and how Kong looks them up.

Two of its parts do that in two ways (reference, section 9), and nothing of it is more than a list of
header lines: who is believed is decided elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

Headers = Sequence[tuple[bytes, bytes]]

#: Kong's ``lua_max_req_headers``.
MOST_LINES = 100

SCHEME, HOST, PORT = b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port"
PATH, PREFIX, FOR = b"x-forwarded-path", b"x-forwarded-prefix", b"x-forwarded-for"
REAL_IP = b"x-real-ip"
#: What is set for an upstream and replaces what was received, with the names as they are written.
UPSTREAM_NAMES = {
    REAL_IP: "X-Real-IP", FOR: "X-Forwarded-For", SCHEME: "X-Forwarded-Proto", HOST: "X-Forwarded-Host",
    PORT: "X-Forwarded-Port", PATH: "X-Forwarded-Path", PREFIX: "X-Forwarded-Prefix",
}  # fmt: skip
_NO_NAMES = frozenset[bytes]()
_USUAL_CONNECTION = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b"upgrade", b"Upgrade"))


def _spellings(name: bytes) -> list[bytes]:
    """The name with a dash or an underscore in each place: nginx's variables do not tell them apart."""
    first, *rest = name.split(b"-")
    spellings = [first]
    for part in rest:
        spellings = [begun + sign + part for begun in spellings for sign in (b"-", b"_")]
    return spellings


_SPELLINGS = {spelling: name for name in (SCHEME, HOST, PORT, PATH, PREFIX) for spelling in _spellings(name)}
_DASHED = frozenset(_SPELLINGS.values())
_FOR_SPELLINGS = frozenset((FOR, FOR.replace(b"-", b"_")))
#: The lines that have a say in what is not the client's address.
SAYING = frozenset((*_SPELLINGS, b"host", b"connection"))
SCHEME_SPELLINGS = frozenset(_spellings(SCHEME))


class Received(NamedTuple):
    """Values by names with dashes: as the getters find them, and as the runloop does for an upstream."""

    getters: Mapping[bytes, bytes]
    upstream: Mapping[bytes, bytes]


NOTHING = Received({}, {})


def received(headers: Headers, most_lines: int) -> Received:
    """Look all of them up at once, X-Forwarded-For aside."""
    found = [line for line in headers if line[0] in _SPELLINGS]
    if not found:
        return NOTHING
    values: dict[bytes, bytes] = {}
    for name, value in found:
        if name not in _DASHED:
            return _looked_up(headers, most_lines)
        # nginx takes the blanks at the end away, and not every server does.
        values[name] = value.rstrip(b" ")
    if len(values) != len(found) or len(headers) > most_lines:
        return _looked_up(headers, most_lines)
    for name in named_in_connection(headers):
        values.pop(name, None)
    return Received(values, values)


def _looked_up(headers: Headers, most_lines: int) -> Received:
    """The general case: several lines of a name, other spellings, lists."""
    not_for_us = named_in_connection(headers)
    joined: dict[bytes, list[bytes]] = {}
    dashed: dict[bytes, bytes] = {}
    underscored: dict[bytes, bytes] = {}
    for number, (spelling, value) in enumerate(headers):
        name = _SPELLINGS.get(spelling)
        if name is None or name in not_for_us:
            continue
        joined.setdefault(name, []).append(value.rstrip(b" "))
        if number < most_lines:
            if spelling == name:
                dashed.setdefault(name, value.rstrip(b" "))
            elif b"-" not in spelling:
                underscored.setdefault(name, value.rstrip(b" "))
    getters = {}
    for name, values in joined.items():
        if len(values) == 1 and b", " not in values[0]:
            getters[name] = values[0]
        elif name in dashed:
            # Kong then asks another function, which knows dashes only and the first lines only.
            getters[name] = dashed[name]
    return Received(getters, dashed | underscored)


def received_for(headers: Headers, most_lines: int) -> bytes | None:
    """X-Forwarded-For as the runloop finds it, to append to."""
    found = None
    for spelling, value in headers[:most_lines]:
        if spelling in _FOR_SPELLINGS:
            if spelling != FOR:
                found = value
                break
            if found is None:
                found = value
    if found is None or FOR in named_in_connection(headers):
        return None
    return found.rstrip(b" ")


def names_nothing(headers: Headers) -> bool:
    """Whether ``Connection`` has one of its usual values, or is not there at all."""
    # No all(): its generator would take twice as long.
    for name, value in headers:  # noqa: SIM110
        if name == b"connection" and value not in _USUAL_CONNECTION:
            return False
    return True


def named_in_connection(headers: Headers) -> frozenset[bytes]:
    """Names that ``Connection`` lists, with dashes for underscores.

    They are meant for the next hop alone, so whoever sent them did not mean us, and nothing of
    them is believed (RFC 9110, 7.6.1).
    """
    if names_nothing(headers):
        return _NO_NAMES
    tokens = (token for name, value in headers if name == b"connection" for token in value.split(b","))
    return frozenset(token.strip().lower().replace(b"_", b"-") for token in tokens)
