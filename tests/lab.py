"""A real server in a thread of its own, on any number of listeners, for tests with real sockets."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kongrealip import RealIPMiddleware, Settings
from kongrealip.cli import whoami
from kongrealip.config import Listen
from kongrealip.server import tls
from kongrealip.server.asgi import Server
from kongrealip.server.sockets import Opened, bind, bind_unix

LOOPS = ("asyncio", "uvloop")


@dataclass
class Lab:
    """Listeners are added first, each with the settings that its requests are decided by."""

    app: Any = field(default_factory=lambda: whoami.app)
    preamble_timeout: float = 2.0
    #: Of the server as a whole: limits, checks, deadlines.
    settings: Settings = field(default_factory=Settings)
    _sockets: list[Opened] = field(default_factory=list)
    _apps: dict[object, Any] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def add(
        self,
        settings: Settings | Callable[[int], Settings],
        host: str = "127.0.0.1",
        flags: tuple[str, ...] = (),
        root_path: str = "",
    ) -> int:
        """Open a listener and return its port, on which the settings may depend."""
        listen = Listen(host, 0, flags)
        (sock,) = bind(listen)
        self._sockets.append(Opened(sock, listen._replace(port=sock.getsockname()[1])))
        # The system gives the same port to listeners of different families.
        address = sock.getsockname()[:2]
        made = settings if isinstance(settings, Settings) else settings(address[1])
        self._apps[address] = under(root_path, RealIPMiddleware(self.app, made))
        return int(address[1])

    def add_unix(self, settings: Settings, flags: tuple[str, ...] = (), root_path: str = "") -> str:
        """Open a Unix socket and return its path."""
        path = str(Path(self._folder.name, f"{len(self._sockets)}.sock"))
        self._sockets.append(Opened(bind_unix(path), Listen(f"unix:{path}", 0, flags)))
        self._apps[path, None] = under(root_path, RealIPMiddleware(self.app, settings))
        return path

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        await self._apps[scope["server"]](scope, receive, send)

    def same_app_for(self, host: str, port: int) -> None:
        """For a listener on a wildcard address: this is where its connections arrive."""
        self._apps[host, port] = self._apps["0.0.0.0", port]

    def stop(self) -> None:
        """Begin the end, as a signal would."""
        self._server.should_exit = True

    @contextmanager
    def running(self, loop: str) -> Iterator[Lab]:
        settings = self.settings._replace(
            client_header_timeout=self.preamble_timeout,
            proxy_listen=tuple(one.listen for one in self._sockets),
        )
        contexts = {http2: tls.context(settings, http2) for http2 in (False, True)}
        server = Server(self._dispatch, settings, self._sockets, contexts, loop=loop)
        self._server = server
        thread = threading.Thread(target=server.run, name=f"lab-{loop}")
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        assert server.started, "the server's thread ended at its start"
        try:
            yield self
        finally:
            self.stop()
            thread.join(timeout=20)
            assert not thread.is_alive()
            self._folder.cleanup()


def under(root_path: str, app: Any) -> Any:
    """The application as a server calls it that has been told of a prefix."""

    async def prefixed(scope: Any, receive: Any, send: Any) -> None:
        scope["root_path"] = root_path
        await app(scope, receive, send)

    return prefixed if root_path else app


@cache
def client_tls() -> ssl.SSLContext:
    """A client that takes the server's self-signed certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def connect(
    target: int | str, peer: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port from a peer address, or to the path of a Unix socket."""
    if isinstance(target, str):
        return await asyncio.open_unix_connection(target)
    source = peer.removeprefix("::ffff:")
    host = "::1" if ":" in source else "127.0.0.1"
    return await asyncio.open_connection(host, target, local_addr=(source, 0))
