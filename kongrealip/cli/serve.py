"""``kongrealip serve``: from settings to a running server."""

from __future__ import annotations

import logging
import os
import signal
import ssl
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kongrealip.cli import whoami
from kongrealip.cli.settings import load_settings, set_up_logging
from kongrealip.config import Listen, Settings
from kongrealip.config.check import serve_warnings
from kongrealip.config.listen import HTTP_FLAGS, flags_of
from kongrealip.errors import StartError
from kongrealip.middleware.asgi import RealIPMiddleware
from kongrealip.server import sockets, tls
from kongrealip.server.access_log import AccessLog, logged
from kongrealip.server.asgi import Server, import_app
from kongrealip.server.counters import Counters, counted, keys_of
from kongrealip.server.sockets import Sockets
from kongrealip.server.workers import ROWS_TO_SPARE, Plan, Supervisor

logger = logging.getLogger("kongrealip")

_EVERY_CORE = "auto"


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
    settings, environ_of_app = _read(options, environ)
    set_up_logging(settings)
    workers = _workers(options, settings)
    _announce(settings)
    inherited = sockets.inherited(environ)
    if workers is None:
        return _serve_alone(options, settings, environ_of_app, inherited)
    contexts = _contexts(settings)
    listens = (*settings.proxy_listen, *settings.status_listen)
    opened = sockets.open_all(listens, workers, settings.client_header_timeout, inherited)
    plan = _plan(options, settings, environ_of_app, contexts, opened, workers, None)
    return Supervisor(plan, partial(_renew, options, environ)).run()


def _read(options: Options, environ: Mapping[str, str]) -> tuple[Settings, Mapping[str, str]]:
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


def _workers(options: Options, settings: Settings) -> int | None:
    """How many were asked for; None is this process alone."""
    if options.workers is not None:
        return _cores() if options.workers == _EVERY_CORE else int(options.workers)
    if "nginx_worker_processes" in settings.given:
        return settings.nginx_worker_processes or _cores()
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _announce(settings: Settings) -> None:
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


def _serve_alone(
    options: Options, settings: Settings, environ: Mapping[str, str], inherited: list[Any]
) -> int:
    if not sys.stdin.isatty():
        # Sent by somebody who takes this for a server with workers: no reason to die of it.
        signal.signal(signal.SIGHUP, _tell_of_workers)
    # The application first: nobody should connect to a port behind which nothing will ever be.
    os.environ.update(environ)
    application = _application(options)
    contexts = _contexts(settings)
    counters = Counters(keys_of(settings), 1)
    layers = _layers(application, settings, counters, 0)
    listens = (*settings.proxy_listen, *settings.status_listen)
    opened = sockets.open_all(listens, 0, settings.client_header_timeout, inherited)
    server = Server(
        layers, settings, opened.of_worker(0), contexts,
        loop=options.loop, counters=counters, on_ending=opened.turn_newcomers_away,
    )  # fmt: skip
    try:
        server.run()
    finally:
        # Where it never came to serve.
        opened.turn_newcomers_away()
    return 0


def _tell_of_workers(number: int, frame: object) -> None:
    logger.warning("SIGHUP: nothing is read anew without --workers")


def _plan(
    options: Options,
    settings: Settings,
    environ: Mapping[str, str],
    contexts: Mapping[bool, ssl.SSLContext],
    opened: Sockets,
    workers: int,
    counters: Counters | None,
) -> Plan:
    """What workers do."""
    keys = keys_of(settings)
    # Kept over a renewal where it can be: what is scraped should not begin anew.
    if counters is None or set(counters.keys) != set(keys) or counters.rows <= workers + ROWS_TO_SPARE:
        counters = Counters(keys, 1 + workers + ROWS_TO_SPARE)
    parent = os.getpid()

    def serve(number: int, row: int, on_ready: Callable[[], None]) -> None:
        os.environ.update(environ)
        try:
            layers = _layers(_application(options), settings, counters, row)
        except StartError as error:
            logger.error("%s", error)
            sys.exit(3)
        server = Server(
            layers, settings, opened.of_worker(number), contexts,
            loop=options.loop, counters=counters, row=row, parent=parent, on_ready=on_ready,
        )  # fmt: skip
        server.run()

    return Plan(workers, opened, counters, serve)


def _renew(options: Options, environ: Mapping[str, str], present: Plan) -> tuple[Plan, Sockets]:
    """The plan for the configuration as it is now. Raises KongRealIPError where that is wrong."""
    settings, environ_of_app = _read(options, environ)
    workers = _workers(options, settings) or present.workers
    contexts = _contexts(settings)
    listens = (*settings.proxy_listen, *settings.status_listen)
    opened, left_over = present.sockets.renewed(listens, workers, settings.client_header_timeout)
    try:
        # The last that can fail, for what has failed is to be told in the old log.
        set_up_logging(settings)
    except StartError:
        opened.close_but(present.sockets.opened)
        raise
    plan = _plan(options, settings, environ_of_app, contexts, opened, workers, present.counters)
    _announce(settings)
    return plan, left_over


def _contexts(settings: Settings) -> dict[bool, ssl.SSLContext]:
    """TLS for listeners with and without http2, where there are such."""
    wanted = {listen.http2 for listen in (*settings.proxy_listen, *settings.status_listen) if listen.ssl}
    if wanted and not settings.ssl_cert:
        certificate, key = tls.self_signed()
        settings = settings._replace(ssl_cert=(certificate,), ssl_cert_key=(key,))
    return {http2: tls.context(settings, http2) for http2 in wanted}


def _layers(application: Any, settings: Settings, counters: Counters, row: int) -> Any:
    """The application behind what looks at each request, from the inside out."""
    if settings.proxy_access_log != "off":
        application = logged(application, AccessLog(settings.proxy_access_log, settings.access_log_format))
    if settings.status_listen:
        application = counted(application, counters.row(row), settings.real_ip_header)
    return RealIPMiddleware(application, settings)


def _application(options: Options) -> Any:
    if options.app is None:
        return whoami.app
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
