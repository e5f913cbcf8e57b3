"""Sockets: the listeners of KONG_PROXY_LISTEN, and uvicorn's protocols behind them.

``serve`` is for programs that own their loop, and for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from starlette.types import ASGIApp

    from kongrealip.config import Settings

__all__ = ["serve"]


def serve(app: ASGIApp, settings: Settings) -> AbstractAsyncContextManager[Settings]:
    """Serve an application in the running loop: ``async with serve(app, settings) as server:``.

    The listeners of ``settings.proxy_listen`` and ``status_listen`` are open, the lifespan has
    begun, and RealIPMiddleware stands in front of ``app``. ``server`` is the settings in force:
    those that were given, with the port that the system chose wherever a port was 0
    (``server.proxy_listen[0].port``). Raises StartError where the server cannot start, with
    everything closed again.

    At the end of the block, and where it is cancelled, what has connected is served, open
    requests are answered, and the lifespan ends. To cancel that too cuts off what is still open.
    Signals, the log's configuration and the number of processes stay the program's own.
    """
    # Imported by who serves. This room's face may know the middleware, to put it in front; what
    # is behind the face does not.
    from kongrealip.middleware.asgi import RealIPMiddleware
    from kongrealip.server.embedding import serving

    return serving(app, settings, RealIPMiddleware)
