"""FastAPI behind a Network Load Balancer that sends the PROXY protocol.

    KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=proxy_protocol \\
        KONG_PROXY_LISTEN="0.0.0.0:8000 proxy_protocol" KONGREALIP_FORWARDED_HEADERS=auto \\
        kongrealip serve examples.fastapi_app:app
"""

from __future__ import annotations

from fastapi import FastAPI, Request

app = FastAPI()


@app.get("/")
def index(request: Request) -> dict[str, str | None]:
    # kongrealip serve has the middleware in front of every application.
    return {"client": request.client.host if request.client else None}
