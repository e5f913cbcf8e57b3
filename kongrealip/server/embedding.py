"""A server inside of somebody else's program: in a loop that runs already, for as long as a block."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from kongrealip.config import Listen, Settings
from kongrealip.config.check import serve_warnings
from kongrealip.errors import StartError
from kongrealip.server import tls
from kongrealip.server.asgi import Lifespan, Server
from kongrealip.server.counters import Counters, keys_of
from kongrealip.server.layers import layered, open_log
from kongrealip.server.sockets import Opened, Sockets, open_all

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger("kongrealip")

_LOOK_SECONDS = 0.02


@asynccontextmanager
async def serving(
    app: ASGIApp, settings: Settings, middleware: Callable[[ASGIApp, Settings], ASGIApp]
) -> AsyncIterator[Settings]:
    """What :func:`kongrealip.server.serve` promises, with ``middleware`` in front of ``app``."""
    for warning in serve_warnings(settings):
        logger.warning(warning)
    contexts = tls.contexts(settings, (*settings.proxy_listen, *settings.status_listen))
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(_open(settings.proxy_listen, settings))
        status = stack.enter_context(_open(settings.status_listen, settings))
        settings = settings._replace(proxy_listen=_listens_of(proxy), status_listen=_listens_of(status))
        counters = Counters(keys_of(settings), 1)
        log = open_log(settings)
        if log is not None:
            stack.callback(log.close)
        layers = middleware(layered(app, settings, counters.row(0), log), settings)

        def turn_newcomers_away() -> None:
            proxy.turn_newcomers_away()
            status.turn_newcomers_away()

        server = EmbeddedServer(
            layers, settings, [*proxy.opened, *status.opened], contexts,
            counters=counters, on_ending=turn_newcomers_away,
        )  # fmt: skip
        await stack.enter_async_context(_running(server))
        yield settings


@contextmanager
def _open(listens: tuple[Listen, ...], settings: Settings) -> Iterator[Sockets]:
    sockets = open_all(listens, 0, settings.client_header_timeout)
    try:
        sockets.opened = [_with_its_port(one) for one in sockets.opened]
        yield sockets
    finally:
        sockets.turn_newcomers_away()
        sockets.close()


def _with_its_port(one: Opened) -> Opened:
    if one.listen.is_unix:
        return one
    return one._replace(listen=one.listen._replace(port=one.sock.getsockname()[1]))


def _listens_of(sockets: Sockets) -> tuple[Listen, ...]:
    """A name that stands for several addresses has one entry, unless each of them got a port of its own."""
    return tuple(dict.fromkeys(one.listen for one in sockets.opened))


class EmbeddedServer(Server):
    """One whose loop and whose signals are somebody else's.

    ``begin``, then ``main_loop`` until ``shutdown``; ``cut_off`` comes last, also where the start
    or the end came to nothing.
    """

    async def begin(self) -> None:
        """Start as uvicorn does, but for its signal handlers. Raises StartError."""
        self.config.load()
        self.lifespan = self._lifespan = Lifespan(self.config)
        try:
            await self.startup()
        except SystemExit as error:
            lines = [line.strip() for line in self._lifespan.failure.splitlines() if line.strip()]
            cause = lines[-1] if lines else "it says no more than that"
            raise StartError(f"the application's lifespan failed at start: {cause}") from error
        except OSError as error:
            raise StartError(f"cannot open the listeners: {error.strerror or error}") from error

    async def cut_off(self) -> None:
        """End at once what ``shutdown`` left: connections, what is being answered, the lifespan."""
        for protocol in list(self.server_state.connections):
            protocol.transport.abort()
        for task in (*self.server_state.tasks, self._lifespan.task):
            if task is not None:
                task.cancel()
        while self._has_left_overs():  # noqa: ASYNC110 - nobody tells of connections that end
            await asyncio.sleep(_LOOK_SECONDS)

    def _has_left_overs(self) -> bool:
        state = self.server_state
        if state.connections or state.tasks or self._lifespan.is_open:
            return True
        return self.started and self._reception.half_open > 0


@asynccontextmanager
async def _running(server: EmbeddedServer) -> AsyncIterator[None]:
    try:
        await server.begin()
        ticks = asyncio.create_task(server.main_loop())
        try:
            yield
        finally:
            server.should_exit = True
            ticks.cancel()
    finally:
        try:
            if server.started:
                await server.shutdown()
        finally:
            await server.cut_off()
