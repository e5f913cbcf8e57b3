"""FastAPI: the client's address as a parameter of an endpoint.

    KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on \\
        uvicorn --no-proxy-headers examples.fastapi_client:app
"""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from kongrealip import RealIPMiddleware
from kongrealip.middleware.fastapi import ClientAddress

app = FastAPI()
app.add_middleware(RealIPMiddleware)


@app.get("/")
def index(client: ClientAddress) -> dict[str, str | int | None]:
    return {"ip": client.ip, "port": client.port}


@app.websocket("/ws")
async def greet(websocket: WebSocket, client: ClientAddress) -> None:
    await websocket.accept()
    await websocket.send_json({"ip": client.ip, "port": client.port})
    await websocket.close()
