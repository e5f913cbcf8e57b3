"""The listener over real sockets: pieces, TLS behind the preamble, deadlines, limits, hints, the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import socket
import ssl
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kongrealip import Settings
from kongrealip.config import Listen
from kongrealip.config.listen import HTTP_FLAGS, parse_listen
from kongrealip.errors import StartError
from kongrealip.server import listener, refusals, sockets
from kongrealip.server.counters import Counters, keys_of
from kongrealip.server.protocols import HTTP1Protocol
from kongrealip.server.reception import Arrival, Reception
from kongrealip.server.refusals import RefusalLog
from tests.lab import LOOPS, Lab, client_tls, connect
from tests.test_wire_vectors import read_answer

SETTINGS = Settings(trusted_ips=("127.0.0.1/32",), real_ip_header="proxy_protocol")
V1 = b"PROXY TCP4 203.0.113.7 198.51.100.9 51000 443\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x10" + bytes.fromhex("cb007107c6336409c73801bb") + b"\xea\x00\x01x"
REQUEST = b"GET / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def _all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is tested by itself; here many refusals come in one second."""
    monkeypatch.setattr(refusals, "_LINES_A_SECOND", 1000)


class Ports:
    plain: int
    preamble: int
    tls: int
    tls_without: int
    unix: str


@pytest.fixture(scope="module", params=LOOPS)
def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    lab = Lab()
    found = Ports()
    found.plain = lab.add(SETTINGS)
    found.preamble = lab.add(SETTINGS, flags=("proxy_protocol", "deferred", "so_keepalive=30m:10s:5"))
    found.tls = lab.add(SETTINGS, flags=("ssl", "proxy_protocol"))
    found.tls_without = lab.add(SETTINGS, flags=("ssl",))
    found.unix = lab.add_unix(SETTINGS, ("proxy_protocol",))
    with lab.running(request.param):
        yield found


async def ask(target: int | str, *pieces: bytes, pause: float = 0.001) -> dict[str, Any]:
    """Send the pieces one after the other and return what the application saw."""
    reader, writer = await connect(target)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        status, body = await read_answer(reader)
        assert status == 200
        return body
    finally:
        writer.close()


def decided(body: dict[str, Any]) -> tuple[str, int]:
    return body["client_ip"], body["client_port"]


@pytest.mark.parametrize("preamble", [V1, V2], ids=["v1", "v2"])
async def test_split_at_every_byte(ports: Ports, preamble: bytes) -> None:
    data = preamble + REQUEST
    answers = await asyncio.gather(
        *(ask(ports.preamble, data[:cut], data[cut:]) for cut in range(1, len(preamble) + 3))
    )
    assert {decided(answer)[0] for answer in answers} == {"203.0.113.7"}


async def test_byte_by_byte(ports: Ports) -> None:
    data = V2 + REQUEST
    body = await ask(ports.preamble, *(data[i : i + 1] for i in range(len(data))))
    assert decided(body) == ("203.0.113.7", 51000)
    assert body["preamble"]["tlvs"] == {"ea": "78"}


