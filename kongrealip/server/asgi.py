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
from collections.abc import Callable, Sequence
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
        task = self._loop.create_task(self._open(sock, connection, listen))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, connection: Connection, listen: Listen) -> None:
        """Give an accepted socket to the loop, which does TLS where the listener asks for it."""

        def protocol() -> asyncio.Protocol:
            app_state = {**self.lifespan.state, CONNECTION_KEY: connection}
            made = _Protocol(self.config, self.server_state, app_state, self._loop)
            made.connection = connection
            if connection.preamble is None:
                made.on_stray_preamble = self._refuse_stray, connection, listen
            return made

        try:
            if listen.ssl:
                await self._loop.connect_accepted_socket(
                    protocol, sock, ssl=self._tls,
                    ssl_handshake_timeout=self._settings.client_header_timeout,
                )  # fmt: skip
            else:
                await self._loop.connect_accepted_socket(protocol, sock)
        except ssl.SSLError as error:
            hint = ""
            if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
                hint = "; plain HTTP, or a preamble, reached an ssl port without proxy_protocol"
            self._refuse(connection, listen, f"TLS handshake failed: {error.reason}{hint}")
        except ConnectionResetError:
            # Hung up in the handshake, as health checks and port scanners do. Nothing to tell.
            pass
        except OSError as error:
            self._refuse(connection, listen, f"TLS handshake failed: {error}")

    def _refuse_stray(self, connection: Connection, listen: Listen) -> None:
        self._refuse(connection, listen, "a PROXY preamble reached a port without proxy_protocol")

    def _refuse(self, connection: Connection, listen: Listen, reason: str) -> None:
        ip, port = connection.peer
        self._refusals.write(ip if port is None else f"{ip}:{port}", str(listen), reason)


class _Protocol(HttpToolsProtocol):
    """uvicorn's own, with what the listener knows of the connection."""

    connection: Connection
    on_stray_preamble: tuple[Callable[[Connection, Listen], None], Connection, Listen] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Do as uvicorn does, but for asking the transport, which costs five system calls."""
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.server = self.connection.local
        ip, port = self.connection.peer
        self.client = None if port is None else (ip, port)
        self.scheme = "https" if self.connection.tls else "http"

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and self.on_stray_preamble and data.startswith((b"PROXY ", SIGNATURE)):
            refuse, connection, listen = self.on_stray_preamble
            refuse(connection, listen)
        super().data_received(data)
