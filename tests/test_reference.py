"""docs/reference.md has every variable, option, metric and field, and says of each what is so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kongrealip.cli.main import cli
from kongrealip.cli.whoami import describe
from kongrealip.config import Settings, proxy, relay, settings
from kongrealip.config.listen import HTTP_FLAGS, STREAM_FLAGS
from kongrealip.config.names import READ, READ_OF_OURS
from kongrealip.config.source import Source
from kongrealip.middleware.asgi import RealIPMiddleware
from kongrealip.pytest_plugin import StartServer
from kongrealip.relay.server import REFUSALS as REFUSALS_OF_THE_RELAY
from kongrealip.server import status
from kongrealip.server.counters import REFUSALS
from tests.running import wait_until

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
NAMES = {f"KONG_{name.upper()}": name for name in READ} | {
    f"KONGREALIP_{name.upper()}": name for name in READ_OF_OURS
}
# What there is where a default is told in words.
EMPTY = (None, (), "", False)
WORDS = {
    "nobody", "everybody", "none", "unset", "self-signed", "those of the suite", "those of the system",
    "this process alone", "half of the connections",
}  # fmt: skip
FIELDS = {
    "nginx_proxy_real_ip_header": "real_ip_header",
    "nginx_proxy_real_ip_recursive": "real_ip_recursive",
    "nginx_main_worker_processes": "nginx_worker_processes",
    "nginx_proxy_client_header_timeout": "client_header_timeout",
    "nginx_http_client_header_timeout": "client_header_timeout",
    "nginx_sproxy_ssl_client_certificate": "client_ca",
    "nginx_sproxy_ssl_verify_client": "client_verify",
    "upstream": "upstreams",
}
# What an example cannot do without.
COMPANIONS = {
    "KONG_SSL_CERT": {"KONG_SSL_CERT_KEY": "/k"},
    "KONG_SSL_CERT_KEY": {"KONG_SSL_CERT": "/c"},
    "KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT": {"KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE": "/c"},
}
# How a value is read, and the name that the document has for it, the more special first.
KINDS = {
    "networks": "networks", "listens": "listeners", "switch": "switch", "choice": "choice",
    "seconds": "time", "number": "number", "number_or_auto": "number or `auto`", "log_path": "path",
    "pem_list": "PEM list", "pem": "PEM", "nginx_text": "directive", "text": "text",
}  # fmt: skip


def section(heading: str) -> str:
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{2,3}} |\Z)", TEXT, re.M | re.S)
    assert found, heading
    return found[2]


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of each row of the table whose first column has this heading."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not cells[0].startswith("---"):
            found.append(cells)
    return found


def ticked(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


TOLD = [
    (loader, row)
    for heading, loader in [
        ("Who is the client", "serve"),
        ("Scheme, host and the rest", "serve"),
        ("Listeners and preambles", "serve"),
        ("TLS", "serve"),
        ("Processes and limits", "serve"),
        ("Logs and status", "serve"),
        ("The relay", "relay"),
        ("The proxy", "proxy"),
    ]
    for row in rows(section(heading), "variable")
]
EACH_VARIABLE = pytest.mark.parametrize(
    ("loader", "row"), TOLD, ids=[f"{loader}: {ticked(row[0])[0]}" for loader, row in TOLD]
)


def values(loader: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Every setting, but for what says where it came from."""
    if loader == "serve":
        found: dict[str, Any] = Settings.load(environ)._asdict()
    elif loader == "relay":
        both = relay.load_relay(environ)
        found = {**both[0]._asdict(), **both[1]._asdict()}
    else:
        of_proxy = proxy.load_proxy(environ)
        found = {**of_proxy[0]._asdict(), **of_proxy[1]._asdict()}
    return {key: value for key, value in found.items() if key not in ("given", "warnings")}


