"""What an operator pastes: addresses, header lines, bytes in hexadecimal, curl's command line, a request.

Everything in here ends in click.BadParameter, with the option, the value and what to write instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import click

from kongrealip.address import Address, parse_hop
from kongrealip.errors import PreambleError
from kongrealip.preamble import Preamble, parse
from kongrealip.preamble.v2 import SIGNATURE
from kongrealip.realip.networks import UNIX

Headers = list[tuple[bytes, bytes]]

#: More than the longest preamble takes in any spelling of hexadecimal.
MOST_BYTES = 1 << 20
V1_BEGINNING = b"PROXY "
# Options of curl that a value follows; of others that have one the value would be taken for the URL.
_SHORT_WITH_VALUE = frozenset("AbcCdDeEFhHKmoPQrtTuUwxXyYz")
_LONG_WITH_VALUE = {
    "--cacert", "--cert", "--cert-type", "--connect-timeout", "--connect-to", "--cookie",
    "--cookie-jar", "--data", "--data-ascii", "--data-binary", "--data-raw", "--data-urlencode",
    "--form", "--haproxy-clientip", "--header", "--interface", "--json", "--key", "--max-redirs",
    "--max-time", "--output", "--proxy", "--range", "--referer", "--request", "--resolve", "--retry",
    "--tls-max", "--unix-socket", "--upload-file", "--url", "--url-query", "--user", "--user-agent",
    "--write-out",
}  # fmt: skip
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# xxd and tcpdump -x: an offset, its colon, and text behind two blanks; hexdump -C: bars round the text.
_OF_DUMP = re.compile(r"\s*(?:0[xX])?[0-9a-fA-F]+:\s+(.*?)(?:\s\s.*)?")
_OF_HEXDUMP = re.compile(r"[0-9a-fA-F]{8}(?:\s\s(.*?))?\s*(?:\|.*\|)?")
_FIRST_OF_HEXDUMP = "00000000  "
_BETWEEN_DIGITS = re.compile(r"0[xX]|[\s:,]")


class Pasted(NamedTuple):
    """A request, and the preamble in front of it where it says."""

    headers: Headers
    scheme: str = "http"
    path: bytes = b"/"
    preamble: Preamble | None = None


def wrong(option: str, text: str) -> click.BadParameter:
    return click.BadParameter(text, param_hint=option)


def read_peer(text: str) -> Address:
    """An address with or without a port, or ``unix:``."""
    if text == UNIX:
        return Address(UNIX, None)
    # As the system gives it for a link-local address; the decision leaves the zone out.
    hop = parse_hop(re.sub(r"%[^]]*", "", text))
    if hop is None:
        raise wrong(
            "--peer", f"{text!r}: write 10.0.0.5, 10.0.0.5:40000, 2001:db8::1, [2001:db8::1]:40000 or unix:"
        )
    return Address(hop[0], hop[2] or None)


def read_header(text: str, option: str = "--header") -> tuple[bytes, bytes]:
    """``Name: value`` as a server hands it over: the name in lower case."""
    name, colon, value = text.encode("utf-8", "surrogateescape").partition(b":")
    if not colon or not _NAME.fullmatch(name):
        raise wrong(option, f"{text!r}: write 'Name: value', as in 'X-Forwarded-For: 203.0.113.7'")
    if re.search(rb"[\r\n\0]", value):
        raise wrong(option, f"{text!r}: a value is one line; repeat the option for another header")
    # As the parser has it: what stands behind the value is left to nginx's rules.
    return name.lower(), value.lstrip(b" \t")


def read_bytes(option: str, text: str) -> bytes:
    """The bytes that an option names: hexadecimal, a file, or - for standard input.

    A file may hold the bytes themselves or hexadecimal text.
    """
    if text == "-":
        return _content(option, text, sys.stdin.buffer)
    if not is_file(text):
        found = read_hexadecimal(text)
        if not found:
            raise wrong(
                option, f"{shortened(text)!r}: no such file, and not two hexadecimal digits for each byte"
            )
        return found
    try:
        with open(text, "rb") as file:
            return _content(option, text, file)
    except OSError as error:
        raise wrong(option, f"{text!r}: cannot be read: {error.strerror}") from error


def is_file(text: str) -> bool:
    """Whether there is one of that name. Hexadecimal may be longer than names can be."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _content(option: str, text: str, file: BinaryIO) -> bytes:
    return in_bytes(option, text, file.read(MOST_BYTES + 1))


