"""The access log: what a line says, that it is one line, and that it is nginx's."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st

from kongrealip import RealIPMiddleware, Settings
from kongrealip.errors import StartError
from kongrealip.server.access_log import AccessLog, logged
from tests.balancers.programs import nginx
from tests.lab import LOOPS, Lab
from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    clean_environ,
    connect,
    exchange,
    free_port,
    received,
    wait_until,
)

FORMS = ("kong", "json")
TRUSTED = Settings(trusted_ips=("10.0.0.0/8", "fd00::/8", "unix:"), real_ip_header="X-Forwarded-For")
NOW = 1_795_543_200.0625
AT = "24/Nov/2026:18:00:00 +0000"

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"hello"}
LAST = {"type": "http.response.body"}
GONE = {"type": "http.disconnect"}
REQUEST = {"type": "http.request", "body": b"", "more_body": False}

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _standstill(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Time stands still at NOW, in UTC, but for those who go over a network."""
    if "real_time" not in request.fixturenames:
        monkeypatch.setattr("kongrealip.server.access_log.time", _Clock)


@pytest.fixture
def real_time() -> None:
    """Ask for this to let the clock run."""


class _Clock:
    localtime = staticmethod(time.gmtime)
    gmtime, strftime, monotonic = time.gmtime, time.strftime, time.monotonic

    @staticmethod
    def time() -> float:
        return NOW

    @staticmethod
    def perf_counter() -> float:
        return 7.0


def http(*headers: tuple[bytes, bytes], **changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "client": ("10.0.0.5", 4321),
        "server": ("10.0.0.9", 8000),
        "headers": list(headers),
        **changes,
    }


def websocket(*headers: tuple[bytes, bytes], **changes: Any) -> dict[str, Any]:
    scope = http(*headers, type="websocket", scheme="ws", **changes)
    del scope["method"]
    return scope


