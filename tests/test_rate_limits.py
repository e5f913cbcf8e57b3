"""Rate limiters count by the client: neither one bucket for a balancer, nor one for each lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import limits
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket, WebSocketException
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.middleware import SlowAPIASGIMiddleware, SlowAPIMiddleware
from slowapi.util import get_ipaddr, get_remote_address
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

from kongrealip import Settings
from kongrealip.middleware.fastapi import ClientAddress
from tests.lab import LOOPS, Lab
from tests.running import CLIENT_IP, LOOPBACK, connect, exchange

SETTINGS = Settings(
    trusted_ips=(LOOPBACK,), real_ip_header="X-Forwarded-For", real_ip_recursive=True, proxy_access_log="off"
)
LIMIT = 2
# Each with a port of its own, as balancers that preserve it send it.
CLIENTS = ("203.0.113.7", "203.0.113.8", "2001:db8::1")


def with_decorator() -> FastAPI:
    app, limiter = with_slowapi()

    @app.get("/")
    @limiter.limit(f"{LIMIT}/hour")
    def index(request: Request) -> str:
        return "ok"

    return app


def with_middleware() -> FastAPI:
    return unlimited(SlowAPIMiddleware)


def with_asgi_middleware() -> FastAPI:
    return unlimited(SlowAPIASGIMiddleware)


def unlimited(middleware: type[SlowAPIMiddleware | SlowAPIASGIMiddleware]) -> FastAPI:
    """But for the limit that counts everywhere."""
    app, _ = with_slowapi([f"{LIMIT}/hour"])
    app.add_middleware(middleware)

    @app.get("/")
    def index() -> str:
        return "ok"

    return app


def with_slowapi(
    everywhere: Sequence[str] = (), key: Callable[[Request], str] = get_remote_address
) -> tuple[FastAPI, Limiter]:
    app = FastAPI()
    app.state.limiter = Limiter(key_func=key, default_limits=list(everywhere))
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)  # type: ignore[arg-type]
    return app, app.state.limiter


def with_dependency() -> FastAPI:
    app = FastAPI()
    limiter, limit = MovingWindowRateLimiter(MemoryStorage()), limits.parse(f"{LIMIT}/hour")

    async def limited(client: ClientAddress) -> None:
        if not await limiter.hit(limit, client.ip):
            raise HTTPException(429)

    @app.get("/", dependencies=[Depends(limited)])
    def index() -> str:
        return "ok"

    return app


LIMITED = [with_decorator, with_middleware, with_asgi_middleware, with_dependency]


def statuses(port: int, source_ip: str, said: Sequence[str]) -> list[int]:
    """The answers to requests with these values of X-Forwarded-For, in their order."""
    return [int(exchange(port, request(value), source_ip)[0].split(b" ", 2)[1]) for value in said]


def request(said: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX-Forwarded-For: {said}\r\n\r\n".encode()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", LIMITED)
def test_a_limit_for_each_client(loop: str, make: Callable[[], FastAPI]) -> None:
    lab = Lab(make())
    port = lab.add(SETTINGS)
    with lab.running(loop):
        for client in CLIENTS:
            host = f"[{client}]" if ":" in client else client
            # Behind the balancer, whatever the client wrote in front and from which of its ports it came.
            said = [f"6.6.6.{number}, {host}:{50000 + number}" for number in range(LIMIT + 2)]
            assert statuses(port, LOOPBACK, said) == [200] * LIMIT + [429] * 2
        # And somebody who is no balancer.
        forged = [f"203.0.113.{number}" for number in range(100, 100 + LIMIT + 2)]
        assert statuses(port, CLIENT_IP, forged) == [200] * LIMIT + [429] * 2


def test_websockets_have_limits_as_well() -> None:
    app = FastAPI()
    limiter, limit = MovingWindowRateLimiter(MemoryStorage()), limits.parse(f"{LIMIT}/hour")

    @app.websocket("/")
    async def index(websocket: WebSocket, client: ClientAddress) -> None:
        if not await limiter.hit(limit, client.ip):
            raise WebSocketException(1008)
        await websocket.accept()
        await websocket.close()

    lab = Lab(app)
    port = lab.add(SETTINGS)
    with lab.running("asyncio"):
        taken = [is_taken(port, client) for client in (CLIENTS[0],) * (LIMIT + 1) + (CLIENTS[1],)]
    assert taken == [True] * LIMIT + [False, True]


def is_taken(port: int, client: str) -> bool:
    sock = connect(port, LOOPBACK)
    headers = {"X-Forwarded-For": client}
    try:
        with connect_websocket("ws://a.test/", sock=sock, additional_headers=headers, proxy=None):
            return True
    except InvalidStatus as refused:
        return refused.response.status_code != 403


def test_the_key_that_the_guide_warns_of() -> None:
    app, limiter = with_slowapi(key=get_ipaddr)

    @app.get("/")
    @limiter.limit(f"{LIMIT}/hour")
    def index(request: Request) -> str:
        return "ok"

    lab = Lab(app)
    port = lab.add(SETTINGS)
    with lab.running("asyncio"):
        forged = [
            request(f"6.6.6.{number}").replace(b"X-F", b"X_F").replace(b"d-F", b"d_F") for number in range(5)
        ]
        answers = [exchange(port, one, CLIENT_IP)[0] for one in forged]
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
