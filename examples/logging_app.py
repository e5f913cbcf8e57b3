"""Client and peer on each log line, wherever it is written from.

    KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on \\
        uvicorn --no-proxy-headers examples.logging_app:app
"""

from __future__ import annotations

import logging.config

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from kongrealip import RealIPMiddleware

logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"client": {"()": "kongrealip.ClientFilter"}},
        "formatters": {"line": {"format": "%(name)s client=%(client)s peer=%(peer)s %(message)s"}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "filters": ["client"], "formatter": "line"}
        },
        "loggers": {"shop": {"handlers": ["stderr"], "level": "INFO", "propagate": False}},
    }
)
logger = logging.getLogger("shop")
logger.info("started")


def index(request: Request) -> PlainTextResponse:
    logger.info("an order")
    return PlainTextResponse("ok\n", background=BackgroundTask(send_receipt))


def send_receipt() -> None:
    logger.info("its receipt")


app = Starlette(routes=[Route("/", index)], middleware=[Middleware(RealIPMiddleware)])
