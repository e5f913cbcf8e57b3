"""``kongrealip serve``: from settings to a running server."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kongrealip.cli import processes
from kongrealip.cli.processes import Service, workers_of
from kongrealip.cli.settings import load_settings
from kongrealip.config import Listen, Settings
from kongrealip.config.check import serve_warnings
from kongrealip.config.listen import HTTP_FLAGS, flags_of
from kongrealip.errors import StartError
from kongrealip.middleware.asgi import RealIPMiddleware
from kongrealip.server.asgi import Server, import_app
from kongrealip.server.counters import Counters, keys_of
from kongrealip.server.layers import layered, open_log

logger = logging.getLogger("kongrealip")


class Options(NamedTuple):
    """What the command line says."""

    app: str | None = None
    factory: bool = False
    app_dir: str = "."
    conf: str | None = None
    env_file: str | None = None
    uds: str | None = None
    loop: str = "auto"
    access_log: bool = True
    workers: str | None = None


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Serve until a signal comes, and return the exit code. Raises StartError where it cannot begin."""
    return processes.run(partial(_service, options, environ), environ)


def _service(options: Options, environ: Mapping[str, str]) -> Service:
    settings, environ_of_app = read(options, environ)
    listens = (*settings.proxy_listen, *settings.status_listen)
    contexts = {}
    if any(listen.ssl for listen in listens):
        from kongrealip.server import tls

        contexts = tls.contexts(settings, listens)

    def prepare(counters: Counters, row: int) -> Callable[..., Server]:
        os.environ.update(environ_of_app)
        app = layers(_application(options, settings), settings, counters, row)
        return partial(Server, app, settings, contexts=contexts, loop=options.loop)

    return Service(
        settings,
        listens,
        workers_of(options.workers, settings),
        keys_of(settings),
        partial(announce, settings),
        prepare,
    )


def read(options: Options, environ: Mapping[str, str]) -> tuple[Settings, Mapping[str, str]]:
    """The settings in force, and the environment that the application is to see."""
    settings, environ = load_settings(options.conf, options.env_file, environ)
    replaced = options.uds is not None and "proxy_listen" not in settings.given
    tcp = () if replaced else settings.proxy_listen
    unix = () if options.uds is None else (_unix_listen(options.uds),)
    settings = settings._replace(proxy_listen=(*tcp, *unix))
    if not options.access_log:
        settings = settings._replace(proxy_access_log="off")
    if not settings.proxy_listen:
        raise StartError("KONG_PROXY_LISTEN: off leaves nothing to serve on, write <ip>:<port> or use --uds")
    return settings, environ


def announce(settings: Settings) -> None:
    for warning in serve_warnings(settings):
        logger.warning(warning)
    for listen in settings.proxy_listen:
        logger.info("listening on %s", listen)
    for listen in settings.status_listen:
        logger.info("status on %s", listen)
    logger.info(
        "client address from %s%s, trusted: %s",
        settings.real_ip_header,
        ", recursive" if settings.real_ip_recursive else "",
        ", ".join(settings.trusted_ips) or "nobody, so the peer is always the client",
    )


def layers(application: Any, settings: Settings, counters: Counters, row: int) -> Any:
    """The application behind what looks at each request, from the inside out."""
    behind = layered(application, settings, counters.row(row), open_log(settings))
    return RealIPMiddleware(behind, settings)


def _application(options: Options, settings: Settings) -> Any:
    if options.app is None:
        # Imported here: its page costs more than the server does.
        from kongrealip.cli import whoami

        return whoami.application(settings)
    loaded = import_app(options.app, options.app_dir)
    if not options.factory:
        return loaded
    try:
        return loaded()
    except Exception as error:
        logger.exception("calling the factory %s failed", options.app)
        raise StartError(f"cannot call the factory {options.app!r}: {error!r}") from error


def _unix_listen(text: str) -> Listen:
    """``PATH [flags]`` as a Listen that carries the flags and the name for the log."""
    path, *words = text.split(" ")
    flags, rest = flags_of(" ".join(words), HTTP_FLAGS)
    if rest:
        raise StartError(f"--uds {text!r}: unknown flag {rest!r}")
    return Listen(f"unix:{path}", 0, flags)
