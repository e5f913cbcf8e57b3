"""``kongrealip explain``: the same client as resolve, told of in words, from whatever is pasted."""

from __future__ import annotations

import ipaddress
import json
import os
import pty
import random
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from kongrealip.address import Address
from kongrealip.cli.decode import decode
from kongrealip.cli.explain import explain
from kongrealip.cli.pasted import read_curl, read_hexadecimal, read_request
from kongrealip.preamble.writing import v1, v2
from kongrealip.realip import ForwardedRules, KongTrust, Request, Resolution, Rules, TrustedNetworks, resolve
from kongrealip.realip.explanation import Explanation
from kongrealip.realip.explanation import explain as explain_request
from kongrealip.realip.trace import NOT_READ
from tests import golden
from tests.running import clean_environ
from tests.test_resolve_vectors import SERVED, by_id, peer_of, rules_of, split_preamble

DOCUMENT = Path(__file__).parent.parent / "docs" / "explain.md"
BEHIND_A_BALANCER = {
    "KONG_TRUSTED_IPS": "10.0.0.0/8", "KONG_REAL_IP_HEADER": "X-Forwarded-For", "KONG_REAL_IP_RECURSIVE": "on",
}  # fmt: skip
BY_PREAMBLE = {**BEHIND_A_BALANCER, "KONG_REAL_IP_HEADER": "proxy_protocol"}
CLIENT, HERE = Address("203.0.113.7", 51000), Address("10.0.0.9", 443)


@click.group()
def cli() -> None:
    pass


cli.add_command(explain)
cli.add_command(decode)


def invoke(*args: str, stdin: bytes | str | None = None, **environ: str) -> Result:
    empty = {name: None for name in os.environ if name.startswith("KONG")}
    return CliRunner().invoke(cli, ["explain", *args], input=stdin, env={**empty, **environ})


def explained(*args: str, stdin: bytes | str | None = None, **environ: str) -> Any:
    """As JSON, behind a balancer in 10.0.0.0/8 unless the environment says otherwise."""
    result = invoke("--json", *args, stdin=stdin, **(environ or BEHIND_A_BALANCER))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def environ_of(vector: golden.Vector) -> dict[str, str]:
    config = vector["config"]
    return {
        "KONG_TRUSTED_IPS": ",".join(config["trusted_ips"]),
        "KONG_REAL_IP_HEADER": config["real_ip_header"],
        "KONG_REAL_IP_RECURSIVE": config["real_ip_recursive"],
        "KONGREALIP_PREAMBLE_MAX_BYTES": "65535",
    }


def peer_text(peer: Address) -> str:
    ip = f"[{peer.ip}]" if ":" in peer.ip else peer.ip
    return peer.ip if peer.port is None else f"{ip}:{peer.port}"


def text_of(data: bytes) -> str:
    """As an argument of a command line arrives."""
    return data.decode("utf-8", "surrogateescape")


def lines_of(vector: golden.Vector) -> list[tuple[bytes, bytes]]:
    return next(golden.requests(split_preamble(vector)[1]))


def fits_a_command_line(vector: golden.Vector) -> bool:
    """Names as HTTP has them, and values that begin with no tab, which uvicorn's parser takes off."""
    return all(name and value[:1] != b"\t" and b"\0" not in value for name, value in lines_of(vector))


def decided(vector: golden.Vector) -> Resolution:
    rules, (preamble, _) = rules_of(vector), split_preamble(vector)
    lines = [value for name, value in lines_of(vector) if name == rules.header_name]
    return resolve(rules, peer_of(vector), preamble, lines)


def covers(entry: str, ip: str) -> bool:
    """By another reader than the one that decides."""
    if "unix:" in (entry, ip):
        return entry == ip
    address = ipaddress.ip_address(ip)
    address = getattr(address, "ipv4_mapped", None) or address
    return address in ipaddress.ip_network(entry, strict=False)


def check(found: Any, resolution: Resolution) -> None:
    """The same client, and the entry that decided is named."""
    assert found["client"] == resolution.client._asdict()
    assert (found["source"], found["peer_trusted"]) == (resolution.source, resolution.peer_trusted)
    (place,) = (number for number, step in enumerate(found["steps"]) if step["fate"] == "client")
    step, decided_by = found["steps"][place], found["decided_by"]
    assert (step["ip"], step["port"]) == resolution.client
    assert decided_by["text"] == step["text"]
    if resolution.source == "peer":
        assert (decided_by["told_by"], decided_by["trusted_by"]) == (None, None)
    else:
        assert decided_by["told_by"] == found["steps"][place - 1]["ip"]
        assert decided_by["trusted_by"] in found["rules"]["trusted_ips"]
        assert covers(decided_by["trusted_by"], decided_by["told_by"])


