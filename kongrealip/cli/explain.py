"""``kongrealip explain``: why this client, hop by hop."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import click

from kongrealip.address import Address
from kongrealip.cli import options
from kongrealip.cli.pasted import (
    Pasted,
    read_curl,
    read_header,
    read_peer,
    read_preamble,
    read_request,
    wrong,
)
from kongrealip.cli.screen import Row, Section, show
from kongrealip.config import Settings
from kongrealip.errors import KongRealIPError
from kongrealip.preamble import Preamble
from kongrealip.preamble.description import describe_preamble
from kongrealip.preamble.dissect import printable
from kongrealip.realip import Request
from kongrealip.realip.explanation import Explanation
from kongrealip.realip.explanation import explain as explain_request
from kongrealip.realip.networks import UNIX
from kongrealip.realip.trace import CLIENT, NO_ADDRESS, NOT_READ, PASSED, Step

_LONGEST_TEXT = 80
_MEANINGS = {PASSED: "good", CLIENT: "chosen", NO_ADDRESS: "bad", NOT_READ: "unread"}


class Words(NamedTuple):
    """What the command line says of the connection and its request."""

    peer: str | None
    uds: bool
    header: tuple[str, ...]
    preamble: str | None
    curl: str | None
    request: str | None


@click.command()
@click.option("--peer", metavar="ADDRESS", help="Who connects: an address, with a port or without, or unix:.")
@click.option("--uds", is_flag=True, help="Somebody connects to a Unix socket, as --peer unix:.")
@click.option(
    "--header",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="May be repeated, in order of arrival. [default: none]",
)
@click.option(
    "--preamble",
    metavar="HEX|FILE|-",
    help="What comes in front, on a proxy_protocol listener. - is standard input. [default: none]",
)
@click.option("--curl", metavar="'curl ...'", help="Take headers, host and scheme from it. [default: none]")
@click.option(
    "--request",
    metavar="FILE|-",
    help="Take them from a raw HTTP/1.1 request, perhaps behind a preamble. [default: none]",
)
@options.conf
@options.env_file
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def explain(conf: str | None, env_file: str | None, as_json: bool, **words: Any) -> None:
    """Show why a request has the client that it has, and what of it could have been forged.

    Reads the settings that serve reads, from the environment: KONG_TRUSTED_IPS [default: nobody],
    KONG_REAL_IP_HEADER [X-Real-IP], KONG_REAL_IP_RECURSIVE [off], KONGREALIP_FORWARDED_HEADERS [trusted],
    KONGREALIP_PREAMBLE_MAX_BYTES [4096], KONGREALIP_PROXY_PROTOCOL_STRICT [off] and the rest.

    \b
    kongrealip explain --peer 10.0.0.5 --header 'X-Forwarded-For: 6.6.6.6, 203.0.113.7'
    """
    # Imported here, as json is: --help needs neither.
    from kongrealip.cli.settings import load_settings

    try:
        settings, _ = load_settings(conf, env_file, os.environ)
    except KongRealIPError as error:
        options.cannot_start(error)
    for warning in settings.warnings:
        click.echo(f"kongrealip: {warning}", err=True)
    found = _explained(Words(**words), settings)
    if as_json:
        import json

        click.echo(json.dumps(describe_explanation(found, settings), indent=2))
    else:
        _show_text(found, settings)


def _explained(words: Words, settings: Settings) -> Explanation:
    peer = _peer(words)
    asked = _asked(words, peer, settings)
    port = None if words.uds or words.peer == UNIX else _listening_port(settings, asked.scheme)
    request = Request(asked.headers, asked.scheme, asked.path, port, None)
    return explain_request(
        settings.rules(), settings.trusted_ips, settings.forwarded_rules(), peer, asked.preamble, request
    )


def _peer(words: Words) -> Address:
    if words.uds and words.peer not in (None, UNIX):
        raise wrong("--uds", f"--peer {words.peer!r} is no Unix socket, leave one of the two out")
    if words.peer is None and not words.uds:
        raise click.UsageError("Who connects? Write --peer ADDRESS, or --uds for a Unix socket.")
    return read_peer(UNIX if words.peer is None else words.peer)


def _asked(words: Words, peer: Address, settings: Settings) -> Pasted:
    """The request, with --header behind what was pasted, and with its preamble."""
    asked = _pasted(words, peer, settings)
    if words.preamble is not None:
        if asked.preamble is not None:
            raise wrong("--preamble", f"{words.preamble!r}: there is one already, leave one of the two out")
        limit, strict = settings.preamble_max_bytes, settings.proxy_protocol_strict
        asked = asked._replace(preamble=read_preamble(words.preamble, limit, strict))
    return asked._replace(headers=[*asked.headers, *map(read_header, words.header)])


def _pasted(words: Words, peer: Address, settings: Settings) -> Pasted:
    if words.curl is not None and words.request is not None:
        raise wrong("--request", f"{words.request!r}: there is --curl already, leave one of the two out")
    if words.curl is not None:
        return read_curl(words.curl, peer)
    if words.request is None:
        return Pasted([])
    if words.request == words.preamble == "-":
        raise wrong(
            "--request", "'-': --preamble reads it already; here it may stand in front of the request"
        )
    return read_request(words.request, settings.preamble_max_bytes, settings.proxy_protocol_strict)


def _listening_port(settings: Settings, scheme: str) -> int | None:
    """Of the first listener for such a scheme."""
    ports = [listen.port for listen in settings.proxy_listen if listen.ssl == (scheme == "https")]
    return ports[0] if ports else None


def describe_explanation(found: Explanation, settings: Settings) -> dict[str, Any]:
    """An explanation as JSON, with its preamble and the rules that decided."""
    preamble = found.resolution.preamble
    return {
        **found.as_dict(),
        "preamble": None if preamble is None else describe_preamble(preamble),
        "rules": {
            "trusted_ips": list(settings.trusted_ips),
            "real_ip_header": settings.real_ip_header,
            "real_ip_recursive": settings.real_ip_recursive,
        },
    }


def _show_text(found: Explanation, settings: Settings) -> None:
    client = found.resolution.client
    sections = [
        Section("settings", _of_settings(settings)),
        Section("from the peer outwards", [_of_step(step, sentence) for step, sentence in found.steps]),
        Section("what could have been forged, ! where something depends on it", _of_forgeable(found)),
        Section("forwarded, as the application sees it", _of_view(found)),
        Section(
            "headers for an upstream",
            [Row((name, _text(value))) for name, value in found.forwarded.upstream_headers.items()],
        ),
    ]
    if found.resolution.preamble is not None:
        sections.insert(1, Section("preamble", [_of_preamble(found.resolution.preamble)]))
    show(f"client {client.ip or 'unknown'}{_port(client.port)}: {found.reason}", sections)


def _of_settings(settings: Settings) -> list[Row]:
    values = {
        "trusted_ips": ", ".join(settings.trusted_ips) or "nobody",
        "real_ip_header": settings.real_ip_header,
        "real_ip_recursive": "on" if settings.real_ip_recursive else "off",
    }
    return [
        Row((key, _text(value), f"({settings.given.get(key, 'default')})")) for key, value in values.items()
    ]


def _of_step(step: Step, sentence: str) -> Row:
    where = f"{step.source}, line {step.line}" if step.line else step.source
    text = _text(step.text) + (_port(step.port) if step.text == step.ip else "")
    return Row((text or "(unknown)", _text(where), sentence), _MEANINGS[step.fate])


def _of_forgeable(found: Explanation) -> list[Row]:
    rows = [
        Row(
            (
                "!" if one.decides else "-",
                f"{one.part}: {_text(one.text)}" if one.text else one.part,
                one.sentence,
            ),
            "bad" if one.decides else "unread",
        )
        for one in sorted(found.forgeable, key=lambda one: not one.decides)
    ]
    return rows or [Row(("nothing: the peer's address is the connection's own",))]


def _of_view(found: Explanation) -> list[Row]:
    view = found.forwarded
    names = ("scheme", "host", "port", "path", "prefix")
    return [
        Row((name, _text(str(value)))) for name in names if (value := getattr(view, name)) not in (None, "")
    ]


def _of_preamble(preamble: Preamble) -> Row:
    what = f"version {preamble.version}, {preamble.command}"
    if preamble.source_ip is None:
        return Row((f"{what}, names nobody",))
    ends = f"{_text(preamble.source_ip)}{_port(preamble.source_port)}"
    if preamble.destination_ip is not None:
        ends += f" to {_text(preamble.destination_ip)}{_port(preamble.destination_port)}"
    return Row((f"{what}, {ends}",))


def _port(port: int | None) -> str:
    return "" if port is None else f" port {port}"


def _text(received: str) -> str:
    """What was received, without anything that a terminal would act on, and not too long."""
    try:
        data = received.encode("latin-1")
    except UnicodeEncodeError:
        data = received.encode("utf-8", "surrogateescape")
    text = printable(data)
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
