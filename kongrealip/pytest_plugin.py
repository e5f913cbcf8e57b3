"""The pytest fixture ``kongrealip_server``: a running server, and a client that can send preambles.

Importing this costs every run of pytest where the package is installed, so what serves is
imported by the fixture.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kongrealip.address import Address
from kongrealip.config import Listen, Settings
from kongrealip.config.listen import HTTP_FLAGS, flags_of
from kongrealip.config.names import READ, READ_OF_OURS
from kongrealip.preamble import writing

if TYPE_CHECKING:
    import socket
    from email.message import Message

    from starlette.types import ASGIApp

_LOOPBACK = "127.0.0.1"
_PATIENCE_SECONDS = 10.0

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class Answer(NamedTuple):
    """What the application answered. Names of ``headers`` are found in any case."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        """The body, read as JSON."""
        import json

        return json.loads(self.body)


class RunningServer(NamedTuple):
    """A server on ``port`` of 127.0.0.1, and how to come to it as a balancer would."""

    port: int
    tls: bool

    def get(
        self,
        path: str = "/",
        *,
        headers: Headers = (),
        preamble: bytes = b"",
        source_ip: str = _LOOPBACK,
        server_name: str = "localhost",
    ) -> Answer:
        """GET on a connection of its own; the other arguments are those of ``connect``.

        ``headers`` is a mapping, or pairs where a name comes more than once. Raises OSError where
        the server closes without an answer, as it does when it wants a preamble and sees none.
        """
        import http.client

        connection = http.client.HTTPConnection(_LOOPBACK, self.port)
        with self.connect(preamble, source_ip=source_ip, server_name=server_name) as connection.sock:
            connection.putrequest("GET", path, skip_accept_encoding=True)
            for name, value in headers.items() if isinstance(headers, Mapping) else headers:
                connection.putheader(name, value)
            connection.putheader("Connection", "close")
            connection.endheaders()
            with connection.getresponse() as response:
                return Answer(response.status, response.headers, response.read())

    def connect(
        self, preamble: bytes = b"", *, source_ip: str = _LOOPBACK, server_name: str = "localhost"
    ) -> socket.socket:
        """A connection for whatever is no GET: the preamble is sent, and on ``ssl`` TLS is done.

        ``source_ip`` is the peer's address, of 127.0.0.0/8; ``server_name`` is what TLS asks for.
        Any certificate will do. Raises OSError, also for a TLS handshake that fails.
        """
        import socket
        import ssl

        sock = socket.create_connection((_LOOPBACK, self.port), _PATIENCE_SECONDS, (source_ip, 0))
        try:
            sock.sendall(preamble)
            if not self.tls:
                return sock
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context.wrap_socket(sock, server_hostname=server_name)
        except BaseException:
            sock.close()
            raise

    def v1(self, ip: str, port: int) -> bytes:
        """A preamble of version 1 for a client. Raises ValueError where ``ip`` is no address."""
        return _checked(ip, writing.v1(Address(ip, port), self._beside(ip)))

    def v2(self, ip: str, port: int, tlvs: Mapping[int, bytes] | None = None) -> bytes:
        """The same in version 2, with TLVs by their type, such as ``{0xEA: b"\\x01vpce-0a1b2c"}``."""
        area = b"".join(writing.tlv(kind, value) for kind, value in (tlvs or {}).items())
        return _checked(ip, writing.v2(Address(ip, port), self._beside(ip), area))

    def _beside(self, ip: str) -> Address:
        """The destination: a balancer's own end has the family of its client."""
        return Address("::1" if ":" in ip else _LOOPBACK, self.port)


def _checked(ip: str, preamble: bytes) -> bytes:
    if preamble in (writing.UNKNOWN_V1, writing.LOCAL_V2):
        raise ValueError(f"{ip!r} is no IP address, so a preamble cannot name it")
    return preamble


class StartServer:
    """What the fixture gives: called with an application it starts a server for it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, app: ASGIApp, flags: str = "", **environ: str) -> RunningServer:
        """Serve ``app`` until the test ends, in a thread and a loop of its own.

        ``flags`` are those of ``KONG_PROXY_LISTEN``, such as ``"ssl proxy_protocol"``; the rest
        is the environment, such as ``KONG_TRUSTED_IPS="127.0.0.0/8"``. There is no access log
        unless it is asked for. Raises SettingsError and StartError as ``kongrealip serve`` does,
        ValueError for an unknown flag, and TypeError for a name that is not read.
        """
        from anyio.from_thread import start_blocking_portal

        settings = _settings(flags, environ)
        portal = self._stack.enter_context(start_blocking_portal())
        server = self._stack.enter_context(portal.wrap_async_context_manager(_serving(app, settings)))
        (listen,) = server.proxy_listen
        return RunningServer(listen.port, listen.ssl)


@pytest.fixture
def kongrealip_server() -> Iterator[StartServer]:
    """Start servers for applications; each is ended with the test."""
    with ExitStack() as stack:
        yield StartServer(stack)


def _settings(flags: str, environ: Mapping[str, str]) -> Settings:
    found, rest = flags_of(flags, HTTP_FLAGS)
    if rest:
        raise ValueError(f"unknown flag {rest!r}, the flags are those of KONG_PROXY_LISTEN")
    names = {f"KONG_{key.upper()}" for key in READ} | {f"KONGREALIP_{key.upper()}" for key in READ_OF_OURS}
    for name in environ:
        # A slip of the pen would make a test that checks nothing.
        if name not in names or name == "KONG_PROXY_LISTEN":
            raise TypeError(f"{name} is no variable for this server; its listener is given by flags")
    settings = Settings.load({"KONG_PROXY_ACCESS_LOG": "off", **environ})
    return settings._replace(proxy_listen=(Listen(_LOOPBACK, 0, found),))


@asynccontextmanager
async def _serving(app: ASGIApp, settings: Settings) -> AsyncIterator[Settings]:
    import asyncio

    from kongrealip.server import serve

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(app, settings))
        yield server
        try:
            # An answer that never ends would hold up every test behind this one.
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await stack.aclose()
        except TimeoutError as error:
            raise TimeoutError("at the test's end the application was still answering") from error
