"""TLS at a relay: from its clients, to its upstreams, and what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import ipaddress
import logging
import random
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kongrealip.preamble import parse
from kongrealip.preamble.tlv import entries
from kongrealip.preamble.writing import tlv
from kongrealip.server import refusals
from tests.lab import LOOPS
from tests.relay_lab import (
    PATIENCE_SECONDS,
    Load,
    RelayLab,
    Upstream,
    exactly,
    is_reset,
    reset,
    soon,
    to_the_end,
)
from tests.running import LOOPBACK, free_port
from tests.test_relay_outgoing import CLIENT, SERVICE, Told, form_v2

MEGABYTE = 1 << 20
ALPN, AUTHORITY, SSL = 0x01, 0x02, 0x20
VERSION, NAME, CIPHER = 0x21, 0x22, 0x23
# Of the SSL TLV's first byte.
BY_TLS, SHOWN_NOW, SHOWN_IN_SESSION = 1, 2, 4
VERIFY = "KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT"
CLIENT_CA = "KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE"
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
_Answer = TypeVar("_Answer")
BOTH_VERSIONS = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])


@pytest.fixture(autouse=True)
def _all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_LINES_A_SECOND", 1000)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


# Certificates


class Issued(NamedTuple):
    """A certificate with its key: ``path`` has both, ``ca`` who vouches for it."""

    path: str
    ca: str


class Authority:
    """Issues certificates, and puts them into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.path = str(folder / f"{name}.ca.pem")
        certificate = self._sign(self._name, self._key.public_key(), [], days=1, is_ca=True)
        Path(self.path).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *hosts: str, days: int = 1) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), list(map(_general_name, hosts)), days)
        path = self._folder / f"{name}.{days}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
        return Issued(str(path), self.path)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        hosts: list[x509.GeneralName],
        days: int,
        is_ca: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Papers:
    """Whatever certificates there may be."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        self.ca = ours.path
        self.server = ours.issue("server", "localhost", LOOPBACK)
        self.of_another = ours.issue("of another", "other.test")
        self.expired = ours.issue("expired", "localhost", LOOPBACK, days=-1)
        self.of_strangers = theirs.issue("of strangers", "localhost", LOOPBACK)
        self.client = ours.issue("Zoë, a client")
        self.unknown_client = theirs.issue("unknown client")


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


def asking(
    papers: Papers,
    shown: Issued | None = None,
    version: ssl.TLSVersion | None = None,
    alpn: tuple[str, ...] = (),
) -> ssl.SSLContext:
    """A client that knows our authority, and may show a certificate."""
    context = ssl.create_default_context(cafile=papers.ca)
    if shown is not None:
        context.load_cert_chain(shown.path)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def serving(issued: Issued) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.path)
    return context


class Secure:
    """TLS by hand, on either side: each direction ends by itself, and nothing is taken for an end but
    the other's goodbye."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        host: str | None = "localhost",
        session: ssl.SSLSession | None = None,
        server: bool = False,
    ) -> None:
        self.sock = sock
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self.outgoing, server, None if server else host, session=session
        )

    def shake(self, piece: int = MEGABYTE) -> Secure:
        """To the end of the handshake. What is sent goes in pieces of a size."""
        self._until_done(self.tls.do_handshake, piece)
        return self

    def shake_silently(self) -> None:
        """As far as there is something to read: the last flight is not sent yet."""
        while True:
            try:
                return self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._take(self.sock.recv(65536))

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self._flush()

    def recv(self, size: int = 65536) -> bytes:
        """Some bytes, or none where the other has said that this is all."""
        try:
            return self._until_done(lambda: self.tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.recv(size - len(data))):
            data += more
        return data

    def to_the_end(self) -> bytes:
        data = bytearray()
        while more := self.recv():
            data += more
        return bytes(data)

    def end(self) -> None:
        """Say that this is all, and go on reading."""
        self._say_goodbye()
        self._flush()
        self.sock.shutdown(socket.SHUT_WR)

    def _say_goodbye(self) -> None:
        # Everything that has come has been read: it looks for the other's goodbye as well.
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()

    def _flush(self, piece: int = MEGABYTE) -> None:
        while data := self.outgoing.read(piece):
            self.sock.sendall(data)

    def _until_done(self, do: Callable[[], _Answer], piece: int = MEGABYTE) -> _Answer:
        while True:
            try:
                answer = do()
            except ssl.SSLWantReadError:
                self._flush(piece)
                self._take(self.sock.recv(65536))
            except ssl.SSLError:
                self._flush(piece)
                raise
            else:
                self._flush(piece)
                return answer

    def _take(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def talk(self, load: Load) -> tuple[str, str]:
        """Send a load and its end, and read to the other's, both at once. Returns two digests."""
        sent, came = hashlib.sha256(), hashlib.sha256()
        pieces, unsent = load.pieces(), b""
        has_said_all = has_heard_all = False
        self.sock.setblocking(False)
        while not (has_said_all and has_heard_all and not unsent):
            if not unsent and not has_said_all:
                if (piece := next(pieces, None)) is None:
                    has_said_all = True
                    self._say_goodbye()
                else:
                    sent.update(piece)
                    self.tls.write(piece)
                unsent = self.outgoing.read()
            readable, writable, _ = select.select(
                [] if has_heard_all else [self.sock], [self.sock] if unsent else [], [], PATIENCE_SECONDS
            )
            assert readable or writable, "nothing moves any more"
            if writable:
                unsent = unsent[self.sock.send(unsent) :]
                if has_said_all and not unsent:
                    self.sock.shutdown(socket.SHUT_WR)
            if readable:
                self._take(self.sock.recv(load.length()))
                has_heard_all = self._read_all(came.update)
        self.sock.settimeout(PATIENCE_SECONDS)
        return sent.hexdigest(), came.hexdigest()

    def _read_all(self, use: Callable[[bytes], object]) -> bool:
        """All that has come, and whether it was the last."""
        try:
            while data := self.tls.read(MEGABYTE):
                use(data)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            pass
        return True


class Seen(NamedTuple):
    """What a preamble tells of TLS."""

    tlvs: list[tuple[int, bytes]]
    client: int
    verify: int
    inner: dict[int, bytes]

    def all_of(self, kind: int) -> list[bytes]:
        return [value for one, value in self.tlvs if one == kind]


def seen(upstream: socket.socket) -> Seen:
    """Read the preamble, which has to please the strict reader."""
    head = exactly(upstream, 16)
    whole = head + exactly(upstream, int.from_bytes(head[14:], "big"))
    found = parse(whole, 65551, strict=True)
    assert found is not None
    tlvs = [(kind, value) for kind, _, value in entries(found[0].tlv_area)]
    value = dict(tlvs)[SSL]
    inner = {kind: text for kind, _, text in entries(value, 5)}
    return Seen(tlvs, value[0], int.from_bytes(value[1:5], "big"), inner)


# From clients

FRIEND = {"KONG_TRUSTED_IPS": f"{LOOPBACK}/32"}
STRANGER = "127.0.0.9"


def ours(papers: Papers, **more: str) -> dict[str, str]:
    return {
        **FRIEND,
        "KONG_SSL_CERT": papers.server.path,
        "KONG_SSL_CERT_KEY": papers.server.path,
        "KONGREALIP_SEND_PROXY": "v2",
        "KONGREALIP_ALPN": "h2,http/1.1",
        **more,
    }


class Ports(NamedTuple):
    lab: RelayLab
    papers: Papers
    plain: int
    preamble: int

    def connect(
        self,
        context: ssl.SSLContext | None = None,
        host: str | None = "localhost",
        session: ssl.SSLSession | None = None,
        source: str = LOOPBACK,
    ) -> tuple[Secure, socket.socket]:
        """A client that has shaken hands, and its connection at the upstream."""
        sock = self.lab.connect(self.plain, source)
        client = Secure(sock, context or asking(self.papers), host, session).shake()
        return client, self.lab.upstream.accept()

    def talking(self, context: ssl.SSLContext | None = None) -> tuple[Secure, socket.socket]:
        """The same, with the preamble behind them."""
        client, upstream = self.connect(context)
        seen(upstream)
        return client, upstream


@pytest.fixture(scope="module", params=LOOPS)
def running(request: pytest.FixtureRequest, papers: Papers) -> Iterator[Ports]:
    lab = RelayLab(ours(papers, **{CLIENT_CA: papers.ca, VERIFY: "optional"}))
    lab.add_upstream()
    ports = Ports(lab, papers, lab.listen("ssl"), lab.listen("ssl", "proxy_protocol"))
    with lab.running(request.param):
        yield ports


@pytest.fixture
def ports(running: Ports) -> Iterator[Ports]:
    yield running
    running.lab.clean()


@BOTH_VERSIONS
def test_bytes_both_ways(ports: Ports, version: ssl.TLSVersion) -> None:
    client, upstream = ports.talking(asking(ports.papers, version=version))
    for size in (1, 16384, 16385, 3, 100_000):
        client.send(b"x" * size)
        assert exactly(upstream, size) == b"x" * size
        upstream.sendall(b"y" * size)
        assert client.exactly(size) == b"y" * size


@BOTH_VERSIONS
def test_much_both_ways_at_once(ports: Ports, version: ssl.TLSVersion, pool: ThreadPoolExecutor) -> None:
    """Small and large pieces, read and written with pauses; each ends with what says so."""
    client, upstream = ports.talking(asking(ports.papers, version=version))
    loads = [Load(seed, 5 * MEGABYTE, (1, MEGABYTE // 2), 0.003) for seed in range(3)]
    sent, came = pool.submit(loads[0].send, upstream), pool.submit(loads[1].receive, upstream)
    said, heard = client.talk(loads[2])
    assert (heard, came.result()) == (sent.result(), said)
    soon(lambda: not ports.lab.relay.open, "the pair to be gone")


def test_an_upstream_that_speaks_first(ports: Ports) -> None:
    client, upstream = ports.talking()
    upstream.sendall(b"220 ready\r\n")
    assert client.exactly(11) == b"220 ready\r\n"


def test_what_comes_with_the_last_of_the_handshake(ports: Ports) -> None:
    """In one segment with it, and with the goodbye as well."""
    for version in (TLS12, TLS13):
        sock = ports.lab.connect(ports.plain)
        client = Secure(sock, asking(ports.papers, version=version))
        client.shake_silently()
        client.tls.write(b"a question")
        client.end()
        upstream = ports.lab.upstream.accept()
        seen(upstream)
        assert to_the_end(upstream) == b"a question"
        upstream.sendall(b"an answer")
        upstream.close()
        assert client.to_the_end() == b"an answer"


@BOTH_VERSIONS
@pytest.mark.parametrize("size", [10, 3 * MEGABYTE])
def test_the_client_ends_first(
    ports: Ports, version: ssl.TLSVersion, size: int, pool: ThreadPoolExecutor
) -> None:
    client, upstream = ports.talking(asking(ports.papers, version=version))
    client.send(b"a question")
    client.end()
    assert to_the_end(upstream) == b"a question"
    load = Load(1, size)
    sending = pool.submit(load.send, upstream)
    # Without a goodbye of its own this would be an error: who cut it off could be anybody.
    assert hashlib.sha256(client.to_the_end()).hexdigest() == sending.result()


@BOTH_VERSIONS
@pytest.mark.parametrize("size", [10, 3 * MEGABYTE])
def test_the_upstream_ends_first(
    ports: Ports, version: ssl.TLSVersion, size: int, pool: ThreadPoolExecutor
) -> None:
    client, upstream = ports.talking(asking(ports.papers, version=version))
    upstream.sendall(b"all that I have to say")
    upstream.shutdown(socket.SHUT_WR)
    assert client.to_the_end() == b"all that I have to say"
    receiving = pool.submit(to_the_end, upstream)
    data = bytes(range(256)) * (size // 256 + 1)
    client.send(data)
    client.end()
    assert receiving.result() == data
    # The other direction has ended already, and it stays so.
    assert client.to_the_end() == b""


def test_the_upstream_ends_while_it_does_not_read(ports: Ports) -> None:
    """The client hears of it although what it sends is stuck, and nothing of that is lost."""
    client, upstream = ports.talking()
    sent = 0
    client.sock.setblocking(False)
    while select.select([], [client.sock], [], 0.1)[1]:
        client.tls.write(bytes(MEGABYTE))
        sent += MEGABYTE
        unsent = client.outgoing.read()
        while unsent and select.select([], [client.sock], [], 0.1)[1]:
            unsent = unsent[client.sock.send(unsent) :]
        if unsent:
            break
        assert sent < 200 * MEGABYTE
    client.sock.settimeout(5)
    upstream.sendall(b"too much")
    upstream.shutdown(socket.SHUT_WR)
    assert client.to_the_end() == b"too much"
    client.sock.settimeout(PATIENCE_SECONDS)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(to_the_end, upstream)
        client.sock.sendall(unsent)
        client.end()
        assert len(receiving.result()) == sent


def test_a_client_that_is_gone_before_the_upstream_has_read(ports: Ports) -> None:
    """Nobody is there to say goodbye to. That is no reason to take anything back."""
    client, upstream = ports.talking()
    # What it has not read would make its end a reset: the tickets of 1.3.
    upstream.sendall(b"hello")
    assert client.exactly(5) == b"hello"
    client.send(b"x" * 300_000)
    client.end()
    client.sock.close()
    ports.lab.wait_for_rest()
    upstream.shutdown(socket.SHUT_WR)
    assert len(to_the_end(upstream)) == 300_000


def test_both_end_at_once(ports: Ports) -> None:
    client, upstream = ports.talking()
    with ports.lab.held():
        client.send(b"last words")
        client.end()
        upstream.sendall(b"last words")
        upstream.shutdown(socket.SHUT_WR)
    assert to_the_end(upstream) == client.to_the_end() == b"last words"


def test_a_goodbye_has_room_however_slowly_one_reads(loop: str, papers: Papers) -> None:
    """Also where the last byte was the last that the socket took."""
    lab = RelayLab(ours(papers, KONGREALIP_SEND_PROXY="off"))
    lab.add_upstream()
    lab.listen("ssl")
    lab.small_buffers()
    with lab.running(loop):
        for size in range(10_000, 200_000, 4999):
            client = Secure(lab.connect(receive_buffer=4096), asking(papers)).shake()
            upstream = lab.upstream.accept()
            upstream.sendall(b"x" * size)
            upstream.close()
            lab.wait_for_rest()
            assert len(client.to_the_end()) == size
            client.sock.close()


def test_one_that_hangs_up_without_a_goodbye(ports: Ports) -> None:
    """Many do: it is an end."""
    client, upstream = ports.talking()
    client.send(b"a question")
    client.sock.shutdown(socket.SHUT_WR)
    assert to_the_end(upstream) == b"a question"
    upstream.sendall(b"an answer")
    upstream.close()
    assert client.to_the_end() == b"an answer"


def test_a_reset_is_a_reset(ports: Ports) -> None:
    client, upstream = ports.talking()
    reset(client.sock)
    assert is_reset(upstream)
    client, upstream = ports.talking()
    reset(upstream)
    assert is_reset(client.sock)


def test_damaged_records_are_a_reset(ports: Ports) -> None:
    """What follows the damage may be anybody's."""
    client, upstream = ports.talking()
    client.send(b"good")
    assert exactly(upstream, 4) == b"good"
    client.tls.write(b"bad")
    record = client.outgoing.read()
    client.sock.sendall(record[:-1] + bytes([record[-1] ^ 1]))
    assert is_reset(upstream)


# What is told of it


@BOTH_VERSIONS
def test_version_and_cipher(ports: Ports, version: ssl.TLSVersion) -> None:
    client, upstream = ports.connect(asking(ports.papers, version=version))
    found = seen(upstream)
    cipher = client.tls.cipher()
    assert cipher is not None
    assert found.inner == {VERSION: (client.tls.version() or "").encode(), CIPHER: cipher[0].encode()}
    assert (found.client, found.verify != 0) == (BY_TLS, True)
    assert found.all_of(AUTHORITY) == [b"localhost"]
    assert [kind for kind, _ in found.tlvs].count(SSL) == 1


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [((), []), (("http/1.1",), [b"http/1.1"]), (("http/1.1", "h2"), [b"h2"]), (("imap",), [])],
)
def test_the_protocol(ports: Ports, offered: tuple[str, ...], chosen: list[bytes]) -> None:
    client, upstream = ports.connect(asking(ports.papers, alpn=offered))
    assert seen(upstream).all_of(ALPN) == chosen
    assert client.tls.selected_alpn_protocol() == (chosen[0].decode() if chosen else None)


@pytest.mark.parametrize(
    ("host", "told"),
    [("localhost", [b"localhost"]), ("xn--bcher-kva.test", [b"xn--bcher-kva.test"]), (None, [])],
)
def test_the_name_that_was_asked_for(ports: Ports, host: str | None, told: list[bytes]) -> None:
    context = asking(ports.papers)
    context.check_hostname = False
    _, upstream = ports.connect(context, host)
    assert seen(upstream).all_of(AUTHORITY) == told


@BOTH_VERSIONS
def test_a_certificate_that_was_verified(ports: Ports, version: ssl.TLSVersion) -> None:
    _, upstream = ports.connect(asking(ports.papers, ports.papers.client, version))
    found = seen(upstream)
    assert found.client == BY_TLS | SHOWN_NOW | SHOWN_IN_SESSION
    assert found.verify == 0
    assert found.inner[NAME] == "Zoë, a client".encode()


@BOTH_VERSIONS
@pytest.mark.parametrize("with_certificate", [True, False])
def test_a_session_that_is_resumed(ports: Ports, version: ssl.TLSVersion, with_certificate: bool) -> None:
    """It repeats what it began with: the certificate, though not on this connection, and the name."""
    shown = ports.papers.client if with_certificate else None
    context = asking(ports.papers, shown, version, ("h2",))
    client, upstream = ports.connect(context)
    first = seen(upstream)
    # Of 1.3 the tickets come behind the handshake.
    upstream.sendall(b"x")
    assert client.exactly(1) == b"x"
    session = client.tls.session
    client.end()
    resumed, upstream = ports.connect(context, session=session)
    assert resumed.tls.session_reused
    second = seen(upstream)
    assert second.client == BY_TLS | (SHOWN_IN_SESSION if with_certificate else 0)
    assert second[2:] == first[2:]
    assert second.all_of(AUTHORITY) == [b"localhost"]
    assert second.all_of(ALPN) == [b"h2"]


OURS = tlv(0xEA, b"vpce-1")
FORGED = [
    tlv(ALPN, b"forged"), tlv(AUTHORITY, b"forged"), tlv(SSL, b"\x07\x00\x00\x00\x00" + tlv(NAME, b"root")),
]  # fmt: skip


@pytest.mark.parametrize("source", [LOOPBACK, STRANGER])
def test_what_came_is_replaced(ports: Ports, source: str) -> None:
    """Who ends TLS knows; of two of a kind a reader would take either."""
    sock = ports.lab.connect(ports.preamble, source)
    sock.sendall(form_v2(Told(CLIENT, SERVICE, b"".join([FORGED[0], OURS, *FORGED, OURS]))))
    Secure(sock, asking(ports.papers, alpn=("h2",))).shake()
    found = seen(ports.lab.upstream.accept())
    assert found.all_of(ALPN) == [b"h2"]
    assert found.all_of(AUTHORITY) == [b"localhost"]
    assert (len(found.all_of(SSL)), found.client) == (1, BY_TLS)
    assert found.all_of(0xEA) == ([b"vpce-1"] * 2 if source == LOOPBACK else [])


def test_nothing_that_was_said_of_another_handshake_is_told_of_ours(ports: Ports) -> None:
    """Where ours has no protocol and no name, a friend's words about them are not about ours."""
    sock = ports.lab.connect(ports.preamble)
    sock.sendall(form_v2(Told(CLIENT, SERVICE, b"".join([*FORGED, OURS]))))
    context = asking(ports.papers)
    context.check_hostname = False
    Secure(sock, context, host=None).shake()
    found = seen(ports.lab.upstream.accept())
    assert found.all_of(ALPN) == found.all_of(AUTHORITY) == []
    assert found.all_of(0xEA) == [b"vpce-1"]


def test_a_form_without_room_for_it(loop: str, papers: Papers) -> None:
    lab = RelayLab(ours(papers, KONGREALIP_SEND_PROXY="v1"))
    lab.add_upstream()
    lab.listen("ssl")
    with lab.running(loop):
        client = Secure(lab.connect(), asking(papers)).shake()
        client.send(b"x")
        client.end()
        (source, port), (destination, destination_port) = client.sock.getsockname(), client.sock.getpeername()
        line = f"PROXY TCP4 {source} {destination} {port} {destination_port}\r\n"
        assert to_the_end(lab.upstream.accept()) == line.encode() + b"x"


# Who may come in


VERIFIES = ("off", "optional", "on")


@pytest.fixture(scope="module", params=LOOPS)
def verifying(request: pytest.FixtureRequest, papers: Papers) -> Iterator[dict[str, RelayLab]]:
    """A relay for each word."""
    with contextlib.ExitStack() as stack:
        labs = {}
        for verify in VERIFIES:
            labs[verify] = lab = RelayLab(ours(papers, **{CLIENT_CA: papers.ca, VERIFY: verify}))
            lab.add_upstream()
            lab.listen("ssl")
            stack.enter_context(lab.running(request.param))
        yield labs


@BOTH_VERSIONS
@pytest.mark.parametrize("verify", VERIFIES)
@pytest.mark.parametrize("shown", ["nothing", "good", "unknown"])
def test_client_certificates(
    verifying: dict[str, RelayLab], papers: Papers, version: ssl.TLSVersion, verify: str, shown: str
) -> None:
    lab = verifying[verify]
    issued = {"nothing": None, "good": papers.client, "unknown": papers.unknown_client}[shown]
    client = Secure(lab.connect(), asking(papers, issued, version))
    name = f"{LOOPBACK}:{lab.port}"
    failures = lab.counted("tls_failures", name)
    if (verify, shown) in {("on", "nothing"), ("on", "unknown"), ("optional", "unknown")}:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            # Of 1.3 the client is through before it is judged.
            client.shake().recv()
        lab.wait_for_count("tls_failures", name, count=failures + 1)
        assert lab.upstream.has_none()
    else:
        client.shake()
        found = seen(lab.upstream.accept())
        is_verified = (verify, shown) in {("on", "good"), ("optional", "good")}
        assert (found.verify == 0) == (NAME in found.inner) == is_verified
        assert found.client == BY_TLS | (SHOWN_NOW | SHOWN_IN_SESSION if is_verified else 0)
    lab.clean()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 203.0.113.7 198.51.100.9 51000 443\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x17\x03\x03\x00\x01x",
        b"\x15\x03\x01\x00\x02\x01\x00",
        b"\x80\x2e\x01\x00\x02" + bytes(60),
    ],
)
def test_what_is_no_tls_is_refused(ports: Ports, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    name = f"{LOOPBACK}:{ports.plain}"
    before = ports.lab.counted("tls_failures", name)
    with caplog.at_level(logging.WARNING, "kongrealip.server"):
        client = ports.lab.connect(ports.plain)
        client.sendall(garbage)
        # An alert may come first.
        with contextlib.suppress(ConnectionResetError):
            to_the_end(client)
        ports.lab.wait_for_count("tls_failures", name, count=before + 1)
        assert "TLS handshake failed: " in caplog.text
    assert ports.lab.upstream.has_none()


@BOTH_VERSIONS
def test_a_handshake_in_pieces(ports: Ports, version: ssl.TLSVersion) -> None:
    """Byte by byte, and all at once with others that do the same."""
    context = asking(ports.papers, ports.papers.client, version)
    clients = [Secure(ports.lab.connect(ports.plain), context).shake(1) for _ in range(3)]
    for client in clients:
        seen(upstream := ports.lab.upstream.accept())
        client.send(b"x")
        client.end()
        assert to_the_end(upstream) == b"x"


@pytest.mark.parametrize("cut", [0, 1, 5, 100, 100_000])
def test_one_that_leaves_in_its_handshake(ports: Ports, cut: int) -> None:
    client = Secure(ports.lab.connect(ports.plain), asking(ports.papers))
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.sock.sendall(client.outgoing.read()[:cut])
    if cut % 2:
        reset(client.sock)
    else:
        client.sock.close()
    soon(lambda: not ports.lab.half_open, "it to be forgotten")
    assert ports.lab.upstream.has_none()
    client, upstream = ports.talking()
    client.send(b"x")
    assert exactly(upstream, 1) == b"x"


def test_a_handshake_has_a_deadline(loop: str, papers: Papers, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it stopped at; and one that is through has as long as it likes."""
    environ = ours(papers, KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT="300ms")
    lab = RelayLab(environ)
    lab.add_upstream()
    lab.listen("ssl")
    with lab.running(loop), caplog.at_level(logging.WARNING, "kongrealip.server"):
        through = Secure(lab.connect(), asking(papers)).shake()
        clients = [half_shaken(lab, papers, cut) for cut in (0, 1, 50, MEGABYTE)]
        assert all(ended(client) for client in clients)
        lab.wait_for_count("refused", "timeout", count=4)
        assert caplog.text.count("no whole TLS handshake before the deadline") == 1
        assert caplog.text.count("no TLS handshake before the deadline") == 3
        through.send(b"x")
        upstream = lab.upstream.accept()
        seen(upstream)
        assert exactly(upstream, 1) == b"x"
        assert lab.upstream.has_none()


def half_shaken(lab: RelayLab, papers: Papers, cut: int) -> socket.socket:
    """A client that stops within its first flight, or behind it."""
    client = Secure(lab.connect(), asking(papers))
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.sock.sendall(client.outgoing.read()[:cut])
    return client.sock


def ended(sock: socket.socket) -> bool:
    """Whether it was closed, in whatever way."""
    with contextlib.suppress(ConnectionResetError):
        to_the_end(sock)
    return True


def test_too_many_in_their_handshake(loop: str, papers: Papers) -> None:
    """The oldest goes, and who comes last is served."""
    lab = RelayLab(ours(papers, KONGREALIP_HALF_OPEN_CONNECTIONS="5"))
    lab.add_upstream()
    lab.listen("ssl")
    with lab.running(loop):
        clients = []
        for _ in range(12):
            clients.append(half_shaken(lab, papers, MEGABYTE))
            lab.wait_for_count("refused", "crowded_out", count=len(clients) - 5)
            soon(lambda: lab.in_handshake == min(len(clients), 5), "it to be seen")
        client = Secure(lab.connect(), asking(papers)).shake()
        seen(upstream := lab.upstream.accept())
        client.send(b"x")
        assert exactly(upstream, 1) == b"x"
        assert all(ended(one) for one in clients[:7])
        lab.wait_for_count("refused", "crowded_out", count=8)
        assert lab.in_handshake == 4


def test_who_may_not_come_in_leaves_no_trace(loop: str, papers: Papers) -> None:
    """The number of its descriptor is the next one's, who must not be taken for it."""
    lab = RelayLab(ours(papers, KONGREALIP_ALLOW=f"{STRANGER}/32"))
    lab.add_upstream()
    port = lab.listen("ssl")
    with lab.running(loop), contextlib.ExitStack() as stack:
        for number in range(1, 4):
            refused = Secure(lab.connect(), asking(papers))
            # Before that one is closed: the number is to be free when the relay accepts.
            sock = stack.enter_context(socket.socket())
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                refused.shake().recv()
            lab.wait_for_count("refused", "not_allowed", count=number)
            lab.wait_for_rest()
            sock.settimeout(3)
            sock.bind((STRANGER, 0))
            sock.connect((LOOPBACK, port))
            client = Secure(sock, asking(papers)).shake()
            seen(upstream := lab.upstream.accept())
            client.send(b"x")
            assert exactly(upstream, 1) == b"x"


class Chaos:
    """Clients and upstreams that do whatever comes to their minds, by a seed."""

    def __init__(self, port: int, context: ssl.SSLContext, seed: int) -> None:
        self._port = port
        self._context = context
        self._random = random.Random(seed)
        self._serving: list[Any] = []
        self.mixed_up: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An upstream that mostly returns what it gets."""
        self._serving.append(asyncio.current_task())
        mood = self._random.random()
        with contextlib.suppress(OSError):
            if mood < 0.15:
                writer.transport.abort()
            elif mood < 0.9:
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def come(self, number: int) -> None:
        mood, token = (
            self._random.random(),
            str(number).encode().ljust(8) * self._random.choice([1, 50, 30_000]),
        )
        if mood < 0.15:
            await self._leave_early()
            return
        context = None if mood > 0.9 else self._context
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            source = (LOOPBACK if self._random.random() < 0.2 else STRANGER, 0)
            reader, writer = await asyncio.open_connection(
                LOOPBACK, self._port, ssl=context, server_hostname=context and "localhost", local_addr=source
            )
            try:
                writer.write(token)
                if mood > 0.5:
                    answer = await reader.readexactly(len(token))
                    if answer != token:
                        self.mixed_up.append(answer)
            finally:
                writer.transport.abort()

    async def _leave_early(self) -> None:
        """In the middle of a ClientHello, or of something that is none."""
        _, writer = await asyncio.open_connection(LOOPBACK, self._port)
        writer.write(self._random.choice([b"", b"\x16", b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n"]))
        if self._random.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def run(self, upstream: Upstream, count: int) -> None:
        gate = asyncio.Semaphore(40)

        async def one(number: int) -> None:
            async with gate:
                await self.come(number)

        upstream.sock.setblocking(False)
        async with asyncio.timeout(30), await asyncio.start_server(self.serve, sock=upstream.sock.dup()):
            await asyncio.gather(*map(one, range(count)))
            await asyncio.gather(*self._serving)
        self._serving.clear()


def test_whatever_they_do_nothing_is_left_and_nobody_gets_what_is_anothers(loop: str, papers: Papers) -> None:
    """With refusals, resets, and upstreams that fail, while numbers of descriptors are used again."""
    environ = ours(papers, KONGREALIP_ALLOW=f"{STRANGER}/32", KONGREALIP_SEND_PROXY="off")
    lab = RelayLab(environ)
    upstream = lab.add_upstream()
    lab.add_name(f"{LOOPBACK}:{free_port()}")
    lab.listen("ssl")
    with lab.running(loop):
        chaos = Chaos(lab.port, asking(papers), 7)
        asyncio.run(chaos.run(upstream, 50))
        soon(lambda: not lab.relay.open and not lab.half_open, "the first to be gone")
        before = lab.descriptors()
        asyncio.run(chaos.run(upstream, 800))
        assert chaos.mixed_up == []
        soon(lambda: not lab.relay.open and not lab.half_open, "all to be gone")
        assert lab.descriptors() <= before
        assert lab.relay.readiness._handlers == {}
        assert lab.relay.pipes._lent == 0


# To upstreams


class Secured:
    """A relay whose upstreams speak TLS, and those who answer there."""

    def __init__(
        self, environ: Mapping[str, str], *shown: ssl.SSLContext | None, host: str = LOOPBACK
    ) -> None:
        self.lab = RelayLab({"KONGREALIP_UPSTREAM_TLS": "on", **environ})
        self.contexts = shown
        for _ in shown:
            self.lab.add_upstream(known_as=host)
        self.lab.listen()

    def accept(self, number: int = 0, preamble: int = 0) -> Secure:
        """Shake hands as one of the upstreams, behind a preamble of a size."""
        sock = self.lab.upstreams[number].accept()
        assert len(exactly(sock, preamble)) == preamble
        context = self.contexts[number]
        assert context is not None
        return Secure(sock, context, server=True).shake()


@pytest.fixture(scope="module", params=LOOPS)
def upward_running(request: pytest.FixtureRequest, papers: Papers) -> Iterator[Secured]:
    made = Secured({"KONGREALIP_UPSTREAM_TLS_CA": papers.ca}, serving(papers.server))
    with made.lab.running(request.param):
        yield made


@pytest.fixture
def upward(upward_running: Secured) -> Iterator[Secured]:
    """One upstream with a certificate that can be verified."""
    yield upward_running
    upward_running.lab.clean()


def test_much_to_an_upstream_both_ways_at_once(upward: Secured, pool: ThreadPoolExecutor) -> None:
    client = upward.lab.connect()
    upstream = upward.accept()
    loads = [Load(seed, 5 * MEGABYTE, (1, MEGABYTE // 2), 0.003) for seed in range(3)]
    sent, came = pool.submit(loads[0].send, client), pool.submit(loads[1].receive, client)
    said, heard = upstream.talk(loads[2])
    assert (heard, came.result()) == (sent.result(), said)
    soon(lambda: not upward.lab.relay.open, "the pair to be gone")


def test_the_ends_of_an_upstream(upward: Secured) -> None:
    """In both orders, and each direction with a goodbye."""
    client = upward.lab.connect()
    upstream = upward.accept()
    client.sendall(b"a question")
    client.shutdown(socket.SHUT_WR)
    assert upstream.to_the_end() == b"a question"
    upstream.send(b"an answer" * 10_000)
    upstream.end()
    assert to_the_end(client) == b"an answer" * 10_000

    client = upward.lab.connect()
    upstream = upward.accept()
    upstream.send(b"a greeting")
    upstream.end()
    assert to_the_end(client) == b"a greeting"
    client.sendall(b"and now I" * 10_000)
    client.shutdown(socket.SHUT_WR)
    assert upstream.to_the_end() == b"and now I" * 10_000


def test_an_upstream_that_is_gone_before_the_client_has_read(upward: Secured) -> None:
    client = upward.lab.connect(receive_buffer=4096)
    upstream = upward.accept()
    upstream.send(b"x" * 1_000_000)
    upstream.end()
    upstream.sock.close()
    pairs = upward.lab.relay.pairs
    soon(lambda: any(pair.from_upstream.has_ended for pair in list(pairs)), "all to be on its way")
    client.shutdown(socket.SHUT_WR)
    soon(lambda: not upward.lab.relay.open, "the pair to be gone")
    assert len(to_the_end(client)) == 1_000_000


def test_resets_of_an_upstream(upward: Secured) -> None:
    client = upward.lab.connect()
    reset(upward.accept().sock)
    assert is_reset(client)
    client = upward.lab.connect()
    upstream = upward.accept()
    reset(client)
    assert is_reset(upstream.sock)


def test_a_client_that_leaves_while_the_upstream_shakes_hands(upward: Secured) -> None:
    client = upward.lab.connect()
    sock = upward.lab.upstream.accept()
    assert exactly(sock, 1) == b"\x16"
    reset(client)
    soon(lambda: not upward.lab.relay.open, "it to be noticed")
    assert ended(sock)


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_the_preamble_precedes_tls_in_clear(loop: str, papers: Papers, form: str) -> None:
    environ = {"KONGREALIP_UPSTREAM_TLS_CA": papers.ca, "KONGREALIP_SEND_PROXY": form}
    made = Secured(environ, serving(papers.server))
    with made.lab.running(loop):
        client = made.lab.connect()
        ends = client.getsockname(), client.getpeername()
        told = f"PROXY TCP4 {LOOPBACK} {LOOPBACK} {ends[0][1]} {ends[1][1]}\r\n".encode()
        expected = told if form == "v1" else form_v2(Told(*ends))
        sock = made.lab.upstream.accept()
        assert exactly(sock, len(expected)) == expected
        upstream = Secure(sock, serving(papers.server), server=True).shake()
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        assert upstream.to_the_end() == b"x"
        # It is no part of what was relayed.
        assert made.lab.counted("relayed_bytes", "to_upstream") == 1


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ("of_another", "IP address mismatch"),
        ("expired", "expired"),
        ("of_strangers", "unable to get local issuer"),
    ],
)
def test_one_that_cannot_be_verified(
    loop: str,
    papers: Papers,
    shown: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    pool: ThreadPoolExecutor,
) -> None:
    """The next is tried, and the client hears nothing of it; what it has sent is not lost either."""
    made = Secured(
        {"KONGREALIP_UPSTREAM_TLS_CA": papers.ca, "KONGREALIP_SEND_PROXY": "v2"},
        serving(papers.server),
        serving(getattr(papers, shown)),
    )
    with made.lab.running(loop), caplog.at_level(logging.WARNING, "kongrealip.relay"):
        # The second in the list is the first to be tried.
        refused = pool.submit(made.accept, 1, 28)
        client = made.lab.connect()
        client.sendall(b"a question")
        upstream = made.accept(0, 28)
        assert upstream.exactly(10) == b"a question"
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            # Of 1.3 a server is through only when the client has agreed.
            refused.result(PATIENCE_SECONDS)
        bad = made.lab.upstreams[1].name
        assert made.lab.counted("upstream_failures", bad) == 1
        assert f"upstream {bad}: TLS failed: " in caplog.text
        assert reason in caplog.text


@pytest.mark.parametrize("shown", ["of_another", "expired", "of_strangers"])
def test_nothing_is_verified_where_that_is_asked_for(loop: str, papers: Papers, shown: str) -> None:
    made = Secured({"KONGREALIP_UPSTREAM_TLS_VERIFY": "off"}, serving(getattr(papers, shown)))
    with made.lab.running(loop):
        client = made.lab.connect()
        upstream = made.accept()
        client.sendall(b"x")
        assert upstream.exactly(1) == b"x"


def test_an_upstream_by_name(loop: str, papers: Papers) -> None:
    """The name that was configured is asked for, and what the certificate has to bear."""
    asked: list[str | None] = []
    context = serving(papers.server)
    context.sni_callback = lambda _, name, __: asked.append(name)
    made = Secured({"KONGREALIP_UPSTREAM_TLS_CA": papers.ca}, context, host="localhost")
    with made.lab.running(loop):
        client = made.lab.connect()
        upstream = made.accept()
        client.sendall(b"x")
        assert upstream.exactly(1) == b"x"
    assert asked == ["localhost"]


def test_the_systems_authorities_do_not_know_ours(
    loop: str, papers: Papers, pool: ThreadPoolExecutor
) -> None:
    made = Secured({}, serving(papers.server))
    with made.lab.running(loop):
        refused = pool.submit(made.accept)
        assert to_the_end(made.lab.connect()) == b""
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            refused.result(PATIENCE_SECONDS)
        made.lab.wait_for_count("refused", "no_upstream")


@pytest.mark.parametrize("does", ["say nothing", "close", "reset", "speak something else"])
def test_an_upstream_that_does_not_shake_hands(loop: str, papers: Papers, does: str) -> None:
    environ = {
        "KONGREALIP_UPSTREAM_TLS_CA": papers.ca,
        "KONGREALIP_CONNECT_TIMEOUT": "300ms" if does == "say nothing" else "1h",
    }
    made = Secured(environ, serving(papers.server), None)
    with made.lab.running(loop):
        client = made.lab.connect()
        sock = made.lab.upstreams[1].accept()
        if does == "close":
            to_the_end_of_a_hello(sock)
            sock.close()
        elif does == "reset":
            reset(sock)
        elif does == "speak something else":
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        upstream = made.accept(0)
        client.sendall(b"x")
        assert upstream.exactly(1) == b"x"
        assert made.lab.counted("upstream_failures", made.lab.upstreams[1].name) == 1


def to_the_end_of_a_hello(sock: socket.socket) -> None:
    exactly(sock, int.from_bytes(exactly(sock, 5)[3:], "big"))


def test_tls_on_both_sides(loop: str, papers: Papers, pool: ThreadPoolExecutor) -> None:
    environ = ours(papers, KONGREALIP_UPSTREAM_TLS="on", KONGREALIP_UPSTREAM_TLS_CA=papers.ca)
    lab = RelayLab(environ)
    lab.add_upstream()
    lab.listen("ssl")
    with lab.running(loop):
        client = Secure(lab.connect(), asking(papers)).shake()
        sock = lab.upstream.accept()
        seen(sock)
        upstream = Secure(sock, serving(papers.server), server=True).shake()
        loads = [Load(seed, 4 * MEGABYTE, (1, MEGABYTE // 2), 0.003) for seed in range(2)]
        talking = pool.submit(upstream.talk, loads[0])
        sent, came = client.talk(loads[1])
        assert talking.result() == (came, sent)
        soon(lambda: not lab.relay.open, "the pair to be gone")