def in_bytes(option: str, text: str, data: bytes) -> bytes:
    """Content as it was read, of ``text``: as it is, or what it spells."""
    if not data or len(data) > MOST_BYTES:
        raise wrong(option, f"{text!r}: {'empty' if not data else f'longer than {MOST_BYTES} bytes'}")
    if data.startswith((SIGNATURE, V1_BEGINNING)):
        return data
    return read_hexadecimal(data.decode("latin-1")) or data


def read_hexadecimal(text: str) -> bytes | None:
    """Hexadecimal digits with whatever stands between them, also a dump of xxd, hexdump or tcpdump."""
    dump = _OF_HEXDUMP if text.startswith(_FIRST_OF_HEXDUMP) else _OF_DUMP
    lines = [_digits_of(dump, line) for line in text.splitlines()]
    digits = _BETWEEN_DIGITS.sub("", "".join(lines))
    # Not left to fromhex: it would skip blanks that are none of ASCII's.
    return bytes.fromhex(digits) if re.fullmatch("(?:[0-9a-fA-F]{2})+", digits) else None


def _digits_of(dump: re.Pattern[str], line: str) -> str:
    match = dump.fullmatch(line)
    return line if match is None else match[1] or ""


def read_request(text: str, limit: int, strict: bool) -> Pasted:
    """An HTTP/1.1 head with whatever line ends, and perhaps a preamble in front.

    It is read by the server's own parser.
    """
    data = read_bytes("--request", text)
    preamble = None
    if data.startswith((SIGNATURE, V1_BEGINNING)):
        preamble, data = _split("--request", text, data, limit, strict)
    if not data.strip():
        raise wrong("--request", f"{text!r}: nothing but a preamble; give that with --preamble")
    return _parsed_head(text, data)._replace(preamble=preamble)


def read_preamble(text: str, limit: int, strict: bool) -> Preamble:
    """A preamble that the server would take, and nothing behind it."""
    preamble, rest = _split("--preamble", text, read_bytes("--preamble", text), limit, strict)
    if rest:
        what = f"{len(rest)} bytes stand behind it; give both to --request"
        raise wrong("--preamble", f"{shortened(text)!r}: {what}")
    return preamble


def _split(option: str, text: str, data: bytes, limit: int, strict: bool) -> tuple[Preamble, bytes]:
    line, newline, rest = data.partition(b"\n")
    if data.startswith(V1_BEGINNING) and newline and not line.endswith(b"\r"):
        # Pasted, where line ends change.
        data = line + b"\r\n" + rest
    try:
        parsed = parse(data, limit, strict)
    except PreambleError as error:
        what = f"the server refuses it: {error}; see kongrealip decode"
        raise wrong(option, f"{shortened(text)!r}: {what}") from error
    if parsed is None:
        raise wrong(option, f"{shortened(text)!r}: the preamble is not whole; see kongrealip decode")
    return parsed[0], data[parsed[1] :]


def _parsed_head(text: str, data: bytes) -> Pasted:
    import httptools

    lines = [line.removesuffix(b"\r") for line in data.lstrip(b"\r\n").split(b"\n")]
    end = lines.index(b"") if b"" in lines else len(lines)
    head = _Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(b"\r\n".join([*lines[:end], b"", b""]))
    except httptools.HttpParserUpgrade:
        # What comes behind such a head is no HTTP, and does not matter here.
        pass
    except httptools.HttpParserError as error:
        what = f"the server answers 400 to it: {error}; write GET / HTTP/1.1 and header lines"
        raise wrong("--request", f"{text!r}: {what}") from error
    try:
        path = httptools.parse_url(head.url).path
    except httptools.HttpParserInvalidURLError:
        path = None
    return Pasted(head.headers, path=path or head.url)


