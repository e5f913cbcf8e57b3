"""Files and the process environment -> settings, and the logging that they ask for.

Also ``kongrealip config``, which shows them.
"""

from __future__ import annotations

import logging.config
from collections.abc import Mapping
from typing import Any

import click

from kongrealip.config import Settings
from kongrealip.config.kongconf import parse_environment
from kongrealip.errors import SettingsError, StartError

_LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "notice": logging.INFO, "warn": logging.WARNING,
    "error": logging.ERROR, "crit": logging.CRITICAL, "alert": logging.CRITICAL, "emerg": logging.CRITICAL,
}  # fmt: skip
# What it means that nothing is there.
_EMPTY = {
    "trusted_ips": "nobody", "proxy_listen": "off", "stream_listen": "off", "status_listen": "off",
    "port_maps": "none", "ssl_cert": "self-signed", "ssl_cert_key": "self-signed",
    "ssl_ciphers": "those of the suite", "proxy_protocol_optional_from": "nobody",
}  # fmt: skip
_STANDARD = {"/dev/stdout": "ext://sys.stdout", "/dev/stderr": "ext://sys.stderr"}


def load_settings(
    conf: str | None, env_file: str | None, environ: Mapping[str, str]
) -> tuple[Settings, Mapping[str, str]]:
    """Settings from environment, environment file and kong.conf, the first winning.

    Returns with them the environment that this makes. Raises SettingsError, and StartError where
    a file cannot be read.
    """
    if env_file is not None:
        try:
            environ = {**parse_environment(_content(env_file)), **environ}
        except ValueError as error:
            raise SettingsError([f"{env_file}: {error}"]) from error
    return Settings.load(environ, None if conf is None else _content(conf)), environ


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from error


def set_up_logging(settings: Settings) -> None:
    """Everything to ``proxy_error_log``, at ``log_level``. The access log is no part of this."""
    level = _LEVELS[settings.log_level]
    path = settings.proxy_error_log
    handler: dict[str, Any] = {"formatter": "plain"}
    if path in _STANDARD:
        handler |= {"class": "logging.StreamHandler", "stream": _STANDARD[path]}
    else:
        # Opens the file anew when something has moved it away.
        handler |= {"class": "logging.handlers.WatchedFileHandler", "filename": path}
    own = {"handlers": ["error"], "level": level, "propagate": False}
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
                "handlers": {"error": handler},
                "loggers": {"kongrealip": own, "uvicorn": own},
            }
        )
    except ValueError as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else error
        raise StartError(f"KONG_PROXY_ERROR_LOG: cannot write to {path!r}: {reason}") from error


def show(settings: Settings) -> None:
    """Every setting in force, one a line, with where it came from."""
    for key, value in settings._asdict().items():
        if key not in ("given", "warnings"):
            origin = settings.given.get(key, "default")
            given = key in settings.given
            click.echo(f"{key} = {_printed(key, value, given)}  ({origin})")


def _printed(key: str, value: object, given: bool) -> str:
    if key == "nginx_worker_processes" and not given:
        return "this process alone"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        value = ", ".join(map(_without_secrets, value))
    return _EMPTY.get(key, "auto") if value in (None, "") else str(value)


def _without_secrets(entry: object) -> str:
    # A private key has no place on a screen or in a bug report.
    text = str(entry)
    return "(PEM text)" if "-----BEGIN" in text else text
