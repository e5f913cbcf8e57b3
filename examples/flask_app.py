"""Flask under gunicorn: the client's address, and links that lead where the client came from.

    KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on \\
        gunicorn examples.flask_app:app
"""

from __future__ import annotations

from flask import Flask, request

from kongrealip.middleware.wsgi import RealIPMiddleware, resolution_of

app = Flask(__name__)
app.wsgi_app = RealIPMiddleware(app.wsgi_app)  # type: ignore[method-assign]


@app.get("/")
def index() -> dict[str, str | bool | None]:
    resolution = resolution_of(request)
    return {
        "client": request.remote_addr,
        "peer": resolution.peer.ip,
        "source": resolution.source,
        "secure": request.is_secure,
        "link": request.base_url,
    }
