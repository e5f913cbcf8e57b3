"""``kongrealip relay``: from settings to a running relay."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from kongrealip.cli import processes
from kongrealip.cli.processes import Service, workers_of
from kongrealip.cli.settings import load_relay_settings
from kongrealip.config import Settings
from kongrealip.config.check import relay_warnings
from kongrealip.config.relay import RelaySettings
from kongrealip.errors import StartError
from kongrealip.relay.relay import Behind
from kongrealip.relay.server import RelayServer, keys_of
from kongrealip.relay.tls import for_clients, for_upstreams
from kongrealip.relay.upstreams import resolve_targets
from kongrealip.server import tls
from kongrealip.server.counters import Counters

logger = logging.getLogger("kongrealip")


class Options(NamedTuple):
    """What the command line says. ``words`` are those that have a variable of their own, too."""

    words: Mapping[str, str] = {}
    conf: str | None = None
    env_file: str | None = None
    loop: str = "auto"
    workers: str | None = None


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Relay until a signal comes, and return the exit code. Raises StartError where it cannot begin."""
    sys.unraisablehook = _tell_of_the_unraisable
    return processes.run(partial(_service, options, environ), environ)


def _service(options: Options, environ: Mapping[str, str]) -> Service:
    settings, relay = load_relay_settings(options.conf, options.env_file, environ, options.words)
    if not settings.stream_listen:
        raise StartError(
            "KONG_STREAM_LISTEN: off leaves nothing to relay from, write <ip>:<port> or use --listen"
        )
    if not relay.upstreams:
        raise StartError(
            "KONGREALIP_UPSTREAM: there is nowhere to relay to, write <host>:<port> or use --upstream"
        )
    targets = resolve_targets(relay.upstreams, relay.given["upstreams"])
    behind = Behind(relay, targets, for_clients(settings, relay), for_upstreams(relay))
    contexts = tls.contexts(settings, settings.status_listen)

    def prepare(counters: Counters, row: int) -> Callable[..., RelayServer]:
        return partial(RelayServer, settings, behind, contexts, loop=options.loop)

    return Service(
        settings,
        (*settings.stream_listen, *settings.status_listen),
        workers_of(options.workers, settings),
        keys_of(settings, behind),
        partial(_announce, settings, relay),
        prepare,
    )


def _tell_of_the_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Python prints a traceback for each server name that is none, and anybody could send many.

    The handshake fails by that, which is told of in the way of others.
    """
    if not isinstance(unraisable.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(unraisable)


def _announce(settings: Settings, relay: RelaySettings) -> None:
    for warning in relay_warnings(settings, relay):
        logger.warning(warning)
    for listen in settings.stream_listen:
        logger.info("relaying from %s", listen)
    for listen in settings.status_listen:
        logger.info("status on %s", listen)
    logger.info(
        "relaying to %s%s, preamble: %s",
        ", ".join(map(str, relay.upstreams)),
        " with TLS" if relay.upstream_tls else "",
        relay.send_proxy,
    )
    logger.info(
        "client address from proxy_protocol, trusted: %s",
        ", ".join(settings.trusted_ips) or "nobody, so the peer is always the client",
    )