def answering(*messages: Any) -> Any:
    """An application that sends these, and raises those that are exceptions."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            if isinstance(message, BaseException):
                raise message
            if message is GONE:
                while not (await receive())["type"].endswith("disconnect"):
                    pass
            else:
                await send(message)

    return app


HELLO = answering(START, BODY)


async def ignoring(message: Any) -> None:
    """A server that takes whatever is sent."""


def run(app: Any, scope: dict[str, Any], *received: Any) -> BaseException | None:
    """Call the application, and return what it raised."""
    messages = iter(received)

    async def receive() -> Any:
        return next(messages)

    try:
        asyncio.run(app(scope, receive, ignoring))
    except BaseException as error:
        return error
    return None


@pytest.fixture
def lines_of(tmp_path: Path) -> Any:
    """Ask an application once behind the middleware, and return the text that was logged."""

    def ask(scope: dict[str, Any], app: Any = HELLO, form: str = "kong", received: Any = ()) -> str:
        path = tmp_path / "access.log"
        path.unlink(missing_ok=True)
        log = AccessLog(str(path), form)
        run(RealIPMiddleware(logged(app, log), TRUSTED), scope, *received)
        log.close()
        return path.read_bytes().decode("ascii")

    return ask


# What a line says.


def test_kong_line(lines_of: Write) -> None:
    scope = http(
        (b"x-forwarded-for", b"203.0.113.7:5100"),
        (b"user-agent", b"curl/8.5.0"),
        (b"referer", b"https://example.com/"),
        (b"x-kong-request-id", b"0a1b2c"),
        (b"authorization", b"Basic " + base64.b64encode(b"joe:secret")),
        method="POST",
        raw_path=b"/a%20b",
        path="/a b",
        query_string=b"q=1",
    )
    assert lines_of(scope) == (
        f'203.0.113.7 - joe [{AT}] "POST /a%20b?q=1 HTTP/1.1" 200 5 "https://example.com/" "curl/8.5.0"'
        ' kong_request_id: "0a1b2c"'
        ' client: "203.0.113.7:5100" peer: "10.0.0.5:4321" source: "X-Forwarded-For"\n'
    )


def test_kong_line_of_next_to_nothing(lines_of: Write) -> None:
    assert lines_of(http()) == (
        f'10.0.0.5 - - [{AT}] "GET / HTTP/1.1" 200 5 "-" "-" kong_request_id: "-"'
        ' client: "10.0.0.5:4321" peer: "10.0.0.5:4321" source: "peer"\n'
    )


@pytest.mark.parametrize(
    ("scope", "remote_addr", "who"),
    [
        (http((b"x-forwarded-for", b"203.0.113.7")), "203.0.113.7", 'client: "203.0.113.7" peer: "10.0.0.5:4321" source: "X-Forwarded-For"'),
        (http((b"x-forwarded-for", b"[2001:db8::7]:80")), "2001:db8::7", 'client: "[2001:db8::7]:80" peer: "10.0.0.5:4321" source: "X-Forwarded-For"'),
        (http((b"x-forwarded-for", b"2001:db8::7")), "2001:db8::7", 'client: "2001:db8::7" peer: "10.0.0.5:4321" source: "X-Forwarded-For"'),
        (http(client=("fd00::5", 99)), "fd00::5", 'client: "[fd00::5]:99" peer: "[fd00::5]:99" source: "peer"'),
        (http(client=None, server=("/run/app.sock", None)), "unix:", 'client: "unix:" peer: "unix:" source: "peer"'),
        (http(client=None), "-", 'client: "-" peer: "-" source: "peer"'),
        (http(client=('a"b\n', 5)), r"a\x22b\x0A", r'client: "a\x22b\x0A:5" peer: "a\x22b\x0A:5" source: "peer"'),
    ],
)  # fmt: skip
def test_addresses(lines_of: Write, scope: dict[str, Any], remote_addr: str, who: str) -> None:
    line = lines_of(scope)
    assert line.startswith(f"{remote_addr} - - [")
    assert line.endswith(f" {who}\n")


@pytest.mark.parametrize("scope", [http(), http(extensions=None), http(extensions={"other": {}})])
def test_kong_line_without_a_decision(tmp_path: Path, scope: dict[str, Any]) -> None:
    path = tmp_path / "access.log"
    assert run(logged(HELLO, AccessLog(str(path), "kong")), scope) is None
    line = path.read_text()
    assert line.startswith("- - - [")
    assert line.endswith(' client: "-" peer: "-" source: "-"\n')


def test_json_line(lines_of: Write) -> None:
    scope = http(
        (b"host", b"example.com:8443"),
        (b"x-forwarded-for", b"203.0.113.7:5100"),
        (b"user-agent", "käse/1".encode()),
        (b"referer", b"https://example.com/"),
        (b"x-kong-request-id", b"0a1b2c"),
        raw_path=b"/a%20b",
        query_string=b"q=1",
        scheme="https",
    )
    line = lines_of(scope, form="json")
    assert json.loads(line) == {
        "timestamp": "2026-11-24T18:00:00.062Z",
        "client.address": "203.0.113.7",
        "client.port": 5100,
        "network.peer.address": "10.0.0.5",
        "network.peer.port": 4321,
        "kongrealip.source": "X-Forwarded-For",
        "kongrealip.peer_trusted": True,
        "network.protocol.version": "1.1",
        "http.request.method": "GET",
        "url.scheme": "https",
        "url.path": "/a%20b",
        "url.query": "q=1",
        "server.address": "example.com",
        "server.port": 8443,
        "user_agent.original": "käse/1",
        "http.request.header.referer": ["https://example.com/"],
        "http.request.header.x-kong-request-id": ["0a1b2c"],
        "http.response.status_code": 200,
        "http.response.body.size": 5,
        "http.server.request.duration": 0.0,
    }
    assert line.startswith('{"timestamp":')


def test_json_leaves_out_what_is_not_known(lines_of: Write, tmp_path: Path) -> None:
    decided = json.loads(lines_of(http(client=None), form="json"))
    assert decided.keys() & {"client.address", "client.port", "network.peer.address"} == set()
    assert (decided["kongrealip.source"], decided["kongrealip.peer_trusted"]) == ("peer", False)
    path = tmp_path / "undecided.log"
    run(logged(HELLO, AccessLog(str(path), "json")), http())
    assert json.loads(path.read_text()) == {
        "timestamp": "2026-11-24T18:00:00.062Z",
        "network.protocol.version": "1.1",
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/",
        "http.response.status_code": 200,
        "http.response.body.size": 5,
        "http.server.request.duration": 0.0,
    }


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        (b"example.com", "example.com", None),
        (b"example.com:080", "example.com", 80),
        (b"[2001:db8::1]:8443", "2001:db8::1", 8443),
        (b"[2001:db8::1]", "2001:db8::1", None),
        (b"2001:db8::1", "2001:db8::1", None),
        (b"example.com:", "example.com:", None),
        (b":80", ":80", None),
        (b"example.com:8\xb2", "example.com:8\\xb2", None),
        (b"", None, None),
    ],
)
def test_json_server(lines_of: Write, host: bytes, address: str | None, port: int | None) -> None:
    members = json.loads(lines_of(http((b"host", host)), form="json"))
    assert (members.get("server.address"), members.get("server.port")) == (address, port)


def test_json_methods_that_opentelemetry_does_not_know(lines_of: Write) -> None:
    members = json.loads(lines_of(http(method="PROPFIND"), form="json"))
    assert members["http.request.method"] == "_OTHER"
    assert members["http.request.method_original"] == "PROPFIND"


def test_http_2(lines_of: Write) -> None:
    assert '"GET / HTTP/2.0"' in lines_of(http(http_version="2"))
    assert json.loads(lines_of(http(http_version="2"), form="json"))["network.protocol.version"] == "2"


def test_a_server_that_gives_no_raw_path(lines_of: Write) -> None:
    scope = http(path="/ä b\n")
    del scope["raw_path"]
    assert '"GET /%C3%A4%20b%0A HTTP/1.1"' in lines_of(scope)


@pytest.mark.parametrize(
    ("zone", "second", "text"),
    [
        ("Asia/Kolkata", 1_795_543_201, "24/Nov/2026:23:30:01 +0530"),
        ("America/St_Johns", 1_795_543_202, "24/Nov/2026:14:30:02 -0330"),
        ("UTC", 1_767_225_599, "31/Dec/2025:23:59:59 +0000"),
    ],
)
def test_the_zone_is_the_local_one(
    lines_of: Write, monkeypatch: pytest.MonkeyPatch, zone: str, second: int, text: str
) -> None:
    monkeypatch.setattr(_Clock, "time", staticmethod(lambda: second))
    monkeypatch.setattr(_Clock, "localtime", staticmethod(time.localtime))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert f" [{text}] " in lines_of(http())
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("form", FORMS)
def test_what_the_application_does_to_the_scope_is_not_seen(lines_of: Write, form: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].append((b"user-agent", b"other"))
        scope.update(client=None, extensions={}, path="/other", raw_path=b"/other", method="HEAD")
        await HELLO(scope, receive, send)

    assert lines_of(http(), app, form) == lines_of(http(), form=form)


# The status and the size.


@pytest.mark.parametrize(
    ("messages", "received", "status", "size"),
    [
        ([START, BODY], [], 200, 5),
        ([START, LAST], [], 200, 0),
        ([{**START, "status": HTTPStatus.IM_A_TEAPOT}, LAST], [], 418, 0),
        ([START, {**BODY, "more_body": True}, {**BODY, "more_body": True}, LAST], [], 200, 10),
        ([START, BODY, BODY], [], 200, 5),
        ([START, BODY, {"type": "http.response.debug", "info": {}}], [], 200, 5),
        ([START, {**BODY, "more_body": True}], [], 200, 5),
        ([START, {**BODY, "more_body": True}, ValueError()], [], 200, 5),
        ([START, BODY, ValueError()], [], 200, 5),
        ([], [], 500, 0),
        ([ValueError()], [], 500, 0),
        ([asyncio.CancelledError()], [], 500, 0),
        ([GONE], [REQUEST, GONE], 499, 0),
        ([GONE, ValueError()], [GONE], 499, 0),
        ([GONE, asyncio.CancelledError()], [GONE], 499, 0),
        ([GONE, START, BODY], [GONE], 499, 0),
        ([START, {**BODY, "more_body": True}, GONE, BODY], [GONE], 200, 5),
    ],
)
def test_status_and_size(
    lines_of: Write, messages: list[Any], received: list[Any], status: int, size: int
) -> None:
    line = lines_of(http(), answering(*messages), received=received)
    assert line.count("\n") == 1
    assert f'HTTP/1.1" {status} {size} "' in line


def test_head_has_no_body(lines_of: Write) -> None:
    assert 'HTTP/1.1" 200 0 "' in lines_of(http(method="HEAD"))


def test_what_the_application_raises_goes_on(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "access.log"), "kong")
    error = ValueError()
    assert run(logged(answering(error), log), http()) is error


def test_the_line_does_not_wait_for_work_in_the_background(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await HELLO(scope, receive, send)
        seen.append(path.read_text())

    run(logged(app, AccessLog(str(path), "kong")), http())
    assert seen == [path.read_text()]
    assert "200 5" in seen[0]


def test_lifespan_passes_through(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    run(
        logged(answering({"type": "lifespan.startup.complete"}), AccessLog(str(path), "kong")),
        {"type": "lifespan"},
    )
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("messages", "received", "status", "size"),
    [
        (["accept", ("send", {"text": "né"}), ("send", {"bytes": b"abcd"}), ("send", {"bytes": None, "text": "x"}), ("close", {"code": 1000})], [], 101, 8),
        (["accept", GONE], [{"type": "websocket.disconnect"}], 101, 0),
        (["accept", ValueError()], [], 101, 0),
        (["close"], [], 403, 0),
        ([("http.response.start", {"status": 451, "headers": []}), ("http.response.body", {"body": b"no"})], [], 451, 2),
        ([GONE], [{"type": "websocket.connect"}, {"type": "websocket.disconnect"}], 499, 0),
        ([ValueError()], [], 500, 0),
        ([], [], 500, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_websocket(
    lines_of: Write, form: str, messages: list[Any], received: list[Any], status: int, size: int
) -> None:
    sent = []
    for message in messages:
        if isinstance(message, str):
            sent.append({"type": f"websocket.{message}"})
        elif isinstance(message, tuple):
            sent.append({"type": f"websocket.{message[0]}", **message[1]})
        else:
            sent.append(message)
    line = lines_of(websocket(), answering(*sent), form, received)
    assert line.count("\n") == 1
    if form == "kong":
        assert f'"GET / HTTP/1.1" {status} {size} "-"' in line
    else:
        members = json.loads(line)
        assert (members["http.response.status_code"], members["http.response.body.size"]) == (status, size)
        assert (members["http.request.method"], members["url.scheme"]) == ("GET", "ws")


# One line, whatever is sent.

KONG_LINE = re.compile(
    r'\S+ - (?P<user>[ -~]+) \[[^]]+\] "(?P<request>[^"]*)" \d{3} \d+ "(?P<referer>[^"]*)" "(?P<agent>[^"]*)"'
    r' kong_request_id: "(?P<id>[^"]*)" client: "[^"]*" peer: "[^"]*" source: "[^"]*"\n'
)
ODD = [b"\n", b"\r\n", b'"', b"\\", b"\x1b[2J", b"\x00", b"\x7f", "é".encode(), b"\xe9", "\u2028".encode(), "\x85".encode(), b"\xff\xfe"]  # fmt: skip


def written_of(scope: dict[str, Any], form: str) -> str:
    with tempfile.NamedTemporaryFile() as file:
        log = AccessLog(file.name, form)
        log.write(log.begin(scope), 200, 0)
        log.close()
        return file.read().decode("ascii")


def unescaped(text: str) -> bytes:
    return re.sub(r"\\x([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), text).encode("latin-1")


@given(st.lists(st.one_of(st.binary(max_size=8), st.sampled_from(ODD)), min_size=5, max_size=5))
def test_one_line_from_which_everything_can_be_read(texts: list[bytes]) -> None:
    path, query, agent, referer, user = texts
    scope = http(
        (b"user-agent", agent),
        (b"referer", referer),
        (b"x-kong-request-id", agent + referer),
        (b"host", referer),
        (b"authorization", b"Basic " + base64.b64encode(user + b":")),
        raw_path=b"/" + path,
        query_string=query,
    )
    kong, as_json = (written_of(scope, form) for form in FORMS)
    found = KONG_LINE.fullmatch(kong)
    assert found is not None
    target = b"/" + path + (b"?" + query if query else b"")
    assert unescaped(found["request"]) == b"GET " + target + b" HTTP/1.1"
    assert (unescaped(found["agent"]), unescaped(found["referer"])) == (agent, referer)
    assert unescaped(found["id"]) == agent + referer
    assert unescaped(found["user"]) == (user.partition(b":")[0] or b"-")
    assert as_json.splitlines() == [as_json[:-1]]
    members = json.loads(as_json)
    assert members["user_agent.original"] == agent.decode("utf-8", "backslashreplace")
    assert members["url.path"] == (b"/" + path).decode("utf-8", "backslashreplace")


# Where the lines go.


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("before\n")
    first, second = AccessLog(str(path), "kong"), AccessLog(str(path), "kong")
    for log in (first, second, first):
        log.write(log.begin(http()), 200, 0)
    assert len(path.read_text().splitlines()) == 4
    assert path.read_text().startswith("before\n")


def test_a_new_file_can_be_read_by_everybody(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    before = os.umask(0)
    try:
        AccessLog(str(path), "kong").close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("path", "reason"), [("nowhere/access.log", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_opened(tmp_path: Path, path: str, reason: str) -> None:
    destination = f"{tmp_path}/{path}"
    with pytest.raises(StartError) as caught:
        AccessLog(destination, "kong")
    assert str(caught.value) == (
        f"KONG_PROXY_ACCESS_LOG: cannot open {destination!r}: {reason};"
        " give a file that can be written, /dev/stdout, /dev/stderr or off"
    )


def test_a_full_disk_reaches_no_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(_Clock, "monotonic", staticmethod(lambda: now))
    log = AccessLog("/dev/full", "kong")
    app = logged(HELLO, log)
    assert [run(app, http()) for _ in range(3)] == [None] * 3
    now += 10
    assert run(app, http()) is None
    assert log.dropped == 4
    assert [
        (record.levelno, record.getMessage())
        for record in caplog.records
        if record.name.startswith("kongrealip")
    ] == [
        (logging.WARNING, "access log /dev/full: No space left on device, lines lost so far: 1"),
        (logging.WARNING, "access log /dev/full: No space left on device, lines lost so far: 4"),
    ]


# Writes as many lines as it is told on each line of its standard input, and tells what was lost.
WRITER = """
import logging, sys
from kongrealip.server.access_log import AccessLog
logging.disable()
log = AccessLog(sys.argv[1], "kong")
scope = {"type": "http", "http_version": "1.1", "headers": [], "query_string": b""}
for line in sys.stdin:
    count, length = map(int, line.split())
    begun = log.begin({**scope, "raw_path": b"/" + b"a" * length})
    for _ in range(count):
        log.write(begun, 200, 0)
    print(log.dropped, file=sys.stderr if sys.argv[1] == "/dev/stdout" else sys.stdout, flush=True)
