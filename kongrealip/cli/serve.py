"""``kongrealip serve``: from settings to a running server."""

from __future__ import annotations

import logging
from typing import Any

from kongrealip.cli import whoami
from kongrealip.config import Listen, Settings
from kongrealip.config.check import serve_warnings
from kongrealip.config.listen import HTTP_FLAGS, flags_of
from kongrealip.errors import StartError
from kongrealip.middleware.asgi import RealIPMiddleware
from kongrealip.server import listener, tls
from kongrealip.server.asgi import Server, import_app

logger = logging.getLogger("kongrealip")


def run(
    app: str | None,
    settings: Settings,
    *,
    factory: bool,
    app_dir: str,
    uds: str | None,
    loop: str,
    access_log: bool,
) -> None:
    """Serve until a signal comes. Raises StartError where it cannot begin."""
    replaced = uds is not None and "proxy_listen" not in settings.given
    tcp = () if replaced else settings.proxy_listen
    unix = [] if uds is None else [_unix_listen(uds)]
    settings = settings._replace(proxy_listen=(*tcp, *(listen for _, listen in unix)))
    for warning in serve_warnings(settings):
        logger.warning(warning)
    application = _application(app, factory, app_dir)
    if not settings.proxy_listen:
        raise StartError("KONG_PROXY_LISTEN: off leaves nothing to serve on, write <ip>:<port> or use --uds")
    context = tls.context(settings) if any(listen.ssl for listen in settings.proxy_listen) else None
    defer = settings.client_header_timeout
    sockets = [(sock, listen) for listen in tcp for sock in listener.bind(listen, defer)]
    sockets += [(listener.bind_unix(path), listen) for path, listen in unix]
    for listen in settings.proxy_listen:
        logger.info("listening on %s", listen)
    logger.info(
        "client address from %s%s, trusted: %s",
        settings.real_ip_header,
        ", recursive" if settings.real_ip_recursive else "",
        ", ".join(settings.trusted_ips) or "nobody, so the peer is always the client",
    )
    server = Server(
        RealIPMiddleware(application, settings), settings, sockets, context,
        access_log=access_log, loop=loop,
    )  # fmt: skip
    server.run()


def _application(app: str | None, factory: bool, app_dir: str) -> Any:
    if app is None:
        return whoami.app
    loaded = import_app(app, app_dir)
    if not factory:
        return loaded
    try:
        return loaded()
    except Exception as error:
        logger.exception("calling the factory %s failed", app)
        raise StartError(f"cannot call the factory {app!r}: {error!r}") from error


def _unix_listen(text: str) -> tuple[str, Listen]:
    """``PATH [flags]``: the path, and a Listen that carries the flags and the name for the log."""
    path, *words = text.split(" ")
    flags, rest = flags_of(" ".join(words), HTTP_FLAGS)
    if rest:
        raise StartError(f"--uds {text!r}: unknown flag {rest!r}")
    return path, Listen(f"unix:{path}", 0, flags)