FIVE_HUNDRED = random.Random(7).sample([vector for vector in SERVED if fits_a_command_line(vector)], 500)


@pytest.mark.parametrize("vector", FIVE_HUNDRED, ids=by_id)
def test_it_ends_at_the_client_of_resolve(vector: golden.Vector) -> None:
    data = b"".join(golden.segments(vector))
    preamble, behind = split_preamble(vector)
    args = ["--peer", peer_text(peer_of(vector))]
    if preamble is not None:
        behind_in_clear = len(behind) - len(b"".join(golden.segments(vector, "tls_segments")))
        args += ["--preamble", data[: len(data) - behind_in_clear].hex()]
    for name, value in lines_of(vector):
        args += ["--header", text_of(name + b": " + value)]
    check(explained(*args, **environ_of(vector)), decided(vector))


def is_plain(vector: golden.Vector) -> bool:
    """A request that uvicorn's parser reads as nginx does."""
    if "tls_segments" in vector or not fits_a_command_line(vector):
        return False
    head = split_preamble(vector)[1].partition(b"\r\n\r\n")[0]
    lines = head.split(b"\r\n")[1:]
    return (
        b"\n" not in head.replace(b"\r\n", b"")
        and b"\x7f" not in head
        and all(b":" in line for line in lines)
        and len(lines) == len(lines_of(vector))
    )


@pytest.mark.parametrize(
    "vector", random.Random(8).sample([vector for vector in SERVED if is_plain(vector)], 150), ids=by_id
)
def test_a_raw_request_with_its_preamble(vector: golden.Vector) -> None:
    data = b"".join(golden.segments(vector))
    found = explained(
        "--peer", peer_text(peer_of(vector)), "--request", "-", stdin=data, **environ_of(vector)
    )
    check(found, decided(vector))


# -- what is said ------------------------------------------------------------------------------


def sentences(*args: str, **environ: str) -> list[str]:
    return [step["sentence"] for step in explained(*args, **environ)["steps"]]


def of_lines(*lines: str) -> list[str]:
    return [word for line in lines for word in ("--header", f"X-Forwarded-For: {line}")]


@pytest.mark.parametrize(
    ("args", "environ", "expected"),
    [
        (
            ["6.6.6.6, 203.0.113.7, 10.1.1.1"],
            {},
            [
                "trusted by 10.0.0.0/8, so X-Forwarded-For is read",
                "trusted by 10.0.0.0/8, so the walk goes on",
                "not trusted, so the walk ends here: this is the client",
                "never read",
            ],
        ),
        (
            ["junk, 10.1.1.1"],
            {},
            [
                "trusted by 10.0.0.0/8, so X-Forwarded-For is read",
                "trusted by 10.0.0.0/8, but what comes next is no address: this is the client",
                "no address, so the walk stops at 10.1.1.1",
            ],
        ),
        ([], {}, ["trusted by 10.0.0.0/8, but there is no X-Forwarded-For: this is the client"]),
        (["  "], {}, ["trusted by 10.0.0.0/8, but X-Forwarded-For is empty: this is the client"]),
        (
            ["10.1.1.1"],
            {},
            [
                "trusted by 10.0.0.0/8, so X-Forwarded-For is read",
                "trusted by 10.0.0.0/8, and nothing is left to read: this is the client",
            ],
        ),
        (
            ["", "10.1.1.1"],
            {},
            [
                "trusted by 10.0.0.0/8, so X-Forwarded-For is read",
                "trusted by 10.0.0.0/8, but the line before is empty: this is the client",
            ],
        ),
        (
            ["10.1.1.1", "1.1.1.1"],
            {"KONG_REAL_IP_HEADER": "x-forwarded-for"},
            [
                "trusted by 10.0.0.0/8, so x-forwarded-for is read",
                "trusted by 10.0.0.0/8, but of x-forwarded-for the first line alone is read: this is the client",
                "never read",
            ],
        ),
        (
            ["1.1.1.1, 10.1.1.1"],
            {"KONG_REAL_IP_RECURSIVE": "off"},
            [
                "trusted by 10.0.0.0/8, so X-Forwarded-For is read",
                "trusted by 10.0.0.0/8, and without recursion one entry is read: this is the client",
                "never read",
            ],
        ),
        (
            ["1.1.1.1"],
            {"KONG_TRUSTED_IPS": ""},
            ["not trusted, so nothing that it says is believed: this is the client", "never read"],
        ),
        (
            [],
            BY_PREAMBLE,
            ["trusted by 10.0.0.0/8, but no preamble came with the connection: this is the client"],
        ),
    ],
)  # fmt: skip
def test_a_sentence_for_each_step(args: list[str], environ: dict[str, str], expected: list[str]) -> None:
    peer = ("--peer", "10.0.0.5")
    assert sentences(*peer, *of_lines(*args), **{**BEHIND_A_BALANCER, **environ}) == expected


