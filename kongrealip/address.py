"""IP address text as nginx reads and prints it.

nginx is more generous than ``inet_pton`` when it reads (``1..3.4`` and ``::1:`` are addresses)
and has a spelling of its own when it prints (``::100`` becomes ``::0.0.1.0``). Kong inherits
both, so this module follows ``ngx_inet_addr``, ``ngx_inet6_addr``, ``ngx_parse_addr_port`` and
``ngx_inet6_ntop`` instead of the standard library.

An address is a pair of its printed text and its *number*, a place on the one line of all
128-bit addresses. IPv4 stands at ``::ffff:0:0/96``, because nginx judges ``::ffff:a.b.c.d``
as the IPv4 address: both spellings are one number, and one lookup decides trust for both.
"""

from typing import NamedTuple

IPV4_FIRST = 0xFFFF_0000_0000
IPV4_LAST = 0xFFFF_FFFF_FFFF
# nginx uses this value for "not an address", so it cannot be one.
_BROADCAST = 0xFFFF_FFFF

_OCTET_TEXTS = tuple([str(octet) for octet in range(256)])
_OCTETS = frozenset([text.encode() for text in _OCTET_TEXTS])
_LONGEST_IPV4 = 15
# The decimal octets as everybody writes them, and what each comes to in its place: looking up costs
# less than shifting. What is not here takes the slow way.
_FIRST, _SECOND, _THIRD, _FOURTH = [
    dict(zip(_OCTET_TEXTS, range(first, first + (256 << shift), 1 << shift), strict=True))
    for first, shift in ((IPV4_FIRST, 24), (0, 16), (0, 8), (0, 0))
]
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class Address(NamedTuple):
    """One end of a connection, as it is shown to applications.

    ``ip`` is an address as nginx prints it, ``unix:`` for a Unix socket, or ``""`` where the
    server could not tell. ``port`` is ``None`` where none is known.
    """

    ip: str
    port: int | None


def parse_hop(text: str) -> tuple[str, int, int] | None:
    """Read one entry of a forwarding header: ``(printed text, number, port)``, or None.

    The port is 0 where there is none. An address without port is tried first, so
    ``2001:db8::1:80`` is one, and a port that is empty or out of range spoils the whole entry
    (reference, section 4).
    """
    parts = text.split(".")
    if len(parts) == 4:
        a, b, c, d = parts
        try:
            number = _FIRST[a] | _SECOND[b] | _THIRD[c] | _FOURTH[d]
        except KeyError:
            pass
        else:
            return None if number == IPV4_LAST else (text, number, 0)
    return _odd_address(text, parts) or _with_port(text)


def plain_ipv4(text: bytes) -> str | None:
    """An IPv4 address as everybody writes it, or None where it is spelt otherwise or is something else.

    What most header lines are, in half the time that it takes to read whatever they may hold.
    """
    if len(text) <= _LONGEST_IPV4:
        parts = text.split(b".")
        if len(parts) == 4:
            a, b, c, d = parts
            octets = _OCTETS
            if a in octets and b in octets and c in octets and d in octets and text != b"255.255.255.255":
                return text.decode("ascii")
    return None


def _odd_address(text: str, parts: list[str]) -> tuple[str, int, int] | None:
    """An IPv4 address that is not spelt as usual, or an IPv6 address."""
    ipv4 = _odd_ipv4(parts)
    if ipv4 is not None:
        return _ipv4_number_text(ipv4), IPV4_FIRST | ipv4, 0
    groups = _ipv6_groups(text)
    if groups is None:
        return None
    number = 0
    for group in groups:
        number = number << 16 | group
    return ipv6_text(groups), number, 0


