"""IP address text as nginx reads and prints it.

nginx is more generous than ``inet_pton`` when it reads (``1..3.4`` and ``::1:`` are addresses)
and has a spelling of its own when it prints (``::100`` becomes ``::0.0.1.0``). Kong inherits
both, so this module follows ``ngx_inet_addr``, ``ngx_inet6_addr``, ``ngx_parse_addr_port`` and
``ngx_inet6_ntop`` instead of the standard library.

An address is a pair of its printed text and its *number*, a place on the one line of all
128-bit addresses. IPv4 stands at ``::ffff:0:0/96``, because nginx judges ``::ffff:a.b.c.d``
as the IPv4 address: both spellings are one number, and one lookup decides trust for both.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["IPV4_FIRST", "IPV4_LAST", "Address", "ipv6_text", "parse_address", "parse_with_port"]

IPV4_FIRST = 0xFFFF_0000_0000
IPV4_LAST = 0xFFFF_FFFF_FFFF

# The decimal octets as everybody writes them. What is not here takes the slow way.
_PLAIN_OCTETS = {str(octet): octet for octet in range(256)}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class Address(NamedTuple):
    """One end of a connection, as it is shown to applications.

    ``ip`` is an address as nginx prints it, ``unix:`` for a Unix socket, or ``""`` where the
    server could not tell. ``port`` is ``None`` where none is known.
    """

    ip: str
    port: int | None


def parse_address(text: str) -> tuple[str, int] | None:
    """Read an IPv4 or IPv6 address without port: ``(printed text, number)``, or None."""
    parts = text.split(".")
    if len(parts) == 4:
        a, b, c, d = parts
        try:
            number = (
                _PLAIN_OCTETS[a] << 24 | _PLAIN_OCTETS[b] << 16 | _PLAIN_OCTETS[c] << 8 | _PLAIN_OCTETS[d]
            )
        except KeyError:
            pass
        else:
            return None if number == 0xFFFFFFFF else (text, IPV4_FIRST | number)
        odd = _odd_ipv4(parts)
        if odd is not None:
            return _ipv4_text(odd), IPV4_FIRST | odd
    groups = _ipv6_groups(text)
    if groups is None:
        return None
    number = 0
    for group in groups:
        number = number << 16 | group
    return ipv6_text(groups), number


def parse_with_port(text: str) -> tuple[str, int, int] | None:
    """Read ``1.2.3.4:80`` or ``[::1]:80``: ``(printed text, number, port)``, or None.

    For entries of a forwarding header that :func:`parse_address` does not take. An address is
    tried first, so ``2001:db8::1:80`` is one; a port that is missing or out of range spoils
    the whole entry (reference, section 4).
    """
    if text[:1] == "[":
        host, closed, rest = text[1:].partition("]")
        # nginx since 1.27.3 takes "[::1]" without a port; Kong 3.0 to 3.10 embed older ones.
        if not closed or (rest and rest[0] != ":"):
            return None
        port = _port(rest[1:]) if rest else 0
    else:
        host, colon, rest = text.partition(":")
        port = _port(rest) if colon else None
    if port is None or (address := parse_address(host)) is None:
        return None
    return (*address, port)


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
    number = 0
    for part in parts:
        octet = bounded_decimal(part, 255) if part else 0
        if octet is None:
            return None
        number = number << 8 | octet
    return None if number == 0xFFFFFFFF else number


def _ipv4_text(number: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


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
            parts = text[colon + 1 :].split(".")
            number = _odd_ipv4(parts) if len(parts) == 4 else None
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
        tail = _ipv4_text(groups[6] << 16 | groups[7])
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