def test_preambles() -> None:
    def said(preamble: bytes) -> list[str]:
        return sentences("--peer", "10.0.0.5:1", "--preamble", preamble.hex(" "), **BY_PREAMBLE)

    first = "trusted by 10.0.0.0/8, so the preamble is read"
    assert said(v2(CLIENT, HERE)) == [
        first,
        "not trusted, and a preamble names one address: this is the client",
    ]
    assert said(b"PROXY UNKNOWN\r\n") == [
        "trusted by 10.0.0.0/8, but the preamble names nobody: this is the client"
    ]
    assert said(b"PROXY TCP4 a.b 10.0.0.9 1 2\r\n") == [
        "trusted by 10.0.0.0/8, but what comes next is no address: this is the client",
        "no address, so the walk stops at 10.0.0.5",
    ]
    found = explained("--peer", "10.0.0.5:1", "--preamble", v2(CLIENT, HERE).hex(), **BY_PREAMBLE)
    assert found["preamble"]["source_ip"] == CLIENT.ip
    assert found["reason"] == (
        "10.0.0.5, trusted by 10.0.0.0/8, named it; itself it is not trusted, and a preamble names one address"
    )
    assert found["upstream_headers"]["X-Real-IP"] == CLIENT.ip


# -- what could have been forged ---------------------------------------------------------------


def forgeable(*args: str, **environ: str) -> set[tuple[str, str, bool]]:
    found = explained("--peer", "10.0.0.5", *args, **{**BEHIND_A_BALANCER, **environ})
    return {(one["part"], one["text"], one["decides"]) for one in found["forgeable"]}


def test_what_could_have_been_forged() -> None:
    sent = ("X-Forwarded-For", "6.6.6.6, 1.1.1.1", False)
    assert forgeable(*of_lines("6.6.6.6, 1.1.1.1")) == {
        ("X-Forwarded-For", "", True), ("X-Forwarded-For", "6.6.6.6", False), sent,
    }  # fmt: skip
    assert forgeable(*of_lines("6.6.6.6, 1.1.1.1"), KONG_TRUSTED_IPS="") == {
        ("X-Forwarded-For", "", False), sent,
    }  # fmt: skip
    assert forgeable("--header", "X-Real-IP: 1.1.1.1", KONG_REAL_IP_HEADER="X-Real-IP") == {
        ("X-Real-IP", "", True),
        ("X-Real-IP", "1.1.1.1", True),
    }
    assert ("X-Forwarded-For", "10.1.1.1", True) in forgeable(*of_lines("10.1.1.1"))
    assert ("X-Forwarded-For", "junk", True) in forgeable(*of_lines("junk, 10.1.1.1"))
    assert forgeable() == set()


@pytest.mark.parametrize(
    ("trusted", "peer", "words"),
    [
        ("10.0.0.5", "10.0.0.5", "10.0.0.5 can write all of it"),
        ("10.0.0.0/31", "10.0.0.1", "10.0.0.0/31 (2 addresses)"),
        ("0.0.0.0/0", "10.0.0.5", "everybody is trusted, so anybody can"),
        ("unix:", "unix:", "whoever may connect to the socket"),
    ],
)
def test_who_could_have_forged_it(trusted: str, peer: str, words: str) -> None:
    found = explained(
        "--peer", peer, *of_lines("1.1.1.1"), **{**BEHIND_A_BALANCER, "KONG_TRUSTED_IPS": trusted}
    )
    assert words in found["forgeable"][0]["sentence"]