class Recording(Source):
    """Takes down how each key is read."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.read: dict[str, dict[str, tuple[Any, ...]]] = {}


def _recorded(name: str) -> Callable[..., Any]:
    original = getattr(Source, name)

    def reading(self: Recording, key: Any, *arguments: Any) -> Any:
        # The spellings of a directive are its keys.
        spelt = arguments[1:] if name == "nginx_text" else key if isinstance(key, tuple) else (key,)
        for one in spelt:
            self.read.setdefault(one, {})[name] = arguments
        return original(self, key, *arguments)

    return reading


for _name in KINDS:
    setattr(Recording, _name, _recorded(_name))


def read_by(loader: str) -> dict[str, dict[str, tuple[Any, ...]]]:
    source = Recording({}, {})
    readers = {"serve": settings.read, "relay": relay._read, "proxy": proxy._read}
    readers[loader](source)
    return source.read


def test_every_variable_has_its_row() -> None:
    assert {ticked(row[0])[0] for _, row in TOLD} == set(NAMES)


@EACH_VARIABLE
def test_the_default_is_what_there_is_without_it(loader: str, row: list[str]) -> None:
    (variable,), default = ticked(row[0]), row[2]
    if told := ticked(default):
        environ = {**COMPANIONS.get(variable, {}), variable: told[0]}
        assert values(loader, environ) == values(loader, COMPANIONS.get(variable, {}))
    else:
        assert default in WORDS
        key = FIELDS.get(NAMES[variable], NAMES[variable])
        assert default == "unset" or values(loader, {})[key] in EMPTY


@EACH_VARIABLE
def test_the_example_can_be_used_and_changes_something(loader: str, row: list[str]) -> None:
    (variable,), (example,) = ticked(row[0]), ticked(row[3])
    key = FIELDS.get(NAMES[variable], NAMES[variable])
    changed = values(loader, {**COMPANIONS.get(variable, {}), variable: example})
    assert changed[key] != values(loader, {})[key]


@EACH_VARIABLE
def test_the_type_is_how_it_is_read(loader: str, row: list[str]) -> None:
    ways = {**read_by("serve"), **read_by(loader)}[NAMES[ticked(row[0])[0]]]
    kind = next(name for name in KINDS if name in ways)
    assert row[1] == KINDS[kind]
    if kind == "choice":
        assert set(ways[kind][0]) <= set(ticked(row[5]))
    if kind == "number":
        assert f"from {ways[kind][0]} to {ways[kind][1]}" in row[5]


@EACH_VARIABLE
def test_who_goes_by_it(loader: str, row: list[str]) -> None:
    readers = row[4].split()
    assert readers == {"relay": ["R"], "proxy": ["P"]}.get(loader, readers)
    assert set(readers) <= set("MSPR")


class Watched(Settings):
    """Takes down which fields are asked for."""

    asked: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Watched.asked.add(name)
        return super().__getattribute__(name)


def test_what_the_middleware_goes_by() -> None:
    RealIPMiddleware(Starlette(), Watched())
    told = {NAMES[ticked(row[0])[0]] for _, row in TOLD if "M" in row[4]}
    assert {FIELDS.get(key, key) for key in told} == Watched.asked & set(Settings._fields)


def test_flags() -> None:
    told = {flag for row in rows(section("Listeners and preambles"), "flag") for flag in ticked(row[0])}
    for flag in (*HTTP_FLAGS, *STREAM_FLAGS):
        word = flag.replace("[0-9]+", "N")
        assert word in told or (
            word.startswith("so_keepalive=[") and "so_keepalive=idle:interval:count" in told
        )


# -- commands ----------------------------------------------------------------------------------

assert isinstance(cli, click.Group)
COMMANDS = {
    name: command
    for name in cli.list_commands(click.Context(cli))
    if (command := cli.get_command(click.Context(cli), name))
}


def table_of(name: str) -> list[list[str]]:
    (heading,) = re.findall(rf"^### (`kongrealip {name}\b.*)$", TEXT, re.M)
    return rows(section(heading), "option")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_its_row(name: str) -> None:
    options = {
        tuple(option for option in [*one.opts, *one.secondary_opts])
        for one in COMMANDS[name].params
        if isinstance(one, click.Option)
    }
    assert {tuple(ticked(row[0])) for row in table_of(name)} == options


def test_every_command_has_its_section() -> None:
    assert set(re.findall(r"^### `kongrealip (\w+)", TEXT, re.M)) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_told_of_an_option(name: str) -> None:
    options = {one.opts[0]: one for one in COMMANDS[name].params if isinstance(one, click.Option)}
    for first, variable, default, _ in table_of(name):
        option = options[ticked(first)[0]]
        in_help = re.search(r"\[(?:(KONG\w+), )?default: (.*)\]", option.help or "")
        if in_help:
            assert default == in_help[2]
            assert in_help[1] is None or ticked(variable) == [in_help[1]]
        elif option.is_flag:
            assert default == ("on" if option.default is True else "off")
        elif ticked(default):
            assert ticked(default) == [option.default]
        else:
            assert default in ("none", "off", "this process alone")
            assert not isinstance(option.default, str)
        for one in ticked(variable):
            assert one in NAMES


@pytest.mark.parametrize("name", ["relay", "proxy"])
def test_options_with_a_variable_name_it(name: str) -> None:
    for first, variable, *_ in table_of(name):
        own = f"KONGREALIP_{ticked(first)[0][2:].replace('-', '_').upper()}"
        assert own not in NAMES or ticked(variable) == [own]


# -- what comes out ----------------------------------------------------------------------------


def test_metrics() -> None:
    told = {ticked(row[0])[0]: tuple(ticked(row[1])) for row in rows(section("Status and metrics"), "metric")}
    assert told == {family.name: family.labels for family in status._FAMILIES}


def test_reasons() -> None:
    told = [
        word for row in rows(section("Status and metrics"), "reason of a refusal") for word in ticked(row[0])
    ]
    assert told == [*REFUSALS, *REFUSALS_OF_THE_RELAY]


def test_log_lines_are_in_the_code() -> None:
    """Each fixed part, as the code has it."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "kongrealip").rglob("*.py"))
    code = re.sub(r"\"\n\s+f?\"", "", code)
    for row in rows(section("Log lines"), "line"):
        if row[0] == "`Invalid HTTP request received.`":
            # uvicorn's.
            continue
        for part in ticked(row[0]):
            assert part.strip(" ,:") in code, part


