"""An ASGI application on uvicorn's protocols, behind this package's listeners.

The only file that imports uvicorn. uvicorn keeps its lifespan, date header, signals, access log
and shutdown; accepting is ours. It relies on four things that uvicorn does not promise: that
``Server.startup`` and ``Server.shutdown`` can be overridden, that protocol classes take
``config``, ``server_state``, ``app_state`` and ``_loop``, that they copy ``app_state`` into
``scope["state"]``, and that ``lifespan.state`` holds the lifespan's. ``tests/test_uvicorn.py``
fails by name when one of them goes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.importer import ImportFromStringError, import_from_string
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kongrealip.config import Listen, Settings
from kongrealip.errors import StartError
from kongrealip.preamble.v2 import SIGNATURE
from kongrealip.realip import CONNECTION_KEY, Connection
from kongrealip.server.listener import Listener
from kongrealip.server.refusals import RefusalLog

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger("kongrealip.server")


def import_app(target: str, app_dir: str) -> Any:
    """Import ``module:attribute``. Raises StartError; a traceback of the module's own is logged."""
    sys.path.insert(0, app_dir)
    try:
        return import_from_string(target)
    except ImportFromStringError as error:
        raise StartError(f"cannot import the application: {error}") from error
    except Exception as error:
        logger.exception("importing %s failed", target)
        raise StartError(f"cannot import the application {target!r}: {error!r}") from error


class Server(uvicorn.Server):
    """uvicorn's server, which accepts nothing itself."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        sockets: Sequence[tuple[socket.socket, Listen]],
        tls: ssl.SSLContext | None,
        *,
        access_log: bool = True,
        loop: str = "auto",
    ) -> None:
        config = uvicorn.Config(
            app,
            # Not to be guessed: the middleware is ASGI 3 whatever it wraps.
            interface="asgi3",
            http=_Protocol,
            loop=loop,
            # The command line sets logging up.
            log_config=None,
            access_log=access_log,
            # uvicorn's own idea of the client would come first and be taken for the peer.
            proxy_headers=False,
        )
        super().__init__(config)
        self._settings = settings
        self._sockets = sockets
        self._tls = tls
        self._refusals = RefusalLog()
        self._listeners: list[Listener] = []
        self._opening: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        timeout, limit = self._settings.client_header_timeout, self._settings.preamble_max_bytes
        self._loop = asyncio.get_running_loop()
        for sock, listen in self._sockets:
            self._listeners.append(Listener(sock, listen, self._hand_over, self._refusals, timeout, limit))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self._listeners:
            listener.close()
        for task in self._opening:
            task.cancel()
        await super().shutdown(sockets=[])

    def _hand_over(self, sock: socket.socket, connection: Connection, listen: Listen) -> None:
        """Give an accepted socket to the loop, which does TLS where the listener asks for it."""
        factory = partial(self._make_protocol, connection, listen)
        if listen.ssl:
            task = self._loop.create_task(self._open_tls(sock, factory, connection, listen))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            _run_to_end(self._loop.connect_accepted_socket(factory, sock))

    def _make_protocol(self, connection: Connection, listen: Listen) -> asyncio.Protocol:
        app_state = {**self.lifespan.state, CONNECTION_KEY: connection}
        kind = _Protocol if listen.proxy_protocol else _ProtocolOfPlainPort
        made = kind(self.config, self.server_state, app_state, self._loop)
        made.connection = connection
        made.refuse_stray = self._refuse_stray
        return made

    async def _open_tls(
        self,
        sock: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        connection: Connection,
        listen: Listen,
    ) -> None:
        timeout = self._settings.client_header_timeout
        try:
            await self._loop.connect_accepted_socket(
                factory, sock, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except ConnectionResetError:
            # Hung up in the handshake, as health checks and port scanners do. Nothing to tell.
            pass
        except ssl.SSLError as error:
            hint = ""
            if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
                hint = "; plain HTTP, or a preamble, reached an ssl port without proxy_protocol"
            self._refuse(connection, str(listen), f"TLS handshake failed: {error.reason}{hint}")
        except OSError as error:
            self._refuse(connection, str(listen), f"TLS handshake failed: {error}")

    def _refuse_stray(self, connection: Connection) -> None:
        host, port = connection.local
        listener = host if port is None else f"{host}:{port}"
        self._refuse(connection, listener, "a PROXY preamble reached a port without proxy_protocol")

    def _refuse(self, connection: Connection, listener: str, reason: str) -> None:
        ip, port = connection.peer
        self._refusals.write(ip if port is None else f"{ip}:{port}", listener, reason)


def _run_to_end(opening: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that waits for one future, without a task.

    A task would cost more than the coroutine: two per cent of a connection, for a wait that is
    over at the loop's next turn and can only end well or with the transport closed.
    """
    try:
        waiter: asyncio.Future[object] = opening.send(None)
        waiter.add_done_callback(lambda _: _run_to_end(opening))
    except (StopIteration, OSError):
        pass


class _Protocol(HttpToolsProtocol):
    """uvicorn's own, with what the listener knows of the connection."""

    connection: Connection
    refuse_stray: Callable[[Connection], None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Do as uvicorn does, but for asking the transport, which costs five system calls."""
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.server = self.connection.local
        # The middleware takes the peer from the connection. An address here could be that of a
        # peer which it remembers from another server of the same application.
        self.client = None
        self.scheme = "https" if self.connection.tls else "http"


class _ProtocolOfPlainPort(_Protocol):
    """Notices a preamble where HTTP was expected."""

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and data.startswith((b"PROXY ", SIGNATURE)):
            self.refuse_stray(self.connection)
        super().data_received(data)