@pytest.mark.parametrize(
    ("peer", "environ", "preamble", "decides", "words"),
    [
        ("10.0.0.5", BEHIND_A_BALANCER, b"", True, "where 10.0.0.5 does not set it"),
        (
            "10.0.0.5",
            BY_PREAMBLE,
            v2(CLIENT, HERE),
            True,
            "a balancer below HTTP passes on what the client wrote",
        ),
        ("10.0.0.5", {**BY_PREAMBLE, "KONGREALIP_FORWARDED_HEADERS": "off"}, b"", False, "not believed"),
        (
            "10.0.0.5",
            {**BY_PREAMBLE, "KONGREALIP_FORWARDED_HEADERS": "auto"},
            v2(CLIENT, HERE),
            False,
            "not believed",
        ),
        ("::ffff:10.0.0.5", BEHIND_A_BALANCER, b"", False, "not believed"),
        ("8.8.8.8", BEHIND_A_BALANCER, b"", False, "not believed"),
    ],
)
def test_whose_scheme_it_is(
    peer: str, environ: dict[str, str], preamble: bytes, decides: bool, words: str
) -> None:
    front = ("--preamble", preamble.hex()) if preamble else ()
    found = explained("--peer", peer, *front, "--header", "X-Forwarded-Proto: https", **environ)
    (told,) = (one for one in found["forgeable"] if one["part"] == "X-Forwarded-Proto")
    assert (told["decides"], words in told["sentence"]) == (decides, True)
    assert found["forwarded"]["scheme"] == ("https" if decides else "http")


ENTRIES = st.sampled_from(["10.1.1.1", "10.2.2.2:80", "1.1.1.1", "8.8.8.8", "junk", "[2001:db8::1]:5", "::1"])
HEADER_LINES = st.lists(st.lists(ENTRIES, max_size=4).map(", ".join), max_size=3)
HEADERS = st.sampled_from(["X-Forwarded-For", "x-forwarded-for", "X-Real-IP"])


def explanation(
    header: str, recursive: bool, peer: str, lines: list[str], trusted: Sequence[str] = ("10.0.0.0/8",)
) -> Explanation:
    rules = Rules(TrustedNetworks(trusted), header, recursive)
    headers = [(header.lower().encode(), line.encode()) for line in lines]
    request = Request(headers, "http", b"/", 8000, None)
    forwarded = ForwardedRules(KongTrust(trusted))
    return explain_request(rules, trusted, forwarded, Address(peer, 1), None, request)


@given(HEADERS, st.booleans(), st.sampled_from(["10.0.0.5", "8.8.8.8", ""]), HEADER_LINES, ENTRIES)
def test_what_was_never_read_may_be_anything(
    header: str, recursive: bool, peer: str, lines: list[str], other: str
) -> None:
    """Each entry that does not count is replaced, and the client stays."""
    found = explanation(header, recursive, peer, lines)
    json.dumps(found.as_dict())
    unread = [step for step, _ in found.steps if step.fate == NOT_READ]
    rewritten = []
    for number, line in enumerate(lines, 1):
        entries = line.split(", ")
        # What was not read stands on the left, in whichever line.
        count = sum(step.line == number for step in unread)
        rewritten.append(", ".join([other] * count + entries[count:]))
    assert explanation(header, recursive, peer, rewritten).resolution == found.resolution


@given(HEADERS, st.booleans(), HEADER_LINES)
def test_the_teller_is_who_decided(header: str, recursive: bool, lines: list[str]) -> None:
    """Were its entry not among the trusted ones, the walk would have ended at it."""
    trusted = ["10.0.0.5", "10.1.1.1", "10.2.2.2"]
    found = explanation(header, recursive, "10.0.0.5", lines, trusted)
    if found.teller is None:
        assert found.resolution.client == found.resolution.peer
    else:
        others = [entry for entry in trusted if entry != found.teller.entry]
        assert len(others) == 2
        without = explanation(header, recursive, "10.0.0.5", lines, others)
        assert without.resolution.client.ip == found.teller.ip


# -- what is pasted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("10.0.0.5", ("10.0.0.5", None)),
        ("10.0.0.5:40000", ("10.0.0.5", 40000)),
        ("2001:DB8::1", ("2001:db8::1", None)),
        ("[2001:db8::1]:40000", ("2001:db8::1", 40000)),
        ("fe80::1%eth0", ("fe80::1", None)),
        ("[fe80::1%eth0]:5", ("fe80::1", 5)),
        ("unix:", ("unix:", None)),
    ],
)
def test_peers(text: str, peer: tuple[str, int | None]) -> None:
    assert explained("--peer", text)["peer"] == {"ip": peer[0], "port": peer[1]}


