"""``kongrealip``: serve, demo, --version.

Exit codes: 0 ended as asked, 2 wrong usage, 3 could not start.
"""

from __future__ import annotations

import logging.config
import os
import platform
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import click

from kongrealip import __version__
from kongrealip.config.settings import Settings
from kongrealip.errors import KongRealIPError, SettingsError

CANNOT_START = 3

_LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "notice": logging.INFO, "warn": logging.WARNING,
    "error": logging.ERROR, "crit": logging.CRITICAL, "alert": logging.CRITICAL, "emerg": logging.CRITICAL,
}  # fmt: skip


def _version_line() -> str:
    parts = [f"kongrealip {__version__}", f"Python {platform.python_version()}"]
    for name in ("uvicorn", "uvloop"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} not installed")
    return ", ".join(parts)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(message=_version_line())
def cli() -> None:
    """The client's real address, decided exactly as Kong decides it."""


@cli.command()
@click.argument("app", required=False)
@click.option("--factory", is_flag=True, help="APP is a callable that returns the application.")
@click.option("--app-dir", default=".", show_default=True, help="Where to look for APP's module.")
@click.option(
    "--conf", type=click.Path(exists=True, dir_okay=False), help="A kong.conf. The environment wins over it."
)
@click.option(
    "--uds",
    metavar="PATH",
    help="Listen on this Unix socket, with flags behind it as in KONG_PROXY_LISTEN."
    " Without KONG_PROXY_LISTEN it is the only listener.",
)
@click.option("--loop", type=click.Choice(["auto", "uvloop", "asyncio"]), default="auto", show_default=True)
@click.option(
    "--access-log/--no-access-log", default=True, show_default=True, help="A line for each request."
)
def serve(
    app: str | None,
    factory: bool,
    app_dir: str,
    conf: str | None,
    uds: str | None,
    loop: str,
    access_log: bool,
) -> None:
    """Open every listener of KONG_PROXY_LISTEN and serve APP (module:attribute) on them.

    Without APP the built-in application answers with what the server sees.
    """
    from kongrealip.cli.serve import run

    if app is None and factory:
        raise click.UsageError("--factory needs an APP.")
    if app is not None and not all(app.partition(":")):
        raise click.UsageError(f"APP must be module:attribute, as in main:app, and is {app!r}.")
    _end_at_signals()
    try:
        settings = load_settings(conf)
        set_up_logging(settings.log_level)
        run(app, settings, factory=factory, app_dir=app_dir, uds=uds, loop=loop, access_log=access_log)
    except KongRealIPError as error:
        cannot_start(error)


@cli.command()
@click.option("--stay", is_flag=True, help="Keep serving after the table.")
def demo(stay: bool) -> None:
    """Start two servers on loopback and show what five clients look like to an application."""
    from kongrealip.cli.demo import play

    _end_at_signals()
    sys.exit(play(stay))


def load_settings(conf: str | None) -> Settings:
    """Settings from the process environment and, where one is given, a kong.conf."""
    if conf is None:
        return Settings.load(os.environ)
    with open(conf, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return Settings.load(os.environ, file.read())


def set_up_logging(log_level: str) -> None:
    """Everything to standard error, but for the access log, which goes to standard output."""
    handlers: dict[str, Any] = {
        "error": {"class": "logging.StreamHandler", "formatter": "error", "stream": "ext://sys.stderr"},
        "access": {"class": "logging.StreamHandler", "formatter": "access", "stream": "ext://sys.stdout"},
    }
    level = _LEVELS[log_level]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "error": {"format": "%(asctime)s %(levelname)s %(message)s"},
                "access": {"format": "%(asctime)s %(message)s"},
            },
            "handlers": handlers,
            "loggers": {
                "kongrealip": {"handlers": ["error"], "level": level, "propagate": False},
                "uvicorn": {"handlers": ["error"], "level": level, "propagate": False},
                "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
            },
        }
    )


def cannot_start(error: KongRealIPError) -> NoReturn:
    """Say why, one line for each problem, and end with the exit code for it."""
    lines = error.problems if isinstance(error, SettingsError) else (str(error),)
    for line in lines:
        click.echo(f"kongrealip: {line}", err=True)
    sys.exit(CANNOT_START)


def _end_at_signals() -> None:
    """Before the loop handles signals, and after it has: either way this is the end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def main(argv: list[str] | None = None) -> None:
    """Run the command line. ``argv`` is for tests; the process's own arguments otherwise."""
    cli.main(args=argv, prog_name="kongrealip")
