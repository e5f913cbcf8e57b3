"""What an explanation holds for programs, and how it names what could have been forged."""

from __future__ import annotations

import re

import pytest

from kongrealip.preamble.writing import v2
from tests.test_explain import BY_PREAMBLE, CLIENT, HERE, explained, forgeable, of_lines

LINES = of_lines("9.9.9.9, 7.7.7.7", "8.8.8.8, 1.1.1.1, 10.1.1.1:90")
TOLD = ("--header", "X-Forwarded-Proto: https", "--header", "X_Forwarded_Host: a")


def test_all_that_a_program_reads() -> None:
    """The names are promised: each of them with its value, sentences aside."""
    found = explained("--peer", "10.0.0.5:40000", *LINES, *TOLD)
    for one in (*found["steps"], *found["forgeable"]):
        assert one.pop("sentence")
    assert found.pop("reason")
    names = ("source", "line", "text", "ip", "port", "fate", "trusted_by")
    assert [tuple(step[name] for name in names) for step in found["steps"]] == [
        ("peer", 0, "10.0.0.5", "10.0.0.5", 40000, "passed", "10.0.0.0/8"),
        ("X-Forwarded-For", 2, "10.1.1.1:90", "10.1.1.1", 90, "passed", "10.0.0.0/8"),
        ("X-Forwarded-For", 2, "1.1.1.1", "1.1.1.1", None, "client", None),
        ("X-Forwarded-For", 2, "8.8.8.8", "8.8.8.8", None, "not read", None),
        ("X-Forwarded-For", 1, "7.7.7.7", "7.7.7.7", None, "not read", None),
        ("X-Forwarded-For", 1, "9.9.9.9", "9.9.9.9", None, "not read", None),
    ]
    assert {tuple(step) for step in found.pop("steps")} == {names}
    assert found == {
        "client": {"ip": "1.1.1.1", "port": None},
        "peer": {"ip": "10.0.0.5", "port": 40000},
        "peer_trusted": True,
        "source": "X-Forwarded-For",
        "decided_by": {
            "source": "X-Forwarded-For", "line": 2, "text": "1.1.1.1",
            "told_by": "10.1.1.1", "trusted_by": "10.0.0.0/8",
        },
        "forgeable": [
            {"part": "X-Forwarded-For", "text": "", "decides": True},
            {"part": "X-Forwarded-For", "text": "9.9.9.9, 7.7.7.7, 8.8.8.8", "decides": False},
            {"part": "X-Forwarded-Proto, x_forwarded_host", "text": "", "decides": True},
            {"part": "X-Forwarded-For", "text": "9.9.9.9, 7.7.7.7", "decides": False},
        ],
        "forwarded": {"scheme": "https", "host": "a", "port": 8000, "path": "/", "prefix": None},
        "upstream_headers": {
            "X-Real-IP": "1.1.1.1", "X-Forwarded-For": "9.9.9.9, 7.7.7.7, 10.0.0.5", "X-Forwarded-Path": "/",
            "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a", "X-Forwarded-Port": "8000",
        },
        "preamble": None,
        "rules": {
            "trusted_ips": ["10.0.0.0/8"], "real_ip_header": "X-Forwarded-For", "real_ip_recursive": True,
        },
    }  # fmt: skip


def test_a_preamble_is_named_as_one() -> None:
    preamble = ("--preamble", v2(CLIENT, HERE).hex())
    assert forgeable(*preamble, **BY_PREAMBLE) == {("preamble", "", True)}
    assert forgeable(*preamble, **{**BY_PREAMBLE, "KONG_TRUSTED_IPS": ""}) == {("preamble", "", False)}
    found = explained("--peer", "10.0.0.5", *preamble, **BY_PREAMBLE)
    assert [(step["source"], step["line"]) for step in found["steps"]] == [("peer", 0), ("proxy_protocol", 0)]
    junk = ("--preamble", b"PROXY TCP4 a.b 10.0.0.9 1 2\r\n".hex())
    assert forgeable(*junk, **BY_PREAMBLE) == {("preamble", "a.b", True)}


def test_one_line_of_a_peer_that_is_not_believed() -> None:
    sent = ("X-Forwarded-For", "1.1.1.1", False)
    assert forgeable(*of_lines("1.1.1.1"), KONG_TRUSTED_IPS="") == {("X-Forwarded-For", "", False), sent}


def test_what_does_not_reach_an_upstream_is_not_told() -> None:
    """Kong's limit of lines counts here as well."""
    sent = ("X-Forwarded-For", "1.1.1.1", False)
    args = ("--header", "Accept: x", *of_lines("1.1.1.1"))
    assert sent in forgeable(*args)
    assert sent not in forgeable(*args, KONG_LUA_MAX_REQ_HEADERS="1")


@pytest.mark.parametrize(
    ("args", "environ"),
    [
        (of_lines("1.1.1.1"), {"KONG_TRUSTED_IPS": "192.0.2.1"}),
        (of_lines("6.6.6.6, junk, 10.1.1.1"), {}),
        (of_lines("10.1.1.1"), {}),
        (["--header", "X-Real-IP: 1.1.1.1"], {"KONG_REAL_IP_HEADER": "X-Real-IP"}),
    ],
)
def test_each_is_said_in_words(args: list[str], environ: dict[str, str]) -> None:
    found = explained(
        "--peer", "10.0.0.5", *args,
        **{"KONG_TRUSTED_IPS": "10.0.0.0/8", "KONG_REAL_IP_HEADER": "X-Forwarded-For",
           "KONG_REAL_IP_RECURSIVE": "on", **environ},
    )  # fmt: skip
    assert found["forgeable"]
    for one in found["forgeable"]:
        assert " " in one["sentence"]


def test_whoever_hides_hides_behind_the_client() -> None:
    found = explained("--peer", "10.0.0.5", *of_lines("junk, 10.1.1.1"))
    (hiding,) = (one for one in found["forgeable"] if one["text"] == "junk")
    assert found["client"]["ip"] == "10.1.1.1"
    assert "10.1.1.1" in hiding["sentence"].split(" ", 1)[1]


def test_the_setting_that_is_advised_helps() -> None:
    args = ("--peer", "10.0.0.5", "--preamble", v2(CLIENT, HERE).hex(), *TOLD)
    found = explained(*args, **BY_PREAMBLE)
    (told,) = (one for one in found["forgeable"] if one["decides"] and one["part"] != "preamble")
    advised = re.search(r": set (\w+)=(\w+)$", told["sentence"])
    assert advised is not None
    found = explained(*args, **BY_PREAMBLE, **{advised[1]: advised[2]})
    assert {one["part"] for one in found["forgeable"] if one["decides"]} == {"preamble"}