def test_a_unix_socket() -> None:
    environ = {**BEHIND_A_BALANCER, "KONG_TRUSTED_IPS": "unix:"}
    found = explained("--uds", *of_lines("1.1.1.1"), **environ)
    assert (found["client"]["ip"], found["decided_by"]["trusted_by"]) == ("1.1.1.1", "unix:")
    assert found["forwarded"]["port"] is None


def test_headers_come_in_their_order_and_in_any_case() -> None:
    found = explained("--peer", "10.0.0.5", "--header", "x-FORWARDED-for:1.1.1.1", *of_lines("2.2.2.2"))
    assert [step["text"] for step in found["steps"]] == ["10.0.0.5", "2.2.2.2", "1.1.1.1"]
    odd = text_of(b"X-Forwarded-For: \xff\xc3\xa9")
    assert explained("--peer", "10.0.0.5", "--header", odd)["steps"][1]["text"] == "\xff\xc3\xa9"


def test_conf_and_env_file(tmp_path: Path) -> None:
    conf, env_file = tmp_path / "kong.conf", tmp_path / "env"
    conf.write_text("trusted_ips = 10.0.0.0/8\nreal_ip_header = X-Other\n")
    env_file.write_text("KONG_REAL_IP_HEADER=X-Client\n")
    args = (
        "--conf",
        str(conf),
        "--peer",
        "10.0.0.5",
        "--header",
        "X-Other: 1.1.1.1",
        "--header",
        "X-Client: 2.2.2.2",
    )
    assert explained(*args, KONG_LOG_LEVEL="warn")["client"]["ip"] == "1.1.1.1"
    assert explained(*args, "--env-file", str(env_file), KONG_LOG_LEVEL="warn")["client"]["ip"] == "2.2.2.2"


@pytest.mark.parametrize("form", ["hex", "spaced", "colons", "file", "hex file", "stdin"])
def test_forms_of_a_preamble(form: str, tmp_path: Path) -> None:
    preamble, stdin = v2(CLIENT, HERE), None
    file = tmp_path / "preamble"
    if form in ("file", "hex file"):
        file.write_bytes(preamble if form == "file" else preamble.hex(" ", 2).encode() + b"\n")
        text = str(file)
    elif form == "stdin":
        text, stdin = "-", preamble
    else:
        text = {"hex": preamble.hex(), "spaced": preamble.hex(" ").upper(), "colons": preamble.hex(":")}[form]
    found = explained("--peer", "10.0.0.5", "--preamble", text, stdin=stdin, **BY_PREAMBLE)
    assert found["client"] == CLIENT._asdict()


CURL = r"""
curl -sSH 'X-Forwarded-For: 6.6.6.6, 1.1.1.1' \
     --header "X-Real-IP: 7.7.7.7" -H'Accept:' -H 'X-Empty;' -X POST --data-raw 'a b' --compressed \
     'https://user@Shop.example:8443/cart/?a=b'
"""


def test_curl() -> None:
    found = explained("--peer", "10.0.0.5", "--curl", CURL)
    assert found["client"]["ip"] == "1.1.1.1"
    assert found["forwarded"] == {
        "scheme": "https", "host": "shop.example", "port": 8443, "path": "/cart/", "prefix": None,
    }  # fmt: skip
    own_host = explained(
        "--peer", "10.0.0.5", "--curl", "curl -H 'Host: a:80' http://b", *of_lines("2.2.2.2")
    )
    assert (own_host["forwarded"]["host"], own_host["client"]["ip"]) == ("a", "2.2.2.2")
    assert explained("--peer", "10.0.0.5", "--curl", "curl -sk -H Host: b")["forwarded"]["host"] == ""


@pytest.mark.parametrize(
    ("options", "peer", "client"),
    [
        ("--haproxy-protocol", "10.0.0.5:99", "10.0.0.5"),
        ("--haproxy-clientip 9.9.9.9", "10.0.0.5:99", "9.9.9.9"),
        ("--haproxy-protocol", "unix:", "unix:"),
    ],
)
def test_curls_own_preamble(options: str, peer: str, client: str) -> None:
    found = explained("--peer", peer, "--curl", f"curl {options} https://a/", **BY_PREAMBLE)
    assert found["client"]["ip"] == client
    assert found["preamble"]["version"] == 1


