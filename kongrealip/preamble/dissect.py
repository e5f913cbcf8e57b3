"""A preamble field by field, with what nginx and this server make of it.

For bytes from anywhere: nothing in here raises, and what is shown grows with the preamble alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kongrealip.address import ipv4_text, ipv6_text, parse_hop
from kongrealip.errors import PreambleError
from kongrealip.preamble import said
from kongrealip.preamble.header import DEFAULT_LIMIT, parse
from kongrealip.preamble.model import Preamble
from kongrealip.preamble.tlv import CRC32C, NOOP, crc32c, entries
from kongrealip.preamble.v2 import SIGNATURE

_BODY = 16
#: The longest version 2 preamble; a version 1 line of such a length is refused anyway.
LONGEST = _BODY + 0xFFFF
# How much nginx takes in its one read for the preamble: in front of plain HTTP, and of TLS.
_NGINX_PLAIN, _NGINX_TLS = 1024, 4097
_COMMANDS = {0: "LOCAL", 1: "PROXY"}
_FAMILIES = {0: "unspecified", 1: "IPv4", 2: "IPv6", 3: "Unix"}
_TRANSPORTS = {0: "unspecified", 1: "stream", 2: "datagram"}
# By family: how many bytes an address has. A Unix path has no port behind it.
_WIDTHS = {1: 4, 2: 16, 3: 108}
_UNIX = 3
_NAMES = {
    said.ALPN: "ALPN", said.AUTHORITY: "authority", CRC32C: "CRC32C", NOOP: "padding",
    said.UNIQUE_ID: "unique id", said.SSL_TYPE: "SSL", said.NETNS: "netns", said.AWS: "AWS",
    said.GOOGLE: "Google", said.AZURE: "Azure",
}  # fmt: skip
_SSL_NAMES = {
    said.SSL_VERSION: "version", said.SSL_CN: "common name", said.SSL_CIPHER: "cipher",
    said.SSL_SIGNATURE: "signature", said.SSL_KEY: "key",
}  # fmt: skip
_TEXTS = {said.ALPN, said.AUTHORITY, said.NETNS, *_SSL_NAMES}
_SSL_FLAGS = ((1, "over TLS"), (2, "certificate in this connection"), (4, "certificate in this session"))
_SSL_FIXED, _HEAD_OF_TLV = 5, 3
_CHECKSUM_BYTES = 4
_MOST_SHOWN = 48


class Field(NamedTuple):
    """One field: where it begins, how many bytes it has, its name, and its value in words.

    ``depth`` is 1 for what stands inside of the field before.
    """

    offset: int
    length: int
    name: str
    value: str
    depth: int = 0


class Dissection(NamedTuple):
    """``verdicts`` are pairs: who, and what it would do with these bytes."""

    fields: tuple[Field, ...]
    verdicts: tuple[tuple[str, str], ...]


def dissect(data: bytes) -> Dissection:
    """Take apart what ``data`` begins with, be it a whole preamble, a part of one or something else."""
    fields = _of_v2(data) if data.startswith(SIGNATURE) else _of_v1(data)
    return Dissection(tuple(fields), tuple(_verdicts(data)))


def printable(data: bytes) -> str:
    """As text without anything that a terminal would act on; what is no UTF-8 is shown in escapes."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _shortened(data: bytes) -> str:
    more = f"... ({len(data)} bytes)" if len(data) > _MOST_SHOWN else ""
    return printable(data[:_MOST_SHOWN]) + more


def _hexadecimal(data: bytes) -> str:
    more = f"... ({len(data)} bytes)" if len(data) > _MOST_SHOWN else ""
    return data[:_MOST_SHOWN].hex() + more


def _of_v1(data: bytes) -> Iterator[Field]:
    found = _parsed(data, len(data) + 1)
    if not isinstance(found, tuple):
        end = data.find(b"\n", 0, LONGEST) + 1 or min(len(data), LONGEST)
        yield Field(0, end, "no preamble" if found else "beginning", _shortened(data[:end]))
        return
    preamble, end = found
    # UNKNOWN needs no blank behind it, and anything may follow.
    words = [b"PROXY", data[6 : end - 2]] if preamble.source_ip is None else data[: end - 2].split(b" ")
    names = ("protocol", "family", "source", "destination", "source port", "destination port")
    place = 0
    for name, word in zip(names, words, strict=False):
        yield Field(place, len(word), name, _shortened(word))
        place += len(word) + 1
    yield Field(end - 2, 2, "line end", "CR LF")
    yield from _behind(data, end)