"""


@contextmanager
def writer(stream: str, output: int) -> Iterator[subprocess.Popen[str]]:
    """A process whose /dev/stdout or /dev/stderr is ``output``. It tells on the other of the two."""
    out, err = (output, subprocess.PIPE) if stream == "/dev/stdout" else (subprocess.PIPE, output)
    command = [sys.executable, "-c", WRITER, stream]
    with subprocess.Popen(
        command, env=clean_environ(), stdin=subprocess.PIPE, stdout=out, stderr=err, text=True
    ) as process:
        yield process


def tell(process: subprocess.Popen[str], count: int, length: int) -> int:
    """Let it write, and return how many lines it has lost."""
    assert process.stdin is not None
    process.stdin.write(f"{count} {length}\n")
    process.stdin.flush()
    report = process.stderr or process.stdout
    assert report is not None
    return int(report.readline())


@pytest.mark.parametrize("stream", ["/dev/stdout", "/dev/stderr"])
def test_standard_streams_are_the_process_own(stream: str) -> None:
    """A socket, which cannot be opened by its name."""
    ours, theirs = socket.socketpair()
    with ours, theirs, writer(stream, theirs.fileno()) as process:
        assert tell(process, 2, 3) == 0
        lines = ours.recv(65536).decode().splitlines()
    assert len(lines) == 2
    assert all('"GET /aaa HTTP/1.1"' in line for line in lines)


def test_a_full_pipe_loses_lines_and_tears_none() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with writer("/dev/stdout", writing) as process:
        # A pipe holds 65536 bytes. What does not fit into it is lost, a part of one line included.
        lost = tell(process, 10, 10_000)
        assert lost in (4, 5)
        assert tell(process, 1, 10_000) >= lost
        torn = os.read(reading, 1 << 20)
        lost = tell(process, 0, 0)
        assert tell(process, 1, 3) == lost
        afterwards = os.read(reading, 1 << 20)
    assert not torn.endswith(b"\n")
    assert afterwards.startswith(b"\n- - - [")
    assert afterwards.count(b'"GET /aaa HTTP/1.1"') == 1
    os.close(reading)
    os.close(writing)


def test_a_pipe_that_nobody_reads_any_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with writer("/dev/stdout", writing) as process:
        assert tell(process, 3, 3) == 3
    os.close(writing)


# Behind real sockets.

BODIES = {"/": (200, b"hello"), "/missing": (404, b"not here\n"), "/empty": (204, b"")}


async def served(scope: Any, receive: Any, send: Any) -> None:
    """What the nginx of this test answers as well."""
    if scope["type"] == "lifespan":
        return
    status, body = BODIES.get(scope["path"], BODIES["/"])
    headers = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


NGINX = """
http {{
    log_format kong '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
                    '"$http_referer" "$http_user_agent" kong_request_id: "$http_x_kong_request_id"';
    access_log {folder}/nginx.log kong;
    client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
    server {{
        listen {host}:{port};
        set_real_ip_from 127.0.0.0/8;
        real_ip_header X-Forwarded-For;
        merge_slashes off;
        location / {{ return 200 "hello"; }}
        location = /missing {{ return 404 "not here\n"; }}
        location = /empty {{ return 204; }}
    }}
}}
"""


def request(line: bytes = b"GET / HTTP/1.1", *headers: bytes) -> bytes:
    return b"\r\n".join([line, b"Host: example.com", b"Connection: close", *headers, b"", b""])


def basic(credentials: bytes) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(credentials)


REQUESTS = [
    request(),
    request(b"GET /a%20b?q=1&r=%0A HTTP/1.1"),
    request(b"GET /a/../b//c/./d HTTP/1.1"),
    request(b'GET /a"b?c="d" HTTP/1.1'),
    request(b"GET /a\\b HTTP/1.1"),
    request(b"GET /a~{|}^`<> HTTP/1.1"),
    request(b"GET /?a?b HTTP/1.1"),
    request(b"GET / HTTP/1.0"),
    request(b"HEAD / HTTP/1.1"),
    request(b"HEAD /missing HTTP/1.1"),
    request(b"POST /missing HTTP/1.1", b"Content-Length: 0"),
    request(b"GET /empty HTTP/1.1"),
    request(b"PROPFIND / HTTP/1.1"),
    request(b"DELETE / HTTP/1.1"),
    request(b"GET / HTTP/1.1", b"User-Agent:", b"Referer: ", b"X-Kong-Request-Id:"),
    request(b"GET / HTTP/1.1", b"user-agent: a", b"USER-AGENT: b", b"Referer: c", b"Referer: d"),
    request(b"GET / HTTP/1.1", b"X-Kong-Request-Id: 1", b"X-Kong-Request-Id: 2", b"User-Agent: ", b"User-Agent: a"),
    request(b"GET / HTTP/1.1", b'User-Agent: a"b\\c\xe9\xc3\xa9\x85\xe2\x80\xa8\xff|~ d', b"Referer: \x80"),
    request(b"GET / HTTP/1.1", b"User-Agent: a\tb" + b"x" * 2000),
    request(b"GET / HTTP/1.1", b"X-Kong-Request-Id: 0a1b2c3d4e5f", b"User-Agent: curl/8.5.0"),
    request(b"GET / HTTP/1.1", b"X-Forwarded-For: 203.0.113.7"),
    request(b"GET / HTTP/1.1", b"X-Forwarded-For: [2001:db8::7]:80"),
    request(b"GET / HTTP/1.1", b"X-Forwarded-For: evil\"\xe9"),
    *(
        request(b"GET / HTTP/1.1", header)
        for header in (
            basic(b"joe:secret"),
            basic(b"joe:"),
            basic(b":secret"),
            basic(b"joe"),
            basic(b'j o"\xe9\n\x1b\\e:x'),
            basic(b"joe:x").rstrip(b"="),
            basic(b"joe:x") + b"=x",
            b"Authorization: bAsIc   am9lOg==",
            b"Authorization: Basic",
            b"Authorization: Basic am9lOnB3 x",
            b"Authorization: Basic am9lOnB",
            b"Authorization: Basic am9lO",
            b"Authorization: Basic am9lO=",
            b"Authorization: Basic am9l_zpw",
            b"Authorization: Basic !!!",
            b"Authorization: Basic a!m9lOnB3!!!",
            b"Authorization: Bearer joe:x",
        )
    ),
]  # fmt: skip


@pytest.mark.usefixtures("real_time")
@pytest.mark.parametrize("loop", LOOPS)
def test_lines_are_those_of_nginx(tmp_path: Path, loop: str) -> None:
    nginx_port, nginx_log = free_port(), tmp_path / "nginx.log"
    config = NGINX.format(folder=tmp_path, host=LOOPBACK, port=nginx_port)
    peers = []
    with serving(tmp_path) as (lab, log), nginx(tmp_path, config, nginx_port):
        port = lab.add(Settings(trusted_ips=("127.0.0.0/8",), real_ip_header="X-Forwarded-For"))
        with lab.running(loop):
            for data in REQUESTS:
                (ours, peer), (theirs, _) = exchange(port, data), exchange(nginx_port, data)
                assert ours[:12] == theirs[:12], data
                peers.append(peer)
            # nginx may close first, and write its line afterwards.
            wait_until(lambda: len(lines(nginx_log)) == len(REQUESTS), "nginx's lines")
    found = [line.partition(' client: "') for line in lines(log)]
    for data, (line, _, who), expected, peer in zip(REQUESTS, found, lines(nginx_log), peers, strict=True):
        assert masked(line) == masked(expected), data
        assert f' peer: "{peer}" source: "' in who


@pytest.mark.parametrize(
    ("sent", "logged_as"),
    [
        (b"GET /a? HTTP/1.1", "GET /a HTTP/1.1"),
        (b"GET /a?b#c HTTP/1.1", "GET /a?b HTTP/1.1"),
        (b"GET  /a HTTP/1.1", "GET /a HTTP/1.1"),
        (b"GET http://example.com/a HTTP/1.1", "GET /a HTTP/1.1"),
    ],
)
@pytest.mark.usefixtures("real_time")
def test_what_of_a_request_line_the_scope_does_not_keep(tmp_path: Path, sent: bytes, logged_as: str) -> None:
    with serving(tmp_path) as (lab, path):
        port = lab.add(Settings())
        with lab.running("asyncio"):
            exchange(port, request(sent))
    assert [line.split('"')[1] for line in lines(path)] == [logged_as]


@pytest.mark.usefixtures("real_time")
def test_unix_socket(tmp_path: Path) -> None:
    with serving(tmp_path) as (lab, path):
        name = lab.add_unix(Settings(trusted_ips=("unix:",), real_ip_header="X-Forwarded-For"))
        with lab.running("asyncio"):
            for header in (b"A: b", b"X-Forwarded-For: 203.0.113.7"):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(name)
                    sock.sendall(request(b"GET / HTTP/1.1", header))
                    assert b"".join(received(sock)).endswith(b"hello")
    found = [(line.split(" ")[0], line.partition(" client: ")[2]) for line in lines(path)]
    assert found == [
        ("unix:", '"unix:" peer: "unix:" source: "peer"'),
        ("203.0.113.7", '"203.0.113.7" peer: "unix:" source: "X-Forwarded-For"'),
    ]


@pytest.mark.usefixtures("real_time")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_hangs_up(tmp_path: Path, loop: str) -> None:
    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await answering(GONE, START, BODY)(scope, receive, send)

    with serving(tmp_path, waiting) as (lab, path):
        port = lab.add(Settings())
        with lab.running(loop):
            with connect(port) as sock:
                sock.sendall(request())
            wait_until(lambda: bool(lines(path)), "a line")
    (line,) = lines(path)
    assert line.startswith(f"{CLIENT_IP} - - [")
    assert '"GET / HTTP/1.1" 499 0 "' in line


@pytest.mark.usefixtures("real_time")
@pytest.mark.parametrize("form", FORMS)
async def test_websocket_over_a_socket(tmp_path: Path, form: str) -> None:
    async def greeting(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/closed":
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        await answering(GONE)(scope, receive, send)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await greeting(scope, receive, send)

    with serving(tmp_path, app, form) as (lab, path):
        port = lab.add(Settings())
        with lab.running("asyncio"):
            async with websockets.connect(f"ws://{LOOPBACK}:{port}/a?b", user_agent_header="me") as socket:
                assert await socket.recv() == "hello"
                assert lines(path) == []
            with pytest.raises(websockets.InvalidStatus):
                await websockets.connect(f"ws://{LOOPBACK}:{port}/closed")
    opened, refused = lines(path)
    if form == "kong":
        assert '"GET /a?b HTTP/1.1" 101 5 "-" "me" kong_request_id: "-" client: "127.0.0.1:' in opened
        assert '"GET /closed HTTP/1.1" 403 0 "-"' in refused
    else:
        members = json.loads(opened)
        assert (members["url.scheme"], members["url.query"]) == ("ws", "b")
        assert members["http.server.request.duration"] > 0
        assert json.loads(refused)["http.response.status_code"] == 403


@contextmanager
def serving(folder: Path, app: Any = served, form: str = "kong") -> Iterator[tuple[Lab, Path]]:
    """A server that is to be given listeners, and the file that it logs to."""
    path = folder / "access.log"
    log = AccessLog(str(path), form)
    yield Lab(app=logged(app, log)), path
    log.close()


def lines(path: Path) -> list[str]:
    return path.read_text("ascii").split("\n")[:-1] if path.exists() else []


def masked(line: str) -> str:
    return re.sub(r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [-+]\d{4}\]", "[time]", line)