async def test_not_a_byte_of_the_body_is_taken(ports: Ports) -> None:
    """A body that looks like a preamble stays a body."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(V1)
    assert decided(await ask(ports.preamble, V2 + head + V1)) == ("203.0.113.7", 51000)


class ClientTLS:
    """TLS by hand, so that preamble and ClientHello can be cut anywhere."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_tls().wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def ask(self, port: int, preamble: bytes, cut: int) -> dict[str, Any]:
        reader, writer = await connect(port)
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        hello = preamble + self.outgoing.read()
        for piece in (hello[:cut], hello[cut:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
        await self._step(reader, writer, self.tls.do_handshake)
        await self._step(reader, writer, lambda: self.tls.write(REQUEST))
        answer = b""
        while b"\r\n\r\n{" not in answer or not answer.endswith(b"}"):
            answer += await self._step(reader, writer, lambda: self.tls.read(65536))
        writer.close()
        body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return body

    async def _step(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, do: Any) -> Any:
        while True:
            try:
                result = do()
                writer.write(self.outgoing.read())
                return result
            except ssl.SSLWantReadError:
                writer.write(self.outgoing.read())
                self.incoming.write(await reader.read(65536))


@pytest.mark.parametrize("preamble", [V1, V2], ids=["v1", "v2"])
async def test_client_hello_in_one_segment_with_the_preamble(ports: Ports, preamble: bytes) -> None:
    body = await ClientTLS().ask(ports.tls, preamble, cut=100_000)
    assert decided(body) == ("203.0.113.7", 51000)
    assert body["tls"]
    assert body["scheme"] == "https"


@pytest.mark.parametrize("preamble", [V1, V2], ids=["v1", "v2"])
async def test_client_hello_split_at_any_byte(ports: Ports, preamble: bytes) -> None:
    gate = asyncio.Semaphore(8)

    async def one(cut: int) -> str:
        async with gate:
            return decided(await ClientTLS().ask(ports.tls, preamble, cut))[0]

    cuts = [*range(1, len(preamble) + 8), len(preamble) + 100, len(preamble) + 250]
    assert set(await asyncio.gather(*map(one, cuts))) == {"203.0.113.7"}


async def test_unix_socket(ports: Ports) -> None:
    body = await ask(ports.unix, V1 + REQUEST)
    # unix: is not in the trusted list, so the preamble is read and not used.
    assert (body["client_ip"], body["peer_ip"], body["source"]) == ("unix:", "unix:", "peer")
    assert body["preamble"]["source_ip"] == "203.0.113.7"


async def closed_without_an_answer(target: int | str, data: bytes) -> bool:
    reader, writer = await connect(target)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """The server runs in another thread: its line comes at any moment."""
    async with asyncio.timeout(10):
        while text not in caplog.text:  # noqa: ASYNC110 - the event is another thread's
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (REQUEST, "plain HTTP reached a proxy_protocol port"),
        (V2[:20], "no whole preamble before the deadline"),
        (b"PROXY TCP4 203.0.113.7 198.5", "no whole preamble before the deadline"),
        (b"PROXY UNKNOWN" + b"x" * 5000, "preamble of more than 4096 bytes"),
    ],
)
async def test_refused_with_a_line_in_the_log(
    ports: Ports, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kongrealip.server"):
        assert await closed_without_an_answer(ports.preamble, data)
    assert f": {reason}" in caplog.text
    assert "refused 127.0.0.1:" in caplog.text
    assert f" on 127.0.0.1:{ports.preamble}: " in caplog.text


async def test_closed_in_the_middle(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    _, writer = await connect(ports.preamble)
    writer.write(V1[:10])
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await logged(caplog, "closed in the middle of its preamble")


async def test_a_probe_that_only_connects_is_not_worth_a_line(
    ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    for target in (ports.preamble, ports.tls, ports.plain):
        _, writer = await connect(target)
        writer.close()
    assert await closed_without_an_answer(ports.preamble, b"junk")
    assert caplog.text.count("refused") == 1


async def test_a_preamble_on_a_plain_port_gets_a_hint(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await connect(ports.plain)
    writer.write(V1 + REQUEST)
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()
    assert "a PROXY preamble reached a port without proxy_protocol" in caplog.text


async def test_no_tls_on_a_tls_port_gets_a_hint(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await connect(ports.tls_without)
    writer.write(V1)
    await reader.read()
    writer.close()
    await logged(caplog, "plain HTTP, or a preamble, reached an ssl port without proxy_protocol")


def test_lines_are_limited_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("kongrealip.server.refusals.time.monotonic", lambda: now[0])
    monkeypatch.setattr(refusals, "_LINES_A_SECOND", 5)
    log = RefusalLog()
    for _ in range(1000):
        log.write("1.2.3.4:5", "0.0.0.0:8000", "junk")
    assert len(caplog.records) == 5
    now[0] += 1
    log.write("1.2.3.4:5", "0.0.0.0:8000", "junk")
    assert caplog.records[-1].getMessage().endswith("junk (995 more refusals since the last such line)")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_slow_head_is_not_waited_for(loop: str) -> None:
    lab = Lab(preamble_timeout=1)
    port = lab.add(SETTINGS)
    with lab.running(loop), socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(10)
        sock.sendall(REQUEST[:20])
        assert sock.recv(10) == b""
        with socket.create_connection(("127.0.0.1", port)) as kept:
            kept.settimeout(10)
            kept.sendall(REQUEST.replace(b"Connection: close\r\n", b""))
            answer = b""
            while not answer.endswith(b"]]}"):
                answer += kept.recv(4096)
            # The first byte of another request stops uvicorn's own timer.
            kept.sendall(b"G")
            assert kept.recv(10) == b""


@pytest.mark.parametrize("loop", LOOPS)
def test_the_end_closes_half_read_preambles_at_once(loop: str) -> None:
    lab = Lab(preamble_timeout=60)
    port = lab.add(SETTINGS, flags=("proxy_protocol",))
    with lab.running(loop), socket.create_connection(("127.0.0.1", port)) as half_read:
        half_read.sendall(V1[:20])
        half_read.settimeout(10)
        lab.stop()
        # A reset is closed as well: the server had not read the bytes yet.
        with contextlib.suppress(ConnectionResetError):
            assert half_read.recv(10) == b""


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EBADMSG])
async def test_accepting_pauses_when_the_system_has_nothing_left(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "_PAUSE_SECONDS", 0.05)
    accepted = asyncio.Event()

    def hand_over(arrival: Arrival) -> None:
        arrival.sock.close()
        accepted.set()

    listen = Listen("127.0.0.1", 8000)
    (sock,) = sockets.bind(listen._replace(port=0))
    failing: Any = Failing(sock, [code, errno.ECONNABORTED])
    settings = Settings(proxy_listen=(listen,))
    row = Counters(keys_of(settings), 1).row(0)
    opened = listener.Listener(failing, listen, Reception(settings, row, hand_over, hand_over, lambda: 0))
    _, writer = await connect(sock.getsockname()[1])
    await asyncio.wait_for(accepted.wait(), 10)
    writer.close()
    opened.stop()
    assert len(caplog.records) == 1
    assert "accepts no connections for a moment" in caplog.text


class Failing:
    """A listening socket whose accept fails a few times first."""

    def __init__(self, sock: socket.socket, codes: list[int]) -> None:
        self._sock = sock
        self._codes = codes

    def _accept(self) -> Any:
        if self._codes:
            raise OSError(self._codes[0], os.strerror(self._codes.pop(0)))
        return self._sock._accept()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def options(sock: socket.socket, *names: tuple[int, int]) -> list[int]:
    return [sock.getsockopt(*name) for name in names]


def test_flags_of_the_socket() -> None:
    (sock,) = sockets.bind(parse_listen("127.0.0.1:0 so_keepalive=2m:7s:4 deferred backlog=7", HTTP_FLAGS))
    tcp = socket.IPPROTO_TCP
    with sock:
        assert options(sock, (socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == [1]
        keepalive = ((tcp, socket.TCP_KEEPIDLE), (tcp, socket.TCP_KEEPINTVL), (tcp, socket.TCP_KEEPCNT))
        assert options(sock, *keepalive) == [120, 7, 4]
        assert options(sock, (tcp, socket.TCP_DEFER_ACCEPT))[0] > 0
    for value, expected in (("on", 1), ("off", 0)):
        (sock,) = sockets.bind(Listen("127.0.0.1", 0, (f"so_keepalive={value}",)))
        with sock:
            assert options(sock, (socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == [expected]


@pytest.mark.parametrize(("flags", "only"), [((), 1), (("ipv6only=on",), 1), (("ipv6only=off",), 0)])
def test_ipv6only(flags: tuple[str, ...], only: int) -> None:
    (sock,) = sockets.bind(Listen("[0000:0000:0000:0000:0000:0000:0000:0000]", 0, flags))
    with sock:
        assert options(sock, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)) == [only]


def test_names_and_wildcards() -> None:
    for sock in sockets.bind(Listen("localhost", 0)):
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")
        sock.close()
    (sock,) = sockets.bind(Listen("*", 0))
    assert sock.getsockname()[0] == "0.0.0.0"
    sock.close()


def test_a_wildcard_listener_knows_its_own_end_of_each_connection() -> None:
    lab = Lab()

    async def server_address(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            body = json.dumps(scope["server"]).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    lab.app = server_address
    port = lab.add(SETTINGS, "*")
    lab.same_app_for("127.0.0.1", port)
    with lab.running("uvloop"), socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(REQUEST)
        sock.settimeout(10)
        data = b""
        while chunk := sock.recv(4096):
            data += chunk
    assert json.loads(data.partition(b"\r\n\r\n")[2]) == ["127.0.0.1", port]


def test_what_cannot_be_bound(tmp_path: Path) -> None:
    (taken,) = sockets.bind(Listen("127.0.0.1", 0))
    with taken, pytest.raises(StartError, match=r"cannot listen on 127.0.0.1:.*: Address already in use"):
        sockets.bind(Listen("127.0.0.1", taken.getsockname()[1]))
    with pytest.raises(StartError, match=r"cannot listen on no-such-host\.invalid:80: "):
        sockets.bind(Listen("no-such-host.invalid", 80))
    with pytest.raises(StartError, match=r"cannot listen on unix:.*: No such file"):
        sockets.bind_unix(str(tmp_path / "missing" / "sock"))


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    sockets.bind_unix(path).close()
    with sockets.bind_unix(path), pytest.raises(StartError, match="Address already in use"):
        sockets.bind_unix(path)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StartError):
        sockets.bind_unix(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("piece", [1_000_000, 4096])
@pytest.mark.parametrize("size", [30_000, 100_000])
async def test_a_head_that_is_too_long_is_refused(ports: Ports, size: int, piece: int) -> None:
    line = b"X-Long: " + b"a" * size + b"\r\n"
    data = REQUEST.replace(b"Connection", line + b"Connection")
    reader, writer = await connect(ports.plain)
    for start in range(0, len(data), piece):
        writer.write(data[start : start + piece])
        await asyncio.sleep(0.001)
        if reader.at_eof() or reader.exception():
            break
    try:
        head = await reader.readline()
    except (ConnectionResetError, BrokenPipeError):
        # Closed with bytes of the head unread, which can overtake the answer.
        head = b"HTTP/1.1 400"
    assert head.startswith(b"HTTP/1.1 200" if size < 32768 else b"HTTP/1.1 400")
    writer.close()


async def test_a_long_body_is_no_head(ports: Ports) -> None:
    body = b"b" * 300_000
    head = REQUEST.replace(b"GET", b"POST").replace(b"Connection", b"Content-Length: 300000\r\nConnection")
    reader, writer = await connect(ports.plain)
    writer.write(head)
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.write(body)
    assert (await read_answer(reader))[0] == 200
    writer.close()


async def test_many_requests_at_once_are_no_long_head(ports: Ports) -> None:
    """34 KB of requests, cut in the middle of one."""
    count = 902
    kept = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"
    data = kept * (count - 1) + REQUEST
    reader, writer = await connect(ports.plain)
    writer.write(data[:-20])
    await asyncio.sleep(0.05)
    writer.write(data[-20:])
    answers = (await reader.read()).count(b"HTTP/1.1 200")
    writer.close()
    assert answers == count


async def test_a_long_head_behind_a_request_is_refused(ports: Ports) -> None:
    long = REQUEST.replace(b"Connection", b"X-Long: " + b"a" * 100_000 + b"\r\nConnection")
    reader, writer = await connect(ports.plain)
    writer.write(b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n" + long)
    received = b""
    # Closed with bytes of the head unread, which can overtake what was answered.
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while chunk := await reader.read(65536):
            received += chunk
    writer.close()
    assert received.count(b"HTTP/1.1 200") <= 1


def test_a_preamble_byte_by_byte_on_a_unix_socket(ports: Ports) -> None:
    tlvs = b"\x04\x00\xc8" + bytes(200)
    addresses = bytes.fromhex("cb007107c6336409c73801bb")
    preamble = V2[:14] + (len(addresses) + len(tlvs)).to_bytes(2, "big") + addresses + tlvs
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(ports.unix)
        for byte in preamble:
            sock.sendall(bytes([byte]))
        sock.sendall(REQUEST)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_handshake_that_was_given_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the garbage collector: an attacker is faster."""
    made: list[Any] = []
    make = HTTP1Protocol.__init__

    def noting(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(HTTP1Protocol, "__init__", noting)
    lab = Lab(preamble_timeout=0.5)
    port = lab.add(SETTINGS, flags=("ssl",))
    gc.collect()
    gc.disable()
    try:
        with lab.running("asyncio"):
            for _ in range(5):
                reader, writer = await connect(port)
                outgoing = ssl.MemoryBIO()
                with pytest.raises(ssl.SSLWantReadError):
                    client_tls().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
                writer.write(outgoing.read())
                await reader.read()
                writer.close()
            await asyncio.sleep(0.1)
            assert len(made) == 5
            assert [one() for one in made] == [None] * 5
    finally:
        gc.enable()
