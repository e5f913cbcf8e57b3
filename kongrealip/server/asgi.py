"""An ASGI application on uvicorn's protocols, behind this package's listeners.

uvicorn keeps its lifespan, date header, signals and shutdown; accepting is ours. It relies on
things that uvicorn does not promise: that ``Server.startup`` and ``Server.shutdown`` can be
overridden, that protocol classes take ``config``, ``server_state``, ``app_state`` and ``_loop``,
that they copy ``app_state`` into ``scope["state"]``, that ``lifespan.state`` holds the lifespan's,
that each answer carries ``server_state.default_headers``, and what ``Lifespan`` overrides.
``tests/test_uvicorn.py`` fails by name when one of them goes. This file, ``protocols`` and
``http2`` are all that import uvicorn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import uvicorn
from uvicorn.importer import ImportFromStringError, import_from_string
from uvicorn.lifespan.on import LifespanOn

from kongrealip.config import Listen, Settings
from kongrealip.errors import StartError
from kongrealip.realip import CONNECTION_KEY, Connection
from kongrealip.server import status
from kongrealip.server.counters import Counters, keys_of
from kongrealip.server.listener import Listener
from kongrealip.server.protocols import HTTP1Protocol, HTTP1ProtocolOfPlainPort
from kongrealip.server.reception import Arrival, Reception
from kongrealip.server.sockets import Opened

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn.lifespan.on import LifespanSendMessage

logger = logging.getLogger("kongrealip.server")

# How long the end waits for requests that are on their way: of clients that connected a moment
# ago, and of those that hold a connection open and have not seen it close.
_GRACE_SECONDS = 1.0
_LOOK_SECONDS = 0.02
# How long a client may take to answer TLS's close_notify: many never do, and the end waits for it.
_GOODBYE_SECONDS = 2.0


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


class Door(NamedTuple):
    """What stands behind a listener: how its connections are served."""

    protocol: Callable[..., Any]
    config: uvicorn.Config
    state: dict[str, Any]
    context: ssl.SSLContext | None


class Lifespan(LifespanOn):
    """uvicorn's, which can be given up, and knows why the application would not start."""

    failure = ""
    task: asyncio.Task[Any] | None = None

    async def main(self) -> None:
        self.task = asyncio.current_task()
        await super().main()

    async def send(self, message: LifespanSendMessage) -> None:
        if message["type"] == "lifespan.startup.failed":
            self.failure = message.get("message", "")
        await super().send(message)

    @property
    def is_open(self) -> bool:
        return self.task is not None and not self.task.done()