SENT = {
    "User-Agent": "a", "Referer": "b", "X-Kong-Request-Id": "c",
    "X-Forwarded-Prefix": "/p",
}  # fmt: skip


def test_members_of_the_access_log(kongrealip_server: StartServer, tmp_path: Path) -> None:
    server = kongrealip_server(
        Starlette(), "proxy_protocol", KONG_TRUSTED_IPS="127.0.0.1", KONG_REAL_IP_HEADER="proxy_protocol",
        KONG_PROXY_ACCESS_LOG=str(tmp_path / "log"), KONGREALIP_ACCESS_LOG_FORMAT="json",
    )  # fmt: skip
    server.get("/?a=b", headers=SENT, preamble=server.v2("203.0.113.7", 51000))
    told = [word for row in rows(section("The access log"), "member") for word in ticked(row[0])]
    # It is written behind the answer.
    wait_until(lambda: (tmp_path / "log").read_text().endswith("\n"), "the line")
    assert set(told) == set(json.loads((tmp_path / "log").read_text()))


def test_fields_of_whoami(kongrealip_server: StartServer) -> None:
    def index(request: Request) -> JSONResponse:
        return JSONResponse(describe(request))

    server = kongrealip_server(
        Starlette(routes=[Route("/", index)]), "proxy_protocol", KONG_TRUSTED_IPS="127.0.0.1"
    )
    seen = server.get("/", headers=SENT, preamble=server.v2("203.0.113.7", 51000)).json()
    table = rows(section("What the built-in application answers"), "field")
    assert [word for row in table for word in ticked(row[0])] == list(seen)
    for name in ("forwarded", "preamble"):
        (row,) = [row for row in table if ticked(row[0]) == [name]]
        assert [word for word in ticked(row[1]) if word != "null"] == list(seen[name])
