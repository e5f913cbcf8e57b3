"""One process or several: what ``serve`` and ``relay`` have in common."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kongrealip.cli.settings import set_up_logging
from kongrealip.config import Listen, Settings
from kongrealip.errors import StartError
from kongrealip.server import sockets
from kongrealip.server.asgi import Server
from kongrealip.server.counters import Counters, Key
from kongrealip.server.sockets import Sockets
from kongrealip.server.workers import CANNOT_START, ROWS_TO_SPARE, Plan, Supervisor

logger = logging.getLogger("kongrealip")

_EVERY_CORE = "auto"


class Service(NamedTuple):
    """What the configuration comes to, as it is now.

    ``prepare`` runs in the process that serves, and may raise StartError. It takes the counters
    and that process's row, and returns what makes the server of the rest of its arguments.
    """

    settings: Settings
    listens: tuple[Listen, ...]
    #: None is this process alone.
    workers: int | None
    keys: list[Key]
    announce: Callable[[], None]
    prepare: Callable[[Counters, int], Callable[..., Server]]


def workers_of(option: str | None, settings: Settings) -> int | None:
    """How many were asked for; None is this process alone."""
    if option is not None:
        return _cores() if option == _EVERY_CORE else int(option)
    if "nginx_worker_processes" in settings.given:
        return settings.nginx_worker_processes or _cores()
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def run(read: Callable[[], Service], environ: Mapping[str, str]) -> int:
    """Run until a signal comes, and return the exit code. ``read`` is called again for SIGHUP.

    Raises KongRealIPError where it cannot begin.
    """
    service = read()
    set_up_logging(service.settings)
    inherited = sockets.inherited(environ)
    if service.workers is None:
        return _run_alone(service, inherited)
    opened = sockets.open_all(
        service.listens, service.workers, service.settings.client_header_timeout, inherited
    )
    service.announce()
    plan = _plan(service, opened, service.workers, None)
    _collect_what_comes()
    return Supervisor(plan, partial(_renew, read)).run()


def _run_alone(service: Service, inherited: list[Any]) -> int:
    if not sys.stdin.isatty():
        # Sent by somebody who takes this for a server with workers: no reason to die of it.
        signal.signal(signal.SIGHUP, _tell_of_workers)
    counters = Counters(service.keys, 1)
    # The application first: nobody should connect to a port behind which nothing will ever be.
    make = service.prepare(counters, 0)
    opened = sockets.open_all(service.listens, 0, service.settings.client_header_timeout, inherited)
    # Now it is true, and whoever waits for that line may connect.
    service.announce()
    server = make(opened=opened.of_worker(0), counters=counters, on_ending=opened.turn_newcomers_away)
    _collect_what_comes()
    try:
        server.run()
    finally:
        # Where it never came to serve.
        opened.turn_newcomers_away()
    return 0


def _collect_what_comes() -> None:
    """Garbage, from now on. What is there by now stays, and need not be looked through again and again."""
    gc.freeze()
    gc.enable()


def _tell_of_workers(number: int, frame: object) -> None:
    logger.warning("SIGHUP: nothing is read anew without --workers")


def _plan(service: Service, opened: Sockets, workers: int, counters: Counters | None) -> Plan:
    """What workers do."""
    keys = service.keys
    # Kept over a renewal where it can be: what is scraped should not begin anew.
    if counters is None or set(counters.keys) != set(keys) or counters.rows <= workers + ROWS_TO_SPARE:
        counters = Counters(keys, 1 + workers + ROWS_TO_SPARE)
    parent = os.getpid()

    def serve(number: int, row: int, on_ready: Callable[[], None]) -> None:
        try:
            make = service.prepare(counters, row)
        except StartError as error:
            logger.error("%s", error)
            sys.exit(CANNOT_START)
        make(
            opened=opened.of_worker(number), counters=counters, row=row, parent=parent, on_ready=on_ready
        ).run()

    return Plan(workers, opened, counters, serve)


def _renew(read: Callable[[], Service], present: Plan) -> tuple[Plan, Sockets]:
    """The plan for the configuration as it is now. Raises KongRealIPError where that is wrong."""
    service = read()
    workers = service.workers or present.workers
    opened, left_over = present.sockets.renewed(
        service.listens, workers, service.settings.client_header_timeout
    )
    try:
        # The last that can fail, for what has failed is to be told in the old log.
        set_up_logging(service.settings)
    except StartError:
        opened.close_but(present.sockets.opened)
        raise
    plan = _plan(service, opened, workers, present.counters)
    service.announce()
    return plan, left_over