def _with_port(text: str) -> tuple[str, int, int] | None:
    """``1.2.3.4:80`` or ``[::1]:80``."""
    if text[:1] == "[":
        host, closed, rest = text[1:].partition("]")
        # nginx since 1.27.3 takes "[::1]" without a port; Kong 3.0 to 3.10 embed older ones.
        if not closed or (rest and rest[0] != ":"):
            return None
        port = _port(rest[1:]) if rest else 0
    else:
        host, colon, rest = text.partition(":")
        port = _port(rest) if colon else None
    address = None if port is None else parse_hop(host)
    # Brackets hold an address, and not one with a port of its own.
    if port is None or address is None or address[2]:
        return None
    return address[0], address[1], port


def bounded_decimal(text: str, limit: int) -> int | None:
    """Read ASCII digits with any number of leading zeros as a number up to ``limit``."""
    if not (text.isascii() and text.isdigit()):
        return None
    significant = text.lstrip("0") or "0"
    # Checked before int(), which refuses texts of thousands of digits with an exception.
    if len(significant) > len(str(limit)) or (value := int(significant)) > limit:
        return None
    return value


def _port(text: str) -> int | None:
    return bounded_decimal(text, 65535) or None


def _odd_ipv4(parts: list[str]) -> int | None:
    """ngx_inet_addr: ``010`` is ten, an empty part is zero, 255.255.255.255 is refused."""
    if len(parts) != 4:
        return None
    number = 0
    for part in parts:
        octet = bounded_decimal(part, 255) if part else 0
        if octet is None:
            return None
        number = number << 8 | octet
    return None if number == _BROADCAST else number


def ipv4_text(a: int, b: int, c: int, d: int) -> str:
    """Print four octets. From a table, in a third of the time: each preamble has two addresses."""
    texts = _OCTET_TEXTS
    return f"{texts[a]}.{texts[b]}.{texts[c]}.{texts[d]}"


def _ipv4_number_text(number: int) -> str:
    return ipv4_text(*number.to_bytes(4, "big"))


def _ipv6_groups(text: str) -> list[int] | None:
    """ngx_inet6_addr, step by step: the eight groups, or None."""
    if not text:
        return None
    groups: list[int] = []
    gap: int | None = None
    pending = ""
    colon: int | None = None
    for index in range(1 if text[0] == ":" else 0, len(text)):
        character = text[index]
        if character in _HEX_DIGITS and len(pending) < 4:
            pending += character
        elif character == ":" and pending:
            groups.append(int(pending, 16))
            if len(groups) == 8:
                return None
            pending, colon = "", index
        elif character == ":" and gap is None:
            gap, colon = len(groups), index
        elif character == "." and pending and colon is not None and len(groups) <= 6:
            number = _odd_ipv4(text[colon + 1 :].split("."))
            if number is None:
                return None
            groups.append(number >> 16)
            pending = f"{number & 0xFFFF:x}"
            break
        else:
            return None
    if not pending and gap is None:
        return None
    groups.append(int(pending or "0", 16))
    if (gap is None) != (len(groups) == 8):
        return None
    if gap is not None:
        groups[gap:gap] = [0] * (8 - len(groups))
    return groups


def ipv6_text(groups: list[int] | tuple[int, ...]) -> str:
    """Print eight 16-bit groups as ngx_inet6_ntop does (reference, section 5)."""
    start, length = _longest_zero_run(groups)
    dotted = start == 0 and (
        (length == 5 and groups[5] == 0xFFFF)
        or length == 6
        or (length == 7 and groups[7] >> 8 != 0 and groups[7] & 0xFF != 1)
    )
    if dotted:
        tail = _ipv4_number_text(groups[6] << 16 | groups[7])
        return f"::ffff:{tail}" if length == 5 else f"::{tail}"
    texts = [f"{group:x}" for group in groups]
    if length < 2:
        return ":".join(texts)
    return f"{':'.join(texts[:start])}::{':'.join(texts[start + length :])}"


def _longest_zero_run(groups: list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Where the first longest run of zero groups begins, and its length."""
    best = (0, 0)
    start = 0
    for index in range(9):
        if index == 8 or groups[index] != 0:
            if index - start > best[1]:
                best = (start, index - start)
            start = index + 1
    return best
