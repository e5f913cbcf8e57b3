"""The page's box: what the running settings would make of a peer, header lines and a preamble.

The answer is that of ``kongrealip explain``. Nothing is kept, and no file is read: what the box holds
comes from whoever can reach the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import parse_qs

import click
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from kongrealip.address import Address
from kongrealip.cli.pasted import read_header, read_hexadecimal, read_peer, shortened, wrong
from kongrealip.config import Settings
from kongrealip.errors import PreambleError
from kongrealip.preamble import Preamble, parse
from kongrealip.realip import Request
from kongrealip.realip.explanation import Explanation, explain
from kongrealip.realip.networks import UNIX

#: More than the longest preamble that is accepted by default takes, and more than a head of HTTP.
MOST_BYTES = 1 << 16
#: Explaining asks the walk again for each entry, so its work grows with their square.
MOST_ENTRIES = 100
_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 10
_LONGEST_LINE = 300


class Form(NamedTuple):
    """The box as it was filled in; ``headers`` are lines, ``preamble`` is hexadecimal."""

    peer: str = ""
    headers: str = ""
    preamble: str = ""


class Trial(NamedTuple):
    """What came of a form: ``found``, or the ``problem`` with it in one line, for the field ``field``.

    ``status`` is that of the answer; ``headers`` are those that were tried.
    """

    form: Form
    status: int = 200
    found: Explanation | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    problem: str = ""
    field: str = ""


class Explaining:
    """Settings, ready to explain requests by."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._rules = settings.rules()
        self._forwarded = settings.forwarded_rules()

    def can(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether these headers have no more entries than can be explained while others wait."""
        name = self._rules.header_name
        lines = (value.replace(b",", b" ") for key, value in headers if key == name)
        # A line without entries is a step as well.
        return sum(max(1, len(line.split())) for line in lines) <= MOST_ENTRIES

    def explain(self, peer: Address, preamble: Preamble | None, request: Request) -> Explanation:
        """Why this request has the client that it has."""
        return explain(self._rules, self.settings.trusted_ips, self._forwarded, peer, preamble, request)


def is_trial(request: HTTPRequest) -> bool:
    """Whether the request comes from the box, or from what speaks like it."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return request.method == "POST" and content_type == _FORM


async def try_form(http: HTTPRequest, own: Request, explaining: Explaining) -> Trial:
    """Explain what a form holds. What it does not say, scheme and path, is that of ``own``."""
    body = await _body(http)
    if body is None:
        return Trial(Form(), 413, problem=f"The form is longer than {MOST_BYTES} bytes")
    try:
        form = _form(body)
    except ValueError:
        return Trial(Form(), 400, problem=f"The form has more than {_MOST_FIELDS} fields")
    try:
        return _tried(form, own, explaining)
    except click.BadParameter as error:
        field = str(error.param_hint)
        return Trial(form, 400, problem=f"{field.capitalize()}: {_line(error.message)}", field=field)


def _line(message: str) -> str:
    """A message that may quote all that was typed, with as much of it as a line holds."""
    return message if len(message) <= _LONGEST_LINE else f"{message[:100]} ... {message[-150:]}"


async def _body(request: HTTPRequest) -> bytes | None:
    """The body, or None where it is too long."""
    body = b""
    # Who leaves in the middle is not told anything any more, and is nothing to log.
    with suppress(ClientDisconnect):
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return None
    return body


def _form(body: bytes) -> Form:
    fields: Mapping[str, list[str]] = parse_qs(
        body.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_FIELDS
    )
    return Form(*(fields.get(name, [""])[0] for name in Form._fields))


def _tried(form: Form, own: Request, explaining: Explaining) -> Trial:
    settings = explaining.settings
    peer = _peer(form.peer.strip())
    lines = form.headers.replace("\r\n", "\n").split("\n")
    headers = [read_header(line, "headers") for line in lines if line.strip()]
    if not explaining.can(headers):
        raise wrong(
            "headers", f"more than {MOST_ENTRIES} entries of {settings.real_ip_header}; leave some out"
        )
    preamble = _preamble(form.preamble, settings) if form.preamble.strip() else None
    port = None if peer.ip == UNIX else own.port
    found = explaining.explain(peer, preamble, own._replace(headers=headers, port=port))
    return Trial(form, found=found, headers=headers)


def _peer(text: str) -> Address:
    try:
        return read_peer(text)
    except click.BadParameter as error:
        # By the name of the page's field, and not of the command's option.
        raise wrong("peer", error.message) from error


def _preamble(text: str, settings: Settings) -> Preamble:
    data = read_hexadecimal(text)
    if data is None:
        raise wrong("preamble", f"{shortened(text)!r}: write two hexadecimal digits for each byte")
    try:
        parsed = parse(data, settings.preamble_max_bytes, settings.proxy_protocol_strict)
    except PreambleError as error:
        raise wrong("preamble", f"the server refuses it: {error}") from error
    if parsed is None:
        raise wrong("preamble", f"{len(data)} bytes, and it is not whole")
    if parsed[1] < len(data):
        raise wrong("preamble", f"{len(data) - parsed[1]} bytes stand behind its {parsed[1]}")
    return parsed[0]