class _Head:
    """What the parser tells of a head, as the server takes it down."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: Headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def read_curl(text: str, peer: Address) -> Pasted:
    """A command line of curl: the headers that it sends, and the preamble that it can send."""
    headers: Headers = []
    left_out: set[bytes] = set()
    urls: list[str] = []
    client_ip: str | None = None
    for option, value in _curl_options(text):
        if option in ("", "--url"):
            urls.append(value)
        elif option in ("-H", "--header"):
            _take_header(value, headers, left_out)
        elif option == "--haproxy-protocol":
            client_ip = client_ip or peer.ip
        elif option == "--haproxy-clientip":
            client_ip = value
            if parse_hop(value) is None:
                raise wrong("--curl", f"--haproxy-clientip {value!r}: write an IP address")
    if len(urls) != 1:
        raise wrong(
            "--curl",
            f"{shortened(text)!r}: {len(urls) or 'no'} URLs, write one, with its http:// or https://",
        )
    return _of_url(urls[0], headers, left_out, client_ip, peer)


def _take_header(value: str, headers: Headers, left_out: set[bytes]) -> None:
    name, colon, rest = value.partition(":")
    if value.endswith(";") and not colon:
        # How curl is told to send a header without a value.
        headers.append(read_header(f"{value[:-1]}:", "--curl"))
    elif rest.strip() or not colon:
        headers.append(read_header(value, "--curl"))
    else:
        left_out.add(read_header(f"{name}:", "--curl")[0])


def _curl_options(text: str) -> Iterator[tuple[str, str]]:
    """Options with their values; what belongs to none of them has the name ""."""
    import shlex

    try:
        words = shlex.split(re.sub(r"\\\r?\n", " ", text))
    except ValueError as error:
        raise wrong("--curl", f"{shortened(text)!r}: {str(error).lower()}") from error
    if not words or words[0].rpartition("/")[2] != "curl":
        raise wrong("--curl", f"{shortened(text)!r}: write a command line that begins with curl")
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("--"):
            yield word, next(rest, "") if word in _LONG_WITH_VALUE else ""
        elif word.startswith("-"):
            yield from _short_options(word, rest)
        else:
            yield "", word


def _short_options(word: str, rest: Iterator[str]) -> Iterator[tuple[str, str]]:
    """``-sSH value``, and ``-Hvalue``."""
    for place, letter in enumerate(word[1:], 2):
        if letter in _SHORT_WITH_VALUE:
            yield f"-{letter}", word[place:] or next(rest, "")
            return
        yield f"-{letter}", ""


def _of_url(url: str, headers: Headers, left_out: set[bytes], client_ip: str | None, peer: Address) -> Pasted:
    from urllib.parse import urlsplit

    try:
        split = urlsplit(url if "://" in url else f"http://{url}")
        port = split.port
    except ValueError as error:
        raise wrong("--curl", f"{url!r}: {error}") from error
    if split.scheme not in ("http", "https") or not split.hostname:
        raise wrong("--curl", f"{url!r}: write a URL of http or https, with a host")
    own_port = 443 if split.scheme == "https" else 80
    host = split.netloc.rpartition("@")[2].removesuffix(f":{own_port}")
    given = {name for name, _ in headers} | left_out
    if b"host" not in given:
        headers = [(b"host", host.encode("utf-8", "surrogateescape")), *headers]
    preamble = None if client_ip is None else _curls_preamble(client_ip, peer, port or own_port)
    return Pasted(headers, split.scheme, split.path.encode("utf-8", "surrogateescape") or b"/", preamble)


def _curls_preamble(client_ip: str, peer: Address, port: int) -> Preamble:
    """Version 1 from curl's own address, or that of ``--haproxy-clientip``, and from its own port."""
    if peer.ip == UNIX:
        return Preamble(1, "PROXY")
    return Preamble(1, "PROXY", client_ip, peer.port, None, port)
