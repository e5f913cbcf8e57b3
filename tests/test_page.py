"""The page of the built-in application, over HTTP: who gets it, what stands on it, and what its box answers."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import connect as connect_websocket

from kongrealip.cli.page_accept import prefers_html
from kongrealip.cli.page_parts import text
from kongrealip.cli.page_trial import MOST_BYTES, MOST_ENTRIES
from tests.browser.scenes import preamble, tlv
from tests.running import CLIENT_IP, LOOPBACK, Headers, clean_environ, connect, free_port, serving

HTML, JSON = ("Accept", "text/html"), ("Accept", "application/json")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
BY_HEADER = {
    "KONG_TRUSTED_IPS": f"{LOOPBACK}/32,10.0.0.0/8",
    "KONG_REAL_IP_HEADER": "X-Forwarded-For",
    "KONG_REAL_IP_RECURSIVE": "on",
}
BY_PREAMBLE = {"KONG_TRUSTED_IPS": f"{LOOPBACK}/32", "KONG_REAL_IP_HEADER": "proxy_protocol"}
FORM = "application/x-www-form-urlencoded"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&lt;</textarea></style>"
SSL = tlv(0x20, b"\x07\0\0\0\0" + tlv(0x21, b"TLSv1.3") + tlv(0x22, b"<b>client</b>"))
TLVS = tlv(0x02, MARKUP.encode()) + tlv(0x05, b"\x0a\x0b") + tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9") + SSL


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def page(self) -> Page:
        assert self.headers.get_content_type() == "text/html"
        return Page(self.text)


class Page(HTMLParser):
    """Elements in their order, and the text between them. Every element that is opened is closed."""

    VOID = ("meta", "link", "wbr", "input")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def skeleton(self) -> list[tuple[str, list[str]]]:
        """What can only be markup: elements and the names of their attributes."""
        return [(name, sorted(attributes)) for name, attributes in self.elements]


def send(
    port: int,
    *headers: tuple[str, str],
    method: str = "GET",
    path: str = "/",
    body: bytes | None = None,
    source_ip: str = LOOPBACK,
    before: bytes = b"",
) -> Answer:
    """One request on a connection of its own, behind ``before``."""
    connection = http.client.HTTPConnection(LOOPBACK)
    with connect(port, source_ip) as connection.sock:
        connection.sock.sendall(before)
        connection.putrequest(method, path, skip_accept_encoding=True)
        if body is not None:
            headers = (*headers, ("Content-Length", str(len(body))))
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())


def tried(port: int, accept: tuple[str, str] = JSON, path: str = "/", **fields: str) -> Answer:
    body = urlencode(fields).encode()
    return send(port, accept, ("Content-Type", FORM), method="POST", path=path, body=body)


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """Of a server that goes by a header, and of one that goes by preambles."""
    by_header, by_preamble = free_port(), free_port()
    first = {**BY_HEADER, "KONG_PROXY_LISTEN": f"{LOOPBACK}:{by_header}"}
    second = {**BY_PREAMBLE, "KONG_PROXY_LISTEN": f"{LOOPBACK}:{by_preamble} proxy_protocol"}
    with ExitStack() as stack:
        for environ in (first, second):
            stack.enter_context(serving(environ, "--no-access-log"))
        yield by_header, by_preamble


@pytest.fixture
def port(ports: tuple[int, int]) -> int:
    return ports[0]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False), ("*/*", False), ("text/*", True), ("text/html", True), (BROWSER, True),
        ("application/json", False), ("text/html, application/json", False), ("TEXT/HTML;q=0.5", True),
        ("text/html;q=0.5, application/json;q=0.4", True), ("text/html;q=0.4, application/json;q=0.5", False),
        ("text/html;q=0", False), ("text/html;q=0, */*", False), ("text/html;level=1;q=0.3, */*;q=0.2", True),
        ("application/json;q=0, */*", True), ("application/*;q=0.1, text/html ; q=0.2", True),
        # The most specific range counts, and not the highest weight.
        ("text/html;q=0.1, text/*, application/json;q=0.2", False),
        # What is no weight is no wish.
        ("text/html;q=2", False), ("text/html;q=-1", False), ("text/html;q=nan", False),
        ("text/html;q=0.1234", False), ("text/html;q=", False), ("text/html;q=1e-1", False), (";,;q=,", False),
    ],
)  # fmt: skip
def test_html_is_for_who_prefers_it(accept: str, expected: bool) -> None:
    assert prefers_html(accept) == expected


@given(st.text())
def test_any_accept_is_read(accept: str) -> None:
    assert prefers_html(accept) in (True, False)


@pytest.mark.parametrize("accept", [(), (("Accept", "*/*"),), (JSON,), (JSON, HTML)])
def test_json_is_what_everybody_else_gets(port: int, accept: Headers) -> None:
    answer = send(port, *accept)
    assert (answer.headers["Content-Type"], answer.headers["Vary"]) == ("application/json", "Accept")
    assert answer.json["client_ip"] == LOOPBACK


def test_several_lines_of_accept_are_one_list(port: int) -> None:
    assert send(port, ("Accept", "application/json;q=0.1"), HTML).page


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from leaves(one)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def test_all_that_json_has_stands_on_the_page(ports: tuple[int, int]) -> None:
    headers = ("X-Forwarded-For", "6.6.6.6, 203.0.113.7, 10.1.2.3"), ("Cookie", "a=1"), ("Cookie", "b=2")
    for port, before in zip(ports, (b"", preamble(TLVS)), strict=True):
        expected = send(port, JSON, *headers, before=before, path="/a/b").json
        page = send(port, HTML, *headers, before=before, path="/a/b").page
        # Each came by a connection of its own.
        changing = str(expected["peer_port"])
        missing = [leaf for leaf in leaves(expected) if leaf not in page.text and leaf != changing]
        assert missing == []


def test_the_way_is_drawn_from_the_client_to_the_service(port: int) -> None:
    page = send(port, HTML, ("X-Forwarded-For", "6.6.6.6, 203.0.113.7, 10.1.2.3")).page
    order = ["Claim6.6.6.6", "never read", "Client203.0.113.7", "not trusted", "Hop10.1.2.3", "trusted",
             f"Balancer{LOOPBACK}", f"Service{LOOPBACK}:{port}"]  # fmt: skip
    places = [page.text.index(order[0])]
    for words in order[1:]:
        places.append(page.text.index(words, places[-1]))
    assert places == sorted(places)
    kinds = [element["class"] for element in page.all("li")][:5]
    assert kinds == ["unread", "untrusted is-client", "trusted", "trusted", "service"]


def test_what_is_no_address_ends_the_way(port: int) -> None:
    page = send(port, HTML, ("X-Forwarded-For", "unknown, 10.1.2.3")).page
    assert [element["class"] for element in page.all("li")][:2] == ["broken", "trusted is-client"]
    assert "Claimunknown no address" in page.text


def test_a_spoofer_is_shown_as_the_peer(port: int) -> None:
    page = send(port, HTML, ("X-Forwarded-For", "8.8.8.8"), source_ip=CLIENT_IP).page
    assert [element["class"] for element in page.all("li")][:2] == ["unread", "untrusted is-client"]
    assert "nothing that it says is believed" in page.text


def test_without_anything_to_forge(port: int) -> None:
    page = tried(port, HTML, peer="198.51.100.7").page
    assert "Nothing: the peer's address is the connection's own." in page.text
    assert "No headers." in page.text


def test_the_preamble_has_its_fields_and_tlvs(ports: tuple[int, int]) -> None:
    page = send(ports[1], HTML, before=preamble(TLVS)).page
    for words in ("source ip203.0.113.7", "destination port443", "0xea01767063652d", "ssl versionTLSv1.3",
                  "ssl client verifiedyes", "unique id0a0b", "aws vpc endpoint idvpce-08d2bf15fac5001c9"):  # fmt: skip
        assert words in page.text


def test_a_preamble_without_tlvs_has_its_fields_alone(ports: tuple[int, int]) -> None:
    page = send(ports[1], HTML, before=preamble(b"")).page
    assert "source ip203.0.113.7" in page.text
    assert "TLV" not in page.text


def test_the_page_is_made_for_everybody(port: int) -> None:
    page = send(port, HTML, ("X-Forwarded-For", "203.0.113.7")).page
    assert page.all("html") == [{"lang": "en"}]
    names = {attributes.get("name"): attributes.get("content") for attributes in page.all("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    assert names["color-scheme"] == "light dark"
    assert [len(page.all(tag)) for tag in ("h1", "main", "ol")] == [1, 1, 1]
    assert all(attributes["scope"] in ("row", "col") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for attributes in page.all("label")}
    assert labelled == {control["id"] for control in page.all("input") + page.all("textarea")}
    headings = {attributes["id"] for attributes in page.all("h2")}
    assert {attributes["aria-labelledby"] for attributes in page.all("section")} == headings


def test_the_page_loads_nothing_and_runs_nothing(port: int) -> None:
    answer = send(port, HTML)
    names = [name for _, attributes in answer.page.elements for name in attributes]
    assert not {"src", "style", "action", "srcset"} & set(names)
    assert [name for name in names if name.startswith("on")] == []
    assert [attributes["href"] for _, attributes in answer.page.elements if "href" in attributes] == [
        "data:,"
    ]
    assert "url(" not in answer.text
    assert "@import" not in answer.text


def test_the_policy_lets_in_its_own_style_alone(port: int) -> None:
    for answer in (send(port, HTML), tried(port, HTML, peer="10.0.0.5"), tried(port, HTML, peer="")):
        (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert answer.headers["Content-Security-Policy"].split("; ") == [
            "default-src 'none'", f"style-src 'sha256-{digest}'", "img-src data:", "form-action 'self'",
            "base-uri 'none'", "frame-ancestors 'none'",
        ]  # fmt: skip
        expected = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Vary": "Accept",
                    "Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8"}  # fmt: skip
        assert {name: answer.headers[name] for name in expected} == expected


def hostile_and_harmless(port: int, before: bytes, words: str) -> Page:
    return send(
        port,
        HTML,
        ("Host", f"{words}.example"),
        ("X-Forwarded-For", f"{words.replace(' ', '_')}, 203.0.113.7"),
        ("X-Forwarded-Host", words),
        ("X-Forwarded-Prefix", words),
        ("User-Agent", words),
        before=before,
        path=f"/{quote(words)}",
    ).page


def test_what_was_received_is_never_markup(ports: tuple[int, int]) -> None:
    for port, befores in zip(
        ports, ([b""] * 2, [preamble(tlv(0x02, name)) for name in (MARKUP.encode(), b"a")]), strict=True
    ):
        hostile = hostile_and_harmless(port, befores[0], MARKUP)
        harmless = hostile_and_harmless(port, befores[1], "harmless")
        assert hostile.skeleton == harmless.skeleton
        assert MARKUP in hostile.text


def test_what_was_typed_is_never_markup(port: int) -> None:
    for fields in ({"peer": "{}"}, {"peer": "10.0.0.5", "headers": "X-Forwarded-For: {}"},
                   {"peer": "10.0.0.5", "headers": "{}"}, {"peer": "10.0.0.5", "preamble": "{}"}):  # fmt: skip
        pages = [
            tried(port, HTML, **{name: value.format(words) for name, value in fields.items()}).page
            for words in (MARKUP.replace(" ", "/"), "?")
        ]
        assert pages[0].skeleton == pages[1].skeleton


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_text_is_text(value: str) -> None:
    page = Page(text(value))
    assert page.elements == []
    assert page.text.isprintable()
    if value.isprintable():
        assert page.text == value
    text(value).encode()


def test_what_turns_the_reading_direction_is_shown(port: int) -> None:
    page = send(port, HTML, path="/%E2%80%AEmoc.elpmaxe%00").page
    assert r"/\u202emoc.elpmaxe\x00" in page.text


def test_the_settings_in_force_and_nothing_secret(tmp_path: Path) -> None:
    from kongrealip.server.tls import self_signed

    certificate, key = (tmp_path / name for name in ("secret-cert.pem", "secret-key.pem"))
    pair = self_signed()
    certificate.write_text(pair[0])
    key.write_text(pair[1])
    env_file = tmp_path / "secret.env"
    port = free_port()
    env_file.write_text(
        f"KONG_TRUSTED_IPS=10.9.0.0/16\nKONG_SSL_CERT={certificate}\nKONG_SSL_CERT_KEY={key}\n"
    )
    environ = {
        "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}",
        "KONG_REAL_IP_HEADER": b"X-<b>\xff".decode("utf-8", "surrogateescape"),
    }
    with serving(environ, "--env-file", str(env_file), "--no-access-log"):
        page = send(port, HTML).page
        found = tried(port, peer="10.9.0.1", headers="A: b").json
    assert "trusted_ips10.9.0.0/16KONG_TRUSTED_IPS" in page.text
    assert r"real_ip_headerX-<b>\udcffKONG_REAL_IP_HEADER" in page.text
    assert "preamble_max_bytes4096default" in page.text
    assert "secret" not in page.text
    assert found["rules"]["real_ip_header"] == "X-<b>\udcff"


def explained(port: int, *args: str) -> Any:
    command = [sys.executable, "-m", "kongrealip", "explain", "--json", *args]
    # The command takes the first listener's port for the request's.
    environ = {**clean_environ(), **BY_HEADER, "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=True)
    return json.loads(result.stdout)


LINES = [
    "X-Forwarded-For: 6.6.6.6, 203.0.113.7",
    "x-forwarded-for: 10.0.0.9:4000",
    "X-Forwarded-Proto: https",
]


@pytest.mark.parametrize(
    ("peer", "lines", "before"),
    [
        ("10.0.0.5", LINES, b""), ("[2001:db8::1]:40000", LINES, b""), ("unix:", [], b""),
        ("10.0.0.5:1", ["X-Forwarded-For: nobody"], preamble(TLVS)),
    ],
)  # fmt: skip
def test_the_box_answers_as_explain_does(port: int, peer: str, lines: list[str], before: bytes) -> None:
    answer = tried(port, peer=peer, headers="\r\n".join(lines), preamble=before.hex(" "))
    args = [word for line in lines for word in ("--header", line)]
    args += ["--preamble", before.hex()] if before else []
    assert (answer.status, answer.json) == (200, explained(port, "--peer", peer, *args))


def test_the_box_answers_on_the_same_page(port: int) -> None:
    page = tried(port, HTML, path="/any", peer="10.0.0.5", headers="\n".join(LINES)).page
    assert "With this, the client would be 203.0.113.7" in page.text
    assert page.all("a") == [{"href": ""}]
    assert page.all("input")[0]["value"] == "10.0.0.5"
    assert "x-forwarded-proto" in page.text
    # It stays for the next try, and what was tried is all that is shown.
    assert "\n".join(LINES) in page.text
    assert "user-agent" not in page.text


def test_the_box_begins_with_the_request_itself(port: int) -> None:
    page = send(port, HTML, ("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-For", "10.0.0.9")).page
    assert (page.all("input")[0]["value"] or "").startswith(f"{LOOPBACK}:")
    assert "X-Forwarded-For: 203.0.113.7\nX-Forwarded-For: 10.0.0.9" in page.text


@pytest.mark.parametrize(
    ("fields", "problem", "field"),
    [
        ({}, "Peer: '': write 10.0.0.5", "peer"),
        ({"peer": "localhost"}, "Peer: 'localhost': write 10.0.0.5", "peer"),
        ({"headers": "nonsense"}, "Headers: 'nonsense': write 'Name: value'", "headers"),
        ({"headers": "A: b\rC: d"}, "Headers: 'A: b\\rC: d': a value is one line", "headers"),
        ({"headers": "A: b\0c"}, "Headers: 'A: b\\x00c': a value is one line", "headers"),
        ({"headers": f"X-Forwarded-For: {'1.1.1.1,' * 101}"}, "Headers: more than 100 entries", "headers"),
        ({"headers": "X-Forwarded-For: 1.1.1.1\n" * 101}, "Headers: more than 100 entries", "headers"),
        ({"preamble": "0d0a0"}, "Preamble: '0d0a0': write two hexadecimal digits for each byte", "preamble"),
        # Neither a file nor standard input: those are for who has the command line.
        ({"preamble": "/etc/passwd"}, "Preamble: '/etc/passwd': write two", "preamble"),
        ({"preamble": "-"}, "Preamble: '-': write two", "preamble"),
        ({"preamble": "50524f5859"}, "Preamble: 5 bytes, and it is not whole", "preamble"),
        ({"preamble": "474554202f"}, "Preamble: the server refuses it", "preamble"),
        ({"preamble": preamble(b"").hex() + "00"}, "Preamble: 1 bytes stand behind its 28", "preamble"),
        ({f"field{number}": "" for number in range(11)}, "The form has more than 10 fields", None),
    ],
)  # fmt: skip
def test_wrong_input_is_told_in_one_line(
    port: int, fields: dict[str, str], problem: str, field: str | None
) -> None:
    if field not in (None, "peer"):
        fields = {"peer": "10.0.0.5", **fields}
    answer = tried(port, JSON, **fields)
    assert answer.status == 400
    assert answer.json["error"].startswith(problem)
    shown = tried(port, HTML, **fields)
    assert shown.status == 400
    assert problem in shown.page.text
    assert "\n" not in answer.json["error"]
    wrong = [
        one["name"] for one in shown.page.all("input") + shown.page.all("textarea") if "aria-invalid" in one
    ]
    assert wrong == ([] if field is None else [field])
    assert len([one for one in shown.page.all("p") if one.get("role") == "alert"]) == 1


def test_a_problem_is_told_shortly(port: int) -> None:
    problem = tried(port, peer="10.0.0.5", headers="no colon" * 1000).json["error"]
    assert len(problem) < 300
    assert problem.startswith("Headers: 'no colon")
    assert "write 'Name: value'" in problem


@pytest.mark.parametrize("accept", [JSON, HTML])
def test_a_form_has_a_limit(port: int, accept: tuple[str, str]) -> None:
    fields = {"peer": "10.0.0.5", "headers": "A: "}
    most = MOST_BYTES - len(urlencode(fields))
    for more, status in ((most, 200), (most + 1, 413)):
        answer = tried(port, accept, peer=fields["peer"], headers=f"A: {'b' * more}")
        assert answer.status == status
    assert f"longer than {MOST_BYTES} bytes" in answer.text


def test_what_is_too_much_to_draw_is_told_as_json(port: int) -> None:
    drawn, told = (
        send(port, HTML, ("X-Forwarded-For", ", ".join(["10.1.1.1"] * count)))
        for count in (MOST_ENTRIES, MOST_ENTRIES + 1)
    )
    assert drawn.page
    assert told.json["client_ip"] == "10.1.1.1"


def test_a_wrong_form_does_not_make_too_much_be_drawn(port: int) -> None:
    headers = HTML, ("Content-Type", FORM), ("X-Forwarded-For", "1.1.1.1," * (MOST_ENTRIES + 1))
    assert "error" in send(port, *headers, method="POST", body=b"peer=").json


def test_who_leaves_while_sending_leaves_nothing_in_the_log() -> None:
    port = free_port()
    with serving({"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}, "--no-access-log") as server:
        with connect(port) as sock:
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 9999\r\n\r\npeer="
            sock.sendall(head.encode())
        assert send(port, JSON).status == 200
        assert server.stop() == 0
        assert "Traceback" not in server.stderr


def test_other_requests_are_described_whatever_their_method(port: int) -> None:
    for content_type in ("application/json", "text/plain", f"{FORM}x"):
        answer = send(port, ("Content-Type", content_type), method="POST", body=b"peer=10.0.0.5")
        assert (answer.status, answer.json["method"]) == (200, "POST")
    assert send(port, ("Content-Type", FORM), method="PUT", body=b"peer=x").json["method"] == "PUT"


def test_where_the_settings_are_not_known_there_is_neither_page_nor_box() -> None:
    port = free_port()
    environ = {**BY_HEADER, "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}
    with serving(environ, "--no-access-log", "kongrealip.cli.whoami:app"):
        assert send(port, HTML).json["client_ip"] == LOOPBACK
        assert tried(port, HTML, peer="10.0.0.5").json["method"] == "POST"


def test_a_websocket_gets_json(port: int) -> None:
    with connect_websocket(f"ws://{LOOPBACK}:{port}/", additional_headers=[HTML]) as websocket:
        assert json.loads(websocket.recv())["client_ip"] == LOOPBACK


def test_the_documents_commands() -> None:
    document = (Path(__file__).parent.parent / "docs" / "whoami.md").read_text(encoding="utf-8")
    serve, curl = re.findall(r"```\n(.*?)```", document, re.DOTALL)
    *variables, _, command = shlex.split(serve.replace("\\\n", ""))
    assert command == "serve"
    port = free_port()
    listen = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}
    with serving(dict(variable.split("=", 1) for variable in variables) | listen, "--no-access-log"):
        words = shlex.split(curl.replace(":8000", f":{port}"))
        result = subprocess.run([*words, "--max-time", "10"], capture_output=True, check=True, timeout=30)
    assert json.loads(result.stdout)["client"]["ip"] == "203.0.113.7"


def test_on_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    command: Sequence[str] = ("--uds", path, "--no-access-log")
    with serving({"KONG_TRUSTED_IPS": "unix:"}, *command) as server:
        server.wait_for_stderr("startup complete")
        result = subprocess.run(
            ["curl", "--silent", "--max-time", "10", "--unix-socket", path, "-H", "Accept: text/html", "http://x/"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    page = Page(result.stdout)
    assert f"Service{path}" in page.text
    assert "Clientunix: trusted" in page.text
