"""The ASGI application that stands in front of the upstreams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING

from kongrealip.proxy.exchange import Exchange
from kongrealip.proxy.pool import Pool

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from kongrealip.config.proxy import ProxySettings
    from kongrealip.relay.upstreams import Target
    from kongrealip.server.counters import Row


class Proxy:
    """Everything that is passed on by one process. ``begin`` before the first request, ``end`` at last.

    ``app`` has to stand behind RealIPMiddleware, which decides what upstreams are told of the client.
    """

    def __init__(self, proxy: ProxySettings, targets: Sequence[Target], row: Row) -> None:
        self.pool = Pool(proxy, targets, row)
        self.preserves_host = proxy.preserve_host

    def begin(self) -> None:
        self.pool.begin(asyncio.get_running_loop())

    def end(self) -> None:
        self.pool.close()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Exchange(self, scope, receive, send).run()

    def date(self) -> bytes:
        """For the header Date."""
        return _date(int(time.time()))


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
