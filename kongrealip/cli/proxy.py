"""``kongrealip proxy``: from settings to a running sidecar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from kongrealip.cli import processes, serve
from kongrealip.cli.processes import Service, workers_of
from kongrealip.cli.settings import load_proxy_settings
from kongrealip.config import Settings
from kongrealip.config.check import proxy_warnings
from kongrealip.config.proxy import ProxySettings
from kongrealip.errors import StartError
from kongrealip.proxy.proxy import Proxy
from kongrealip.proxy.server import ProxyServer, keys_of
from kongrealip.relay.upstreams import resolve_targets
from kongrealip.server import tls
from kongrealip.server.counters import Counters

logger = logging.getLogger("kongrealip")


class Options(NamedTuple):
    """What the command line says. ``words`` are those that have a variable of their own, too."""

    words: Mapping[str, str] = {}
    conf: str | None = None
    env_file: str | None = None
    uds: str | None = None
    loop: str = "auto"
    access_log: bool = True
    workers: str | None = None


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Pass on until a signal comes, and return the exit code. Raises StartError where it cannot begin."""
    return processes.run(partial(_service, options, environ), environ)


def _service(options: Options, environ: Mapping[str, str]) -> Service:
    # First, for it knows all that can be wrong with either.
    _, proxy = load_proxy_settings(options.conf, options.env_file, environ, options.words)
    settings, _ = serve.read(_as_served(options), environ)
    if not proxy.upstreams:
        raise StartError(
            "KONGREALIP_UPSTREAM: there is nowhere to pass requests on to, write http://<host>:<port> or"
            " use --upstream"
        )
    targets = resolve_targets(proxy.upstreams, proxy.given["upstreams"])
    listens = (*settings.proxy_listen, *settings.status_listen)
    contexts = tls.contexts(settings, listens)

    def prepare(counters: Counters, row: int) -> Callable[..., ProxyServer]:
        passing = Proxy(proxy, targets, counters.row(row))
        app = serve.layers(passing.app, settings, counters, row)
        return partial(ProxyServer, app, passing, settings, contexts=contexts, loop=options.loop)

    return Service(
        settings,
        listens,
        workers_of(options.workers, settings),
        keys_of(settings, targets),
        partial(_announce, settings, proxy),
        prepare,
    )


def _as_served(options: Options) -> serve.Options:
    """What ``serve`` and this have in common."""
    return serve.Options(
        conf=options.conf, env_file=options.env_file, uds=options.uds, access_log=options.access_log
    )


def _announce(settings: Settings, proxy: ProxySettings) -> None:
    for warning in proxy_warnings(settings, proxy):
        logger.warning(warning)
    serve.announce(settings)
    logger.info(
        "passing on to %s, Host: %s",
        ", ".join(map(str, proxy.upstreams)),
        "the client's" if proxy.preserve_host else "the upstream's",
    )