class Server(uvicorn.Server):
    """uvicorn's server, which accepts nothing itself.

    ``contexts`` maps the flag ``http2`` to the TLS context for listeners with and without it.
    ``row`` is this process's in ``counters``. With ``parent`` it is a worker: it leaves the
    terminal's interrupt to its parent, and ends when that is gone. ``on_ready`` is called when it
    serves, ``on_ending`` before it accepts for the last time.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        opened: Sequence[Opened],
        contexts: Mapping[bool, ssl.SSLContext],
        *,
        loop: str = "auto",
        lifespan: str = "auto",
        counters: Counters | None = None,
        row: int = 0,
        parent: int | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_ending: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            _config(app, loop, lifespan=lifespan, callback_notify=self._look_round, timeout_notify=1)
        )
        self._settings = settings
        self._opened = opened
        self._contexts = contexts
        self._counters = counters or Counters(keys_of(settings), 1)
        self._row = self._counters.row(row)
        self._parent = parent
        self._on_ready = on_ready
        self._on_ending = on_ending
        self._listeners: list[Listener] = []
        self._doors: dict[str, Door] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The terminal sends its interrupt to all processes at once, and a worker that closed its
        # sockets before its parent would leave a queue that nobody empties.
        if self._parent is None or sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._loop = asyncio.get_running_loop()
        self._reception = Reception(
            self._settings, self._row, self._hand_over, self._shake_hands, self._count_served
        )
        self._open_doors()
        for one in self._opened:
            self._listeners.append(Listener(one.sock, one.listen, self._reception))
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve what has connected already, and then what is being answered, and end."""
        self._on_ending()
        for listener in self._listeners:
            listener.stop()
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        for protocol in list(state.connections):
            # Ours have it, a WebSocket's has not.
            if hasattr(protocol, "make_answer_the_last"):
                protocol.make_answer_the_last()
        try:
            await self._wait_for_requests()
        finally:
            self._reception.close()
        await super().shutdown(sockets=[])

    async def _wait_for_requests(self) -> None:
        deadline = self._loop.time() + _GRACE_SECONDS
        while not self.force_exit and self._loop.time() < deadline:
            # At least once: what was accepted last is made into connections in the loop's next turn.
            await asyncio.sleep(_LOOK_SECONDS)
            if not self._reception.half_open and not self.server_state.connections:
                break

    def _open_doors(self) -> None:
        proxied = {listen.address for listen in self._settings.proxy_listen}
        config = _config(self._status_app(), "none") if self._settings.status_listen else self.config
        if not config.loaded:
            config.load()
        for listen in (*self._settings.proxy_listen, *self._settings.status_listen):
            context = self._contexts[listen.http2] if listen.ssl else None
            if listen.address in proxied:
                door = Door(_protocol_for(listen), self.config, self.lifespan.state, context)
            else:
                door = Door(_protocol_for(listen), config, {}, context)
            self._doors[listen.address] = door

    def _status_app(self) -> ASGIApp:
        return status.status_app(self._counters, self._is_ready, self._write_gauges)

    def _is_ready(self) -> bool:
        return self.started and not self.should_exit

    def _count_served(self) -> int:
        return len(self.server_state.connections)

    async def _look_round(self) -> None:
        """Once a second."""
        if self._parent is not None and os.getppid() != self._parent:
            logger.error("the parent process is gone, so this worker ends")
            self.should_exit = True
        now = self._loop.time()
        for protocol in list(self.server_state.connections):
            # Ours have it, a WebSocket's has not.
            if hasattr(protocol, "close_if_slow"):
                protocol.close_if_slow(now, self._settings.client_header_timeout)
        if self._settings.status_listen:
            self._write_gauges()

    def _write_gauges(self) -> None:
        listeners = list(dict.fromkeys(one.listen.address for one in self._opened))
        self._reception.write_gauges(listeners)
        status.write_open(self._row, listeners, self.server_state.connections)

    def _hand_over(self, arrival: Arrival) -> None:
        """Give a socket to the loop and to uvicorn's protocol."""
        factory = partial(self._make_protocol, arrival)
        _run_to_end(self._loop.connect_accepted_socket(factory, arrival.sock))

    def _make_protocol(self, arrival: Arrival) -> asyncio.Protocol:
        make, config, state, _ = self._doors[arrival.listener]
        app_state = {**state, CONNECTION_KEY: arrival}
        made: asyncio.Protocol = make(config, self.server_state, app_state, self._loop)
        made.connection = arrival  # type: ignore[attr-defined]
        made.refuse_stray = self._refuse_stray  # type: ignore[attr-defined]
        return made

    def _shake_hands(self, arrival: Arrival) -> None:
        made = self._make_protocol(arrival)
        opening = self._loop.connect_accepted_socket(
            lambda: made, arrival.sock, ssl=self._doors[arrival.listener].context,
            ssl_handshake_timeout=max(_LOOK_SECONDS, arrival.deadline - self._loop.time()),
            ssl_shutdown_timeout=_GOODBYE_SECONDS,
        )  # fmt: skip
        arrival.handshake = _run_to_end(opening, partial(self._end_handshake, arrival, made))
        if arrival.handshake is not None:
            self._reception.handshakes[arrival] = None

    def _end_handshake(self, arrival: Arrival, made: asyncio.Protocol, end: BaseException) -> None:
        self._reception.handshakes.pop(arrival, None)
        # The connection lives on, and need not keep what it has waited for.
        arrival.handshake = None
        if isinstance(end, StopIteration):
            return
        # The garbage collector comes too seldom for these two. The exception and a frame of
        # asyncio hold each other, and a quarter of a megabyte; so do the protocol and its
        # parser, which are parted when a connection is lost, and this one was never made.
        end.__traceback__ = None
        if isinstance(made, HTTP1Protocol):
            made.parser = None  # type: ignore[assignment]
        if isinstance(end, ConnectionAbortedError):
            self._reception.time_out_handshake(arrival)
        elif isinstance(end, OSError):
            self._reception.fail_handshake(arrival, end)
        elif not isinstance(end, asyncio.CancelledError):
            raise end

    def _refuse_stray(self, connection: Connection) -> None:
        self._reception.tell(connection, "a PROXY preamble reached a port without proxy_protocol")


def _config(app: ASGIApp, loop: str, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # Not to be guessed: the middleware is ASGI 3 whatever it wraps.
        interface="asgi3",
        http=HTTP1Protocol,
        loop=loop,
        # The command line sets logging up, and the access log is a layer of our own.
        log_config=None,
        access_log=False,
        # uvicorn's own idea of the client would come first and be taken for the peer.
        proxy_headers=False,
        **more,
    )


def _protocol_for(listen: Listen) -> Callable[..., Any]:
    http1 = HTTP1Protocol if listen.proxy_protocol else HTTP1ProtocolOfPlainPort
    if not listen.http2:
        return http1
    try:
        from kongrealip.server.http2 import AutoProtocol
    except ImportError:
        logger.warning("%s: HTTP/1.1 is served, http2 needs pip install 'kongrealip[http2]'", listen)
        return http1
    return partial(_http2_protocol, AutoProtocol, http1)


def _http2_protocol(make: Callable[..., Any], http1: type[HTTP1Protocol], *arguments: Any) -> Any:
    made = make(*arguments)
    made.http1 = http1
    return made


def _raise_unless_lost(end: BaseException) -> None:
    """How a connection without TLS ends its opening: well, or with the transport closed."""
    if not isinstance(end, (StopIteration, OSError)):
        raise end


def _run_to_end(
    opening: Coroutine[Any, Any, object], at_end: Callable[[BaseException], None] = _raise_unless_lost
) -> asyncio.Future[object] | None:
    """Run a coroutine that waits for one future, without a task, which would cost more than the coroutine.

    Returns that future as long as it is waited for: who cancels it, cancels the coroutine.
    ``at_end`` is told what has ended the coroutine; StopIteration is success.
    """
    try:
        waiter: asyncio.Future[object] = opening.send(None)
    except (Exception, asyncio.CancelledError) as end:
        at_end(end)
        return None
    waiter.add_done_callback(lambda _: _run_to_end(opening, at_end))
    return waiter
