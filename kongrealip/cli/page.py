"""The page of the built-in application: the way that the client's address took, drawn in HTML.

Everything on it was written by somebody else, so every value passes ``text`` on its way in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from kongrealip.cli.page_parts import named, section, table, text
from kongrealip.cli.page_trial import MOST_BYTES, Form, Trial
from kongrealip.cli.settings import printed
from kongrealip.config import Settings
from kongrealip.realip.explanation import Explanation, Forgeable
from kongrealip.realip.resolve import PEER, PROXY_PROTOCOL
from kongrealip.realip.trace import CLIENT, NO_ADDRESS, NOT_READ, PASSED, Step

# What decides about addresses and what is told of them. Named one by one, so that no key, no path of a
# key and no other secret is ever among them.
_IN_FORCE = (
    "trusted_ips", "real_ip_header", "real_ip_recursive", "proxy_listen", "port_maps", "forwarded_headers",
    "scheme_from_preamble", "replace_host", "replace_root_path", "lua_max_req_headers", "preamble_max_bytes",
    "proxy_protocol_optional_from", "proxy_protocol_strict",
)  # fmt: skip
_PEER = "Who connects: an address, with a port or without, or unix:"
_REQUEST = ("method", "path", "host", "scheme", "tls", "http_version")
_EXAMPLE = "X-Forwarded-For: 6.6.6.6, 203.0.113.7"
_SIGNATURE = "0d0a0d0a000d0a515549540a 21 11 000c ..."


class Shown(NamedTuple):
    """What a page is about.

    ``data`` is what JSON has: of the request, or of what was tried where ``trial`` found something.
    ``service`` is this end of the connection.
    """

    data: Mapping[str, Any]
    found: Explanation
    settings: Settings
    service: str
    trial: Trial | None

    @property
    def is_tried(self) -> bool:
        return self.trial is not None and self.trial.found is not None


@cache
def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


@cache
def headers() -> Mapping[str, str]:
    """What the page is sent with. It may load nothing, run nothing, and be framed by nobody."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def render(shown: Shown) -> str:
    """The whole document."""
    client = _address(shown.found.resolution.client.ip)
    said = "tried" if shown.is_tried else "seen"
    problem = "Not understood: " if shown.trial is not None and shown.trial.problem else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>{problem}{text(client)}, the client as {said}</title>
<link rel="icon" href="data:,">
<style>{_style()}</style>
</head>
<body>
<main>
{_problem(shown.trial)}
{_hero(shown)}
<div class="columns">
<div>{_way(shown)}{_preamble(shown.data["preamble"])}</div>
<div>{_forgeable(shown.found)}{_box(shown)}</div>
</div>
<div class="columns">
<div>{_received(shown)}</div>
<div>{_told(shown.data)}{_in_force(shown.settings)}</div>
</div>
</main>
<footer><p>The same data as JSON: ask with <code>Accept: application/json</code>.</p></footer>
</body>
</html>
"""


def _address(ip: str, port: int | None = None) -> str:
    if port is None:
        return ip or "unknown"
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _breakable(address: str) -> str:
    """A long address is to break between its groups."""
    return text(address).replace(":", ":<wbr>")


def _problem(trial: Trial | None) -> str:
    if trial is None or not trial.problem:
        return ""
    what = f"<strong>Not understood.</strong> {text(trial.problem)}"
    return f'<p class="problem" role="alert" id="problem">{what}</p>'


def _hero(shown: Shown) -> str:
    resolution, step = shown.found.resolution, shown.found.client
    title = "With this, the client would be" if shown.is_tried else "The client of this request is"
    client = _breakable(_address(resolution.client.ip))
    peer = f"{_breakable(_address(*resolution.peer))} {_badge(resolution.peer_trusted)}"
    port = "Not known" if resolution.client.port is None else text(resolution.client.port)
    return f"""<header class="hero">
