"""A rate limit for each client, and not one for all that come through the balancer.

    KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on \\
        uvicorn --no-proxy-headers examples.slowapi_app:app
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address

from kongrealip import RealIPMiddleware

# slowapi's get_ipaddr would believe a header of anybody.
limiter = Limiter(key_func=get_remote_address)

app = FastAPI()
app.state.limiter = limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)  # type: ignore[arg-type]
app.add_middleware(RealIPMiddleware)


@app.get("/")
@limiter.limit("2/hour")
async def index(request: Request) -> dict[str, str]:
    return {"client": get_remote_address(request)}