def _of_v2(data: bytes) -> Iterator[Field]:
    yield Field(0, 12, "signature", "version 2")
    if len(data) < _BODY:
        if data[12:]:
            yield Field(12, len(data) - 12, "part of the head", data[12:].hex())
        yield from _missing(data, _BODY)
        return
    command, kind = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    named = _COMMANDS.get(command & 15, f"{command & 15}, undefined")
    yield Field(12, 1, "version, command", f"{command >> 4}, {named}")
    family = _FAMILIES.get(kind >> 4, f"{kind >> 4}, undefined")
    transport = _TRANSPORTS.get(kind & 15, f"{kind & 15}, undefined")
    yield Field(13, 1, "family, transport", f"{family}, {transport}")
    yield Field(14, 2, "length", f"{length}, so {_BODY + length} bytes in all")
    end = _BODY + length
    yield from _body(data[:end], kind >> 4, command & 15, end)
    yield from _missing(data, end) if len(data) < end else _behind(data, end)


def _missing(data: bytes, end: int) -> Iterator[Field]:
    yield Field(len(data), end - len(data), "missing", f"{end - len(data)} bytes are still to come")


def _behind(data: bytes, end: int) -> Iterator[Field]:
    if data[end:]:
        what = "TLS: " if data[end : end + 2] == b"\x16\x03" else ""
        yield Field(end, len(data) - end, "behind it", what + _shortened(data[end:]))


def _body(header: bytes, family: int, command: int, end: int) -> Iterator[Field]:
    """Addresses and TLVs, as far as they are there."""
    width = _WIDTHS.get(family, 0)
    tlvs = _BODY + 2 * width + (0 if family == _UNIX else 4)
    if command == 0 or not width or end < tlvs:
        if header[_BODY:]:
            why = "too short for addresses" if command and width else "not read"
            yield Field(_BODY, len(header) - _BODY, why, _hexadecimal(header[_BODY:]))
        return
    if len(header) < tlvs:
        if header[_BODY:]:
            yield Field(_BODY, len(header) - _BODY, "part of addresses", _hexadecimal(header[_BODY:]))
        return
    yield from _addresses(header, family, width)
    yield from _tlvs(header, tlvs, end)


def _addresses(header: bytes, family: int, width: int) -> Iterator[Field]:
    place = _BODY
    for name in ("source", "destination"):
        yield Field(place, width, name, address_text(family, header[place : place + width]))
        place += width
    if family != _UNIX:
        for name in ("source port", "destination port"):
            yield Field(place, 2, name, str(int.from_bytes(header[place : place + 2], "big")))
            place += 2


def address_text(family: int, packed: bytes) -> str:
    """Bytes of an address as nginx prints them; of a Unix path as far as its first zero."""
    if family == 1:
        return ipv4_text(*packed)
    if family == _UNIX:
        return printable(packed.partition(b"\0")[0]) or "none"
    return ipv6_text([int.from_bytes(packed[place : place + 2], "big") for place in range(0, 16, 2)])


def _tlvs(header: bytes, place: int, end: int) -> Iterator[Field]:
    has_checksum = False
    for kind, start, value in entries(header, place):
        place = start + len(value)
        name = f"TLV 0x{kind:02x} {_NAMES.get(kind, '')}".rstrip()
        if kind == CRC32C:
            meaning = "a second one, not checked" if has_checksum else _checksum(header, start, value, end)
            has_checksum = True
        else:
            meaning = _meaning(kind, value)
        yield Field(start - _HEAD_OF_TLV, len(value) + _HEAD_OF_TLV, name, meaning)
        if kind == said.SSL_TYPE:
            yield from _inside_ssl(value, start)
    yield from _broken(header, place, len(header) == end)


def _broken(area: bytes, place: int, is_whole: bool, depth: int = 0) -> Iterator[Field]:
    if place < len(area):
        name = "broken TLV" if is_whole else "part of a TLV"
        yield Field(place, len(area) - place, name, _hexadecimal(area[place:]), depth)