<h1><span>{title}</span> <b>{client}</b></h1>
<p class="reason why">{text(shown.found.reason)}.</p>
<dl><div><dt>Client's port</dt><dd>{port}</dd></div><div><dt>Source</dt><dd>{text(_source(step))}</dd></div>
<div><dt>Peer</dt><dd>{peer}</dd></div></dl>
{'<p><a href="">Back to your own request</a></p>' if shown.is_tried else ""}
</header>"""


def _source(step: Step) -> str:
    if step.source == PEER:
        return "The connection"
    if step.source == PROXY_PROTOCOL:
        return "The preamble"
    return f"{step.source}, line {step.line}"


def _badge(trusted: bool) -> str:
    return '<i class="badge trusted">trusted</i>' if trusted else '<i class="badge untrusted">not trusted</i>'


def _way(shown: Shown) -> str:
    # The trace begins at the peer, and the way at the client.
    stops = [_stop(step, sentence) for step, sentence in reversed(shown.found.steps)]
    service = f'<b class="address">{text(shown.service)}</b><span>Where the connection ended</span>'
    stops.append(_item("service", "Service", service))
    note = '<p class="note">From the client, or who claims to be one, to this service.</p>'
    return section("way", "The way", note, f'<ol class="way">{"".join(stops)}</ol>')


def _stop(step: Step, sentence: str) -> str:
    address = _address(step.ip, step.port) if step.ip == step.text else step.text
    kind, badge = _kind(step)
    # Of what was never read the badge says all there is.
    sentence = "" if step.fate == NOT_READ else f'<span class="why">{text(sentence)}</span>'
    words = f"<span>{text(_source(step))}</span>{sentence}"
    shown = f'<b class="address">{_breakable(address) or "unknown"}</b> {badge}{words}'
    return _item(f"{kind} is-client" if step.fate == CLIENT else kind, _role(step), shown)


def _item(kind: str, role: str, body: str) -> str:
    return f'<li class="{kind}"><span class="role">{role}</span><div class="stop">{body}</div></li>\n'


def _role(step: Step) -> str:
    if step.fate == PASSED:
        return "Balancer" if step.source == PEER else "Hop"
    return "Client" if step.fate == CLIENT else "Claim"


def _kind(step: Step) -> tuple[str, str]:
    """The class, which draws the shape, and the words."""
    if step.fate == NOT_READ:
        return "unread", '<i class="badge unread">never read</i>'
    if step.fate == NO_ADDRESS:
        return "broken", '<i class="badge broken">no address</i>'
    return "trusted" if step.entry else "untrusted", _badge(step.entry is not None)


def _forgeable(found: Explanation) -> str:
    # What something depends on comes first.
    items = [_forgeable_item(one) for one in sorted(found.forgeable, key=lambda one: not one.decides)]
    nothing = "<p>Nothing: the peer's address is the connection's own.</p>"
    body = f'<ul class="forgeable">{"".join(items)}</ul>' if items else nothing
    return section("forgeable", "What could have been forged", body)


def _forgeable_item(one: Forgeable) -> str:
    kind, word = ("decides", "decides") if one.decides else ("idle", "no effect")
    received = f" <q>{text(one.text)}</q>" if one.text else ""
    sentence = f'<span class="why">{text(one.sentence)}</span>'
    return f'<li class="{kind}"><b>{text(one.part)}</b>{received} <i>{word}</i>{sentence}</li>'


def _received(shown: Shown) -> str:
    data = shown.data
    tables = [named("Headers, in order of arrival", data["headers"])] if data["headers"] else []
    if not shown.is_tried:
        tables.insert(0, named("Request", [(name.replace("_", " "), data[name]) for name in _REQUEST]))
    return section("received", "What was received", *(tables or ["<p>No headers.</p>"]))


def _preamble(preamble: Mapping[str, Any] | None) -> str:
    if preamble is None:
        return ""
    plain = [
        (name.replace("_", " "), value) for name, value in preamble.items() if name not in ("tlvs", "said")
    ]
    tables = [named("Fields", plain)]
    if preamble["tlvs"]:
        rows = ((f"0x{kind}", value) for kind, value in preamble["tlvs"].items())
        tables.append(table("TLVs", ("Type", "Bytes in hexadecimal"), rows))
    if preamble["said"]:
        tables.append(named("What the TLVs say", _flat(preamble["said"])))
    return section("preamble", "The PROXY preamble", *tables)


def _flat(said: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in said.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{name} ")
        else:
            yield before + name.replace("_", " "), value


def _told(data: Mapping[str, Any]) -> str:
    view = [(name, value) for name, value in data["forwarded"].items()]
    return section(
        "told",
        "What is made of it",
        named("As the application sees it", view),
        named("Headers for an upstream", data["upstream_headers"].items()),
    )


def _in_force(settings: Settings) -> str:
    given = settings.given
    # Of an environment file the name would tell how the machine is laid out.
    origins = {key: given.get(key, "default").partition(" in ")[0] for key in _IN_FORCE}
    rows = ((key, printed(key, getattr(settings, key), key in given), origins[key]) for key in _IN_FORCE)
    in_force = table("Those that decide", ("Key", "Value", "From"), rows)
    return section("settings", "Settings in force", in_force)


def _box(shown: Shown) -> str:
    form = _filled(shown)
    fields = (
        _field(shown, "peer", "Peer", _PEER, form.peer),
        _field(shown, "headers", "Headers", f"One on a line, as in {_EXAMPLE}", form.headers),
        _field(shown, "preamble", "Preamble", f"Hexadecimal, or nothing: {_SIGNATURE}", form.preamble),
    )
    note = '<p class="note">Decided by the settings in force. Nothing is sent on, and nothing is kept.</p>'
    button = '<p><button type="submit">Who would be the client?</button></p>'
    return section("try", "Try another", note, f'<form method="post">{"".join(fields)}{button}</form>')


def _filled(shown: Shown) -> Form:
    """As it was sent; at first with what decided about this request."""
    if shown.trial is not None:
        return shown.trial.form
    name = shown.settings.real_ip_header
    lines = [value for key, value in shown.data["headers"] if key == name.lower()]
    peer = shown.found.resolution.peer
    return Form(_address(*peer) if peer.ip else "", "\n".join(f"{name}: {line}" for line in lines))


def _field(shown: Shown, name: str, label: str, hint: str, value: str) -> str:
    wrong = shown.trial is not None and shown.trial.field == name
    described = f'aria-describedby="{name}-hint{" problem" if wrong else ""}"'
    marks = f'id="{name}-field" name="{name}" {described} spellcheck="false" autocomplete="off"'
    marks += ' aria-invalid="true"' if wrong else ""
    if name == "peer":
        control = f'<input {marks} required value="{escape(value)}">'
    else:
        # The first line end is not part of what a textarea holds.
        control = f'<textarea {marks} rows="3" maxlength="{MOST_BYTES}">\n{escape(value)}</textarea>'
    return (
        f'<div class="field"><label for="{name}-field">{label}</label>'
        f'<small id="{name}-hint">{hint}</small>{control}</div>'
    )
