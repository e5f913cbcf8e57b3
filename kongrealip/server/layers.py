"""What looks at each request in front of an application, but for the middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kongrealip.config import Settings
from kongrealip.server.access_log import AccessLog, logged
from kongrealip.server.counters import Row, counted

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def open_log(settings: Settings) -> AccessLog | None:
    """The access log, or None where it is off."""
    if settings.proxy_access_log == "off":
        return None
    return AccessLog(settings.proxy_access_log, settings.access_log_format)


def layered(app: ASGIApp, settings: Settings, row: Row, log: AccessLog | None) -> ASGIApp:
    """The application behind its log and its counters, from the inside out."""
    if log is not None:
        app = logged(app, log)
    if settings.status_listen:
        app = counted(app, row, settings.real_ip_header)
    return app