def _meaning(kind: int, value: bytes) -> str:
    tlvs = said.TLVs({kind: value})
    if kind in _TEXTS:
        return _shortened(value)
    if kind == NOOP:
        return f"{len(value)} bytes"
    if kind == said.SSL_TYPE:
        return _flags(value)
    known: dict[int, tuple[str, object]] = {
        said.AWS: ("VPC endpoint", tlvs.aws_vpc_endpoint_id and _shortened(value[1:])),
        said.GOOGLE: ("PSC connection", tlvs.google_psc_connection_id),
        said.AZURE: ("link", tlvs.azure_link_id),
    }
    name, meaning = known.get(kind, ("", None))
    if meaning is not None:
        return f"{name} {meaning}"
    is_text = len(value) > 2 and value.isascii() and value.decode("ascii").isprintable()
    return _hexadecimal(value) + (f" {_shortened(value)!r}" if is_text else "")


def _flags(value: bytes) -> str:
    ssl = said.TLVs({said.SSL_TYPE: value}).ssl
    if ssl is None:
        return f"too short: {value.hex()}"
    flags = ", ".join(name for bit, name in _SSL_FLAGS if ssl.client & bit) or "not over TLS"
    verified = "and verified" if ssl.client_verified else "none verified"
    return f"0x{ssl.client:02x} {flags}; verify {ssl.verify}, {verified}"


def _inside_ssl(value: bytes, start: int) -> Iterator[Field]:
    place = _SSL_FIXED
    for kind, inner, text in entries(value, _SSL_FIXED):
        place = inner + len(text)
        name = f"TLV 0x{kind:02x} {_SSL_NAMES.get(kind, '')}".rstrip()
        meaning = _shortened(text) if kind in _TEXTS else _hexadecimal(text)
        yield Field(start + inner - _HEAD_OF_TLV, len(text) + _HEAD_OF_TLV, name, meaning, 1)
    for field in _broken(value, place, True, 1):
        yield field._replace(offset=field.offset + start)


def _checksum(header: bytes, start: int, value: bytes, end: int) -> str:
    if len(value) != _CHECKSUM_BYTES:
        return f"wrong: {len(value)} bytes, and not 4"
    if len(header) < end:
        return f"0x{value.hex()}, cannot be checked before the rest is there"
    right = crc32c(header[:start] + bytes(_CHECKSUM_BYTES) + header[start + _CHECKSUM_BYTES :])
    return f"0x{value.hex()}, {'right' if int.from_bytes(value, 'big') == right else f'wrong: 0x{right:08x}'}"


def _parsed(data: bytes, limit: int, strict: bool = False) -> tuple[Preamble, int] | PreambleError | None:
    try:
        return parse(data, limit, strict)
    except PreambleError as error:
        return error


def _verdicts(data: bytes) -> Iterator[tuple[str, str]]:
    yield "nginx", _verdict_of_nginx(_parsed(data, len(data) + LONGEST))
    for who, strict in (("server", False), ("strict server", True)):
        found = _parsed(data, DEFAULT_LIMIT, strict)
        yield who, "waits for the rest, until the deadline" if found is None else _verdict(found)


def _verdict_of_nginx(found: tuple[Preamble, int] | PreambleError | None) -> str:
    if found is None:
        return "closes the connection: not whole in the first read"
    if isinstance(found, tuple):
        if found[1] > _NGINX_TLS:
            return f"closes the connection: more than {_NGINX_TLS} bytes"
        if found[1] > _NGINX_PLAIN:
            limit = f"client_header_buffer_size, by default {_NGINX_PLAIN} bytes"
            return f"{_verdict(found)}; in front of plain HTTP it closes: more than {limit}"
        return _verdict(found)
    return f"closes the connection: {found}"


def _verdict(found: tuple[Preamble, int] | PreambleError) -> str:
    if isinstance(found, PreambleError):
        return f"refuses it ({found.reason}): {found}"
    preamble, end = found
    if preamble.source_ip is None:
        return f"accepts {end} bytes, which name nobody"
    source = _shortened(preamble.source_ip.encode())
    if parse_hop(preamble.source_ip) is None:
        return f"accepts {end} bytes, which name {source!r}: no address, so nobody"
    return f"accepts {end} bytes, which name {source} port {preamble.source_port}"
