"""What Kong's own code made of configurations: every public vector but those of ip_tools,
which describe helpers of Kong's that have no counterpart here."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from kongrealip import Settings, SettingsError
from kongrealip.config.kongconf import array, nginx_word, parse_file, parse_value
from kongrealip.config.listen import HTTP_FLAGS, STREAM_FLAGS, Listen, parse_listen, parse_listens
from kongrealip.realip import KongTrust
from tests import golden
from tests.nginx import starts_with

NGINX = "1.31.3"


def vectors(topic: str) -> pytest.MarkDecorator:
    found = golden.topic("kong_config", topic)
    assert found
    return pytest.mark.parametrize("vector", found, ids=[vector["id"] for vector in found])


def test_no_topic_is_forgotten() -> None:
    topics = {vector["topic"] for vector in golden.load("kong_config")}
    tested = {"parse_value", "conf_file", "listen", "trusted_ips", "port_maps", "precedence", "is_trusted"}
    assert topics == tested | {"ip_tools"}


@vectors("parse_value")
def test_parse_value(vector: golden.Vector) -> None:
    given = vector["input"]
    value = parse_value(given["value"], given["type"])
    expected = vector["expect"]["value"]
    if isinstance(expected, dict):
        assert isinstance(value, float)
        assert math.isnan(value)
        assert expected == {"number": "nan"}
    else:
        assert value == expected
        assert isinstance(value, bool) == isinstance(expected, bool)


@vectors("conf_file")
def test_conf_file(vector: golden.Vector) -> None:
    # The vectors show that a section began; to Kong and to us its contents are lost.
    expected = {key: value for key, value in vector["expect"]["values"].items() if value != "(section)"}
    assert parse_file(vector["input"]["file"]) == expected


def flags_for(key: str) -> tuple[str, ...]:
    return STREAM_FLAGS if key == "stream_listen" else HTTP_FLAGS


def kong_listener(listen: Listen) -> dict[str, Any]:
    flags = [flag for flag in listen.flags if flag != "http2"]
    text = " ".join((f"{listen.host}:{listen.port}", *flags))
    return {"ip": listen.host, "port": listen.port, "flags": sorted(listen.flags), "listener": text}


@vectors("listen")
def test_listen_by_kongs_grammar(vector: golden.Vector) -> None:
    key, value = vector["input"]["key"], vector["input"]["value"]
    if vector["expect"]["ok"]:
        entries = array(value)
        listens = [] if entries[0] == "off" else [parse_listen(entry, flags_for(key)) for entry in entries]
        expected = [{**entry, "port": int(entry["port"])} for entry in vector["expect"]["listeners"]]
        assert [kong_listener(listen) for listen in listens] == expected
    else:
        _, problems = parse_listens(value, flags_for(key))
        assert problems
        assert all("\n" not in problem for problem in problems)


ACCEPTED_BY_KONG = [
    vector for vector in golden.topic("kong_config", "listen") if vector["expect"].get("listeners")
]


@pytest.mark.parametrize("vector", ACCEPTED_BY_KONG, ids=lambda vector: vector["id"])
def test_listen_and_what_nginx_makes_of_it(vector: golden.Vector) -> None:
    """What Kong accepts and nginx then refuses is an error here, and nothing else is."""
    texts = [entry["listener"] for entry in vector["expect"]["listeners"]]
    stream = vector["input"]["key"] == "stream_listen"
    # A name that does not resolve stops nginx before it can stumble over a second word.
    one_word = not any(" " in entry["ip"] for entry in vector["expect"]["listeners"])
    nginx = one_word and starts_with("".join(f"listen {text};" for text in texts), stream=stream, bind=False)
    _, problems = parse_listens(vector["input"]["value"], flags_for(vector["input"]["key"]))
    assert bool(problems) != nginx


def load(key: str, value: str) -> Settings | list[str]:
    """Settings, or the entries that were refused."""
    try:
        return Settings.load({f"KONG_{key.upper()}": value})
    except SettingsError as error:
        return [_entry(problem, key) for problem in error.problems]


def _entry(problem: str, key: str) -> str:
    match = re.match(rf"KONG_{key.upper()}: entry \d+ (['\"])(.*)\1: ", problem)
    assert match
    return match[2].replace("\\\\", "\\").replace("\\'", "'")


@vectors("trusted_ips")
def test_trusted_ips(vector: golden.Vector) -> None:
    loaded = load("trusted_ips", vector["input"]["value"])
    expect = vector["expect"]
    if not expect["ok"]:
        assert loaded == [re.sub(r".*, got '(.*)'$", r"\1", error) for error in expect["errors"]]
    elif expect.get("nginx_starts", {}).get(NGINX, True):
        assert isinstance(loaded, Settings)
        assert list(loaded.trusted_ips) == expect["trusted_ips"]
    else:
        assert loaded == expect["trusted_ips"]


@vectors("port_maps")
def test_port_maps(vector: golden.Vector) -> None:
    loaded = load("port_maps", vector["input"]["value"])
    expect = vector["expect"]
    if expect["ok"]:
        assert isinstance(loaded, Settings)
        numbers = {entry.kong_port: entry.host_port for entry in loaded.port_maps}
        texts = {entry.kong_port_text: entry.host_port for entry in loaded.port_maps}
        assert [list(pair) for pair in numbers.items()] == expect["host_ports"]["number_keys"]
        assert [list(pair) for pair in texts.items()] == expect["host_ports"]["string_keys"]
    else:
        assert loaded == [re.sub(r".*`\): ", "", error) for error in expect["errors"]]


@vectors("precedence")
def test_precedence(vector: golden.Vector) -> None:
    expect = vector["expect"]
    environ, file = vector["input"]["env"], vector["input"].get("file")
    if not (expect["ok"] and expect["nginx_starts"][NGINX]):
        with pytest.raises(SettingsError):
            Settings.load(environ, file)
        return
    settings = Settings.load(environ, file)
    directives = dict(expect["rendered"]["proxy"])
    assert settings.real_ip_header == nginx_word(directives.get("real_ip_header", "X-Real-IP"))
    assert settings.real_ip_recursive == (directives.get("real_ip_recursive", "off").lower() == "on")
    assert list(settings.trusted_ips) == expect["trusted_ips"]
    assert [str(listen) for listen in settings.proxy_listen] == [
        str(parse_listen(text, HTTP_FLAGS)) for text in expect["proxy_listen"] if text != "off"
    ]
    assert bool(settings.port_maps) == bool(expect["port_maps"])


@vectors("is_trusted")
def test_is_trusted(vector: golden.Vector) -> None:
    trust = KongTrust(vector["input"]["trusted_ips"])
    assert [trust.trusts(address) for address in vector["input"]["addresses"]] == vector["expect"]["value"]
