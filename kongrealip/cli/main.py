"""``kongrealip``: serve, relay, proxy, config, check, explain, decode, demo, --version.

Exit codes: 0 ended as asked, 1 check has findings, 2 wrong usage, 3 could not start.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from kongrealip import __version__
from kongrealip.cli import options
from kongrealip.errors import KongRealIPError

# Those that a server does not need: importing them would be a tenth of what its start costs.
_ON_DEMAND = ("check", "decode", "explain")


class _Commands(click.Group):
    """A group of which some commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_ON_DEMAND})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ON_DEMAND and cmd_name not in self.commands:
            self.add_command(getattr(import_module(f"kongrealip.cli.{cmd_name}"), cmd_name))
        return super().get_command(ctx, cmd_name)


def _show_version(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        click.echo(_version_line())
        context.exit()


def _version_line() -> str:
    from importlib.metadata import PackageNotFoundError, version

    parts = [f"kongrealip {__version__}", f"Python {platform.python_version()}"]
    for name in ("uvicorn", "uvloop"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} not installed")
    return ", ".join(parts)


def _check_workers(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value in (None, "auto") or (value.isascii() and value.isdigit() and 0 < int(value[:9]) < 100_000):
        return value
    raise click.BadParameter(f"{value!r}: write auto or a number of at least 1")


_loop = click.option(
    "--loop", type=click.Choice(["auto", "uvloop", "asyncio"]), default="auto", show_default=True
)
_workers = click.option(
    "--workers",
    metavar="N|auto",
    callback=_check_workers,
    help="Processes, under a parent that replaces them; auto is the number of cores. Wins over"
    " KONG_NGINX_WORKER_PROCESSES. [default: this process alone]",
)
_uds = click.option(
    "--uds",
    metavar="PATH",
    help="Listen on this Unix socket, with flags behind it as in KONG_PROXY_LISTEN."
    " Without KONG_PROXY_LISTEN it is the only listener. [default: none]",
)
_access_log = click.option(
    "--access-log/--no-access-log",
    default=True,
    show_default=True,
    help="A line for each request, as KONG_PROXY_ACCESS_LOG says; off wins over it.",
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    callback=_show_version,
    expose_value=False,
    is_eager=True,
    help="Show the version and exit.",
)
def cli() -> None:
    """The client's real address, decided exactly as Kong decides it."""


@cli.command()
@click.argument("app", required=False)
@click.option("--factory", is_flag=True, help="APP is a callable that returns the application.")
@click.option("--app-dir", default=".", show_default=True, help="Where to look for APP's module.")
@options.conf
@options.env_file
@_uds
@_loop
@_workers
@_access_log
def serve(app: str | None, factory: bool, **others: Any) -> None:
    """Open every listener of KONG_PROXY_LISTEN and serve APP (module:attribute) on them.

    Without APP the built-in application answers with what the server sees.
    """
    if app is None and factory:
        raise click.UsageError("--factory needs an APP.")
    if app is not None and not all(app.partition(":")):
        raise click.UsageError(f"APP must be module:attribute, as in main:app, and is {app!r}.")
    with _starting():
        from kongrealip.cli.serve import Options, run

        code = run(Options(app, factory, **others), dict(os.environ))
    sys.exit(code)


@cli.command()
@click.option(
    "--upstream",
    multiple=True,
    metavar="HOST:PORT",
    help="Where to relay to; several take turns. [KONGREALIP_UPSTREAM]",
)
@click.option(
    "--listen",
    metavar="LIST",
    help="Listeners, as in 0.0.0.0:9000 proxy_protocol. [KONG_STREAM_LISTEN, default: off]",
)
@click.option(
    "--send-proxy",
    metavar="off|v1|v2",
    help="The preamble that the upstream gets. [KONGREALIP_SEND_PROXY, default: off]",
)
@click.option(
    "--allow", metavar="NETWORKS", help="Clients that may connect. [KONGREALIP_ALLOW, default: everybody]"
)
@click.option(
    "--upstream-tls", metavar="on|off", help="TLS to the upstream. [KONGREALIP_UPSTREAM_TLS, default: off]"
)
@click.option(
    "--upstream-tls-ca",
    metavar="FILE",
    help="Its authorities. [KONGREALIP_UPSTREAM_TLS_CA, default: those of the system]",
)
@click.option(
    "--upstream-tls-verify",
    metavar="on|off",
    help="Verify its certificate. [KONGREALIP_UPSTREAM_TLS_VERIFY, default: on]",
)
@click.option(
    "--alpn",
    metavar="LIST",
    help="Protocols to offer on ssl listeners, as in h2,http/1.1. [KONGREALIP_ALPN, default: none]",
)
@click.option(
    "--connect-timeout",
    metavar="TIME",
    help="For an upstream to take a connection. [KONGREALIP_CONNECT_TIMEOUT, default: 5s]",
)
@click.option(
    "--idle-timeout",
    metavar="TIME",
    help="Closed when nothing moves so long. [KONGREALIP_IDLE_TIMEOUT, default: 10m]",
)
@click.option(
    "--drain-timeout",
    metavar="TIME",
    help="At the end connections go on so long. [KONGREALIP_DRAIN_TIMEOUT, default: 20s]",
)
@options.conf
@options.env_file
@_loop
@_workers
def relay(
    upstream: tuple[str, ...],
    listen: str | None,
    conf: str | None,
    env_file: str | None,
    loop: str,
    workers: str | None,
    **words: str | None,
) -> None:
    """Open every listener of KONG_STREAM_LISTEN and pass raw TCP on to an upstream.

    Each option with a value of its own has a variable, KONGREALIP_UPSTREAM for --upstream, and
    wins over it.
    """
    words |= {"upstream": ",".join(upstream) or None, "stream_listen": listen}
    given = {key: word for key, word in words.items() if word is not None}
    with _starting():
        from kongrealip.cli.relay import Options, run

        code = run(Options(given, conf, env_file, loop, workers), dict(os.environ))
    sys.exit(code)


@cli.command()
@click.option(
    "--upstream",
    multiple=True,
    metavar="URL",
    help="http://host:port or unix:/path; several take turns. [KONGREALIP_UPSTREAM]",
)
@click.option(
    "--preserve-host",
    metavar="on|off",
    help="Pass the client's Host on. [KONGREALIP_PRESERVE_HOST, default: off]",
)
@click.option(
    "--connect-timeout",
    metavar="TIME",
    help="For an upstream to take a connection. [KONGREALIP_CONNECT_TIMEOUT, default: 5s]",
)
@click.option(
    "--read-timeout",
    metavar="TIME",
    help="The longest an upstream may pause. [KONGREALIP_READ_TIMEOUT, default: 60s]",
)
@options.conf
@options.env_file
@_uds
@_loop
@_workers
@_access_log
def proxy(
    upstream: tuple[str, ...],
    conf: str | None,
    env_file: str | None,
    uds: str | None,
    loop: str,
    workers: str | None,
    access_log: bool,
    **words: str | None,
) -> None:
    """Open every listener of KONG_PROXY_LISTEN and pass HTTP on with the headers that Kong would send.

    Each option with a value of its own has a variable, KONGREALIP_UPSTREAM for --upstream, and
    wins over it.
    """
    words |= {"upstream": ",".join(upstream) or None}
    given = {key: word for key, word in words.items() if word is not None}
    with _starting():
        from kongrealip.cli.proxy import Options, run

        code = run(Options(given, conf, env_file, uds, loop, access_log, workers), dict(os.environ))
    sys.exit(code)


@cli.command()
@options.conf
@options.env_file
def config(conf: str | None, env_file: str | None) -> None:
    """Print the settings in force, one a line, each with where it came from."""
    from kongrealip.cli.settings import load_every_setting, show

    try:
        settings, relay, proxy = load_every_setting(conf, env_file, os.environ)
    except KongRealIPError as error:
        options.cannot_start(error)
    show(settings, relay, proxy)
    for warning in settings.warnings:
        click.echo(f"kongrealip: {warning}", err=True)


@cli.command()
@click.option("--stay", is_flag=True, help="Keep serving after the table.")
def demo(stay: bool) -> None:
    """Start two servers on loopback and show what five clients look like to an application."""
    from kongrealip.cli.demo import play

    _end_at_signals()
    sys.exit(play(stay))


@contextmanager
def _starting() -> Iterator[None]:
    """What a server's start has in common with others, from its imports on.

    The collector would look a dozen times through what is imported, all of which stays: a fifteenth
    of a start's CPU. It is turned on again before anything is served.
    """
    _end_at_signals()
    gc.disable()
    try:
        yield
    except KongRealIPError as error:
        options.cannot_start(error)
    finally:
        gc.enable()


def _end_at_signals() -> None:
    """Before the loop handles signals, and after it has: either way this is the end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def main(argv: list[str] | None = None) -> None:
    """Run the command line. ``argv`` is for tests; the process's own arguments otherwise."""
    cli.main(args=argv, prog_name="kongrealip")