def test_what_curl_really_sends(tmp_path: Path) -> None:
    """The real curl, to a socket that writes down what comes."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        command = (
            "curl -sSm5 -H 'X-A: 1, 2' --header 'X-Empty;' -H 'Accept:' -HX-B:3 -H 'X-A: 4' --haproxy-protocol"
            f" --data-raw 'http://evil' 'http://me@127.0.0.1:{port}/a/b?c=d'"
        )
        process = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(10)
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert process.wait(10) == 0, process.communicate()
        process.communicate()
    file = tmp_path / "request"
    file.write_bytes(data)
    sent, read = read_request(str(file), 4096, False), read_curl(command, Address(peer[0], peer[1]))
    assert sent.preamble is not None
    assert read.preamble == sent.preamble._replace(destination_ip=None)
    assert (read.scheme, read.path) == (sent.scheme, sent.path)
    own = (b"authorization", b"user-agent", b"content-length", b"content-type")
    assert read.headers == [header for header in sent.headers if header[0] not in own]


REQUEST = "GET /a//b?c HTTP/1.1\nHost: Shop.example:80\nx-forwarded-for: 6.6.6.6\nX-Forwarded-For: 1.1.1.1\n"


@pytest.mark.parametrize("text", [REQUEST, REQUEST + "\n", REQUEST.replace("\n", "\r\n") + "\r\nbody: 1\n"])
@pytest.mark.parametrize(
    "preamble", [b"", v2(CLIENT, HERE), v1(CLIENT, HERE), b"PROXY TCP4 9.9.9.9 1.1.1.1 1 2\n"]
)
def test_a_request(text: str, preamble: bytes, tmp_path: Path) -> None:
    file = tmp_path / "request"
    file.write_bytes(preamble + text.encode())
    found = explained("--peer", "10.0.0.5", "--request", str(file))
    assert found["client"]["ip"] == "1.1.1.1"
    assert (found["forwarded"]["host"], found["forwarded"]["path"]) == ("shop.example", "/a/b")
    assert (found["preamble"] is None) == (preamble == b"")


@pytest.mark.parametrize(
    ("line", "path"),
    [("GET http://a/x?y HTTP/1.1", "/x"), ("OPTIONS * HTTP/1.1", "*"), ("CONNECT a:443 HTTP/1.1", "a:443")],
)
def test_targets(line: str, path: str) -> None:
    found = explained("--peer", "8.8.8.8", "--request", "-", stdin=f"{line}\nHost: a\nUpgrade: x\n")
    assert found["upstream_headers"]["X-Forwarded-Path"] == path


PEER = ("--peer", "10.0.0.5")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Write --peer ADDRESS, or --uds"),
        (("--peer", "10.0.0"), "for --peer: '10.0.0': write 10.0.0.5,"),
        (("--peer", ""), "for --peer: '': write"),
        (("--peer", "10.0.0.5:0"), "for --peer"),
        ((*PEER, "--uds"), "for --uds: --peer '10.0.0.5' is no Unix socket"),
        ((*PEER, "--header", "X"), "for --header: 'X': write 'Name: value'"),
        ((*PEER, "--header", ": x"), "for --header"),
        ((*PEER, "--header", "A b: x"), "for --header"),
        ((*PEER, "--header", "A: x\nB: y"), "a value is one line"),
        ((*PEER, "--preamble", "0d0"), "for --preamble: '0d0': no such file, and not two"),
        ((*PEER, "--preamble", "0d0a"), "for --preamble: '0d0a': the preamble is not whole"),
        ((*PEER, "--preamble", "0a"), "the server refuses it: no PROXY preamble"),
        ((*PEER, "--preamble", "/"), "'/': cannot be read: Is a directory"),
        ((*PEER, "--preamble", "-"), "'-': empty"),
        ((*PEER, "--preamble", v2(CLIENT, HERE).hex() + "00"), "1 bytes stand behind it"),
        ((*PEER, "--preamble", "00" * 9999), f"'{'0' * 57}...': the server refuses"),
        ((*PEER, "--curl", "wget http://a"), "for --curl: 'wget http://a': write"),
        ((*PEER, "--curl", "curl 'a"), "no closing quotation"),
        ((*PEER, "--curl", "curl"), "no URLs"),
        ((*PEER, "--curl", "curl a b"), "2 URLs"),
        ((*PEER, "--curl", "curl http://[a"), "for --curl: 'http://[a'"),
        ((*PEER, "--curl", "curl ftp://a"), "write a URL of http or https"),
        ((*PEER, "--curl", "curl --haproxy-clientip x a"), "'x': write an IP address"),
        ((*PEER, "--curl", "curl -H x a"), "for --curl: 'x'"),
        ((*PEER, "--curl", "curl --haproxy-protocol a", "--preamble", "00"), "there is one already"),
        ((*PEER, "--curl", "curl a", "--request", "x"), "for --request: 'x': there is --curl"),
        ((*PEER, "--request", "-", "--preamble", "-"), "--preamble reads it already"),
        ((*PEER, "--request", "/no/such"), "for --request: '/no/such'"),
        ((*PEER, "--request", b"GET / HTTP/2\n".hex()), "the server answers 400 to it: Expected dot"),
        ((*PEER, "--request", b"PROXY UNKNOWN\r\n".hex()), "nothing but a preamble"),
        ((*PEER, "--conf", "/no/such"), "does not exist"),
    ],
)  # fmt: skip
def test_wrong_usage_is_2(args: tuple[str, ...], message: str) -> None:
    result = invoke(*args, **BEHIND_A_BALANCER)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert message in result.output.splitlines()[-1]


def test_limit_and_strictness_are_the_servers() -> None:
    too_long = invoke(
        *PEER, "--preamble", (v2(CLIENT, HERE) + b"\n").hex(), KONGREALIP_PREAMBLE_MAX_BYTES="8192"
    )
    assert "1 bytes stand behind" in too_long.output
    long = v2(CLIENT, HERE, b"\x04\x0f\xff" + bytes(4095))
    assert "the limit is 4096" in invoke(*PEER, "--preamble", long.hex()).output
    assert invoke(*PEER, "--preamble", long.hex(), KONGREALIP_PREAMBLE_MAX_BYTES="8192").exit_code == 0
    undefined = (v2(CLIENT, HERE)[:12] + b"\x22" + v2(CLIENT, HERE)[13:]).hex()
    assert invoke(*PEER, "--preamble", undefined).exit_code == 0
    strict = invoke(*PEER, "--preamble", undefined, KONGREALIP_PROXY_PROTOCOL_STRICT="on")
    assert (strict.exit_code, "undefined command" in strict.output) == (2, True)


def test_a_configuration_that_cannot_be_used_is_3() -> None:
    result = invoke(*PEER, KONG_TRUSTED_IPS="a, b", KONG_LOG_LEVEL="loud")
    assert result.exit_code == 3
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        "KONG_TRUSTED_IPS",
        "KONG_TRUSTED_IPS",
        "KONG_LOG_LEVEL",
    ]


def test_a_slip_of_the_pen_is_told() -> None:
    assert "did you mean KONG_TRUSTED_IPS?" in invoke(*PEER, KONG_TRUSTED_IP="10.0.0.1").stderr


# -- what is shown -----------------------------------------------------------------------------

PROGRAM = [sys.executable, "-c", "from kongrealip.cli.explain import explain; explain()"]
ARGS = ["--peer", "10.0.0.5", *of_lines("Jörg, 6.6.6.6, 1.1.1.1")]


def test_plain_text() -> None:
    shown = invoke(*ARGS, **BEHIND_A_BALANCER).stdout
    assert shown.splitlines()[0].startswith("client 1.1.1.1: 10.0.0.5, trusted by 10.0.0.0/8, named it;")
    for words in ("(KONG_TRUSTED_IPS)", "never read", "X-Real-IP", "Jörg, 6.6.6.6, 1.1.1.1, 10.0.0.5"):
        assert words in shown
    nothing = invoke("--peer", "8.8.8.8", **BEHIND_A_BALANCER).stdout
    assert "nothing: the peer's address" in nothing
    preamble = invoke(*PEER, "--preamble", v2(CLIENT, HERE).hex(), **BY_PREAMBLE).stdout
    assert "version 2, PROXY, 203.0.113.7 port 51000 to 10.0.0.9 port 443" in preamble
    local = invoke(*PEER, "--preamble", b"PROXY UNKNOWN\r\n".hex(), **BY_PREAMBLE).stdout
    assert "version 1, PROXY, names nobody" in local
    curl = invoke("--peer", "10.0.0.5:9", "--curl", "curl --haproxy-protocol a", **BY_PREAMBLE).stdout
    assert "version 1, PROXY, 10.0.0.5 port 9\n" in curl
    assert "  real_ip_header     X-Ж" in invoke(*PEER, KONG_REAL_IP_HEADER="X-Ж").stdout


def test_nothing_that_was_received_reaches_the_terminal_as_it_is() -> None:
    evil = "\x1b]0;x\x07\u202e" + "a" * 5000
    args = (*PEER, *of_lines(evil), "--header", f"X-Forwarded-Proto: {evil}")
    shown = invoke(*args, **BEHIND_A_BALANCER).stdout
    assert "\\x1b]0;x\\x07\\u202e" in shown
    assert not set(shown) & set("\x1b\x07\u202e")
    assert max(map(len, shown.splitlines())) < 500


def test_a_terminal_that_is_not_utf8(tmp_path: Path) -> None:
    environ = {**clean_environ(), **BEHIND_A_BALANCER, "PYTHONIOENCODING": "ascii"}
    args = [*PROGRAM, *PEER, *of_lines("Jörg")]
    result = subprocess.run(args, env=environ, capture_output=True, timeout=30, check=True)
    assert b"J\\xf6rg" in result.stdout


def on_a_terminal(**environ: str) -> str:
    """What is written to a terminal of 120 columns."""
    controller, terminal = pty.openpty()
    everything = {
        **clean_environ(),
        **BEHIND_A_BALANCER,
        "TERM": "xterm-256color",
        "COLUMNS": "120",
        **environ,
    }
    process = subprocess.Popen([*PROGRAM, *ARGS], env=everything, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        # Linux ends it with EIO when nobody has it open any more.
        while data := os.read(controller, 65536):
            shown += data
    except OSError:
        pass
    os.close(controller)
    assert process.wait(30) == 0
    return shown.decode()


def test_a_tree_in_colours_on_a_terminal() -> None:
    shown = on_a_terminal(PYTHONIOENCODING="utf-8")
    assert "├── " in shown
    assert "\x1b[32m" in shown
    assert "never read" in shown


def test_a_terminal_without_colours_without_letters_and_without_rich(tmp_path: Path) -> None:
    assert "\x1b[3" not in on_a_terminal(NO_COLOR="1", PYTHONIOENCODING="utf-8")
    shown = on_a_terminal(PYTHONIOENCODING="ascii")
    assert "+-- " in shown
    assert "J\\xf6rg" in shown
    (tmp_path / "rich.py").write_text("raise ImportError")
    shown = on_a_terminal(PYTHONPATH=str(tmp_path))
    assert "never read" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["explain", "decode"])
def test_help_imports_nothing_that_takes_long(name: str) -> None:
    slow = ("asyncio", "httptools", "json", "logging.config", "rich", "shlex", "starlette", "uvicorn")
    code = (
        f"import sys\nfrom kongrealip.cli.{name} import {name}\n"
        f"try: {name}(['--help'])\nexcept SystemExit: print(*sorted({slow} & sys.modules.keys()))"
    )
    code = code.replace(str(slow), str(set(slow)))
    shown = subprocess.run(
        [sys.executable, "-c", code], env={}, capture_output=True, text=True, timeout=30, check=True
    )
    assert shown.stdout.splitlines()[-1] == ""


def test_every_option_has_its_default_in_the_help() -> None:
    shown = " ".join(invoke("--help").stdout.split())
    for variable in (
        "KONG_TRUSTED_IPS [default: nobody]",
        "KONG_REAL_IP_HEADER [X-Real-IP]",
        "KONG_REAL_IP_RECURSIVE [off]",
    ):
        assert variable in shown
    assert shown.count("[default: none]") == 6


# -- docs/explain.md ---------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Each command of the document with what it shows behind it."""
    blocks = DOCUMENT.read_text(encoding="utf-8").split("```")[1::2]
    parts = [part for block in blocks for part in block.split("$ ")[1:]]
    found = []
    for part in parts:
        lines = part.splitlines()
        end = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
        found.append(("\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])))
    return found


@pytest.mark.parametrize(("command", "shown"), commands())
def test_the_documents_commands(command: str, shown: str, tmp_path: Path) -> None:
    program = tmp_path / "kongrealip"
    program.write_text(
        f"#!{sys.executable}\nfrom tests.test_explain import cli\ncli(prog_name='kongrealip')\n"
    )
    program.chmod(0o755)
    environ = {
        **clean_environ(), **BEHIND_A_BALANCER, "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(DOCUMENT.parent.parent),
    }  # fmt: skip
    result = subprocess.run(
        command, shell=True, env=environ, capture_output=True, text=True, timeout=30, check=True
    )
    for line in shown.splitlines():
        assert line in ("...", *result.stdout.splitlines())


def test_hexadecimal_as_programs_print_it() -> None:
    data = v2(CLIENT, HERE) + bytes(range(40))
    dump = "".join(
        f"{place:08x}: {data[place : place + 16].hex(' ', 2):39}  ................\n"
        for place in range(0, len(data), 16)
    )
    assert read_hexadecimal(dump) == data
