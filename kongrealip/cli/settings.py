"""Files and the process environment -> settings, and the logging that they ask for.

Also ``kongrealip config``, which shows them.
"""

from __future__ import annotations

import logging.config
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kongrealip.config import Settings
from kongrealip.config.kongconf import parse_environment
from kongrealip.errors import SettingsError, StartError

if TYPE_CHECKING:
    # Each server imports what is its own.
    from kongrealip.config.proxy import ProxySettings
    from kongrealip.config.relay import RelaySettings

_LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "notice": logging.INFO, "warn": logging.WARNING,
    "error": logging.ERROR, "crit": logging.CRITICAL, "alert": logging.CRITICAL, "emerg": logging.CRITICAL,
}  # fmt: skip
# What it means that nothing is there.
_EMPTY = {
    "trusted_ips": "nobody", "proxy_listen": "off", "stream_listen": "off", "status_listen": "off",
    "port_maps": "none", "ssl_cert": "self-signed", "ssl_cert_key": "self-signed",
    "ssl_ciphers": "those of the suite", "proxy_protocol_optional_from": "nobody",
    "upstreams": "none", "allow": "everybody", "alpn": "none", "client_ca": "none",
    "upstream_tls_ca": "those of the system",
}  # fmt: skip
_UPSTREAM = "KONGREALIP_UPSTREAM"
# An Ed25519 key, as base64 of DER.
_SHORTEST_KEY = 64
_STANDARD = {"/dev/stdout": "ext://sys.stdout", "/dev/stderr": "ext://sys.stderr"}


def load_settings(
    conf: str | None, env_file: str | None, environ: Mapping[str, str]
) -> tuple[Settings, Mapping[str, str]]:
    """Settings from environment, environment file and kong.conf, the first winning.

    Returns with them the environment that this makes. Raises SettingsError, and StartError where
    a file cannot be read.
    """
    from_file = _from_file(env_file)
    both = {**from_file, **environ}
    settings = Settings.load(both, None if conf is None else _content(conf))
    return settings._replace(given=_origins(settings.given, from_file, environ, env_file)), both


def load_relay_settings(
    conf: str | None,
    env_file: str | None,
    environ: Mapping[str, str],
    options: Mapping[str, str] = {},
) -> tuple[Settings, RelaySettings]:
    """The same for a relay; the words of the command line win over all of them."""
    from kongrealip.config.relay import load_relay

    from_file = _from_file(env_file)
    content = None if conf is None else _content(conf)
    settings, relay = load_relay({**from_file, **environ}, content, options)
    given = _origins(settings.given, from_file, environ, env_file)
    return settings._replace(given=given), relay._replace(given=given)


def load_proxy_settings(
    conf: str | None, env_file: str | None, environ: Mapping[str, str], options: Mapping[str, str] = {}
) -> tuple[Settings, ProxySettings]:
    """The same for a proxy."""
    from kongrealip.config.proxy import load_proxy

    from_file = _from_file(env_file)
    content = None if conf is None else _content(conf)
    settings, proxy = load_proxy({**from_file, **environ}, content, options)
    given = _origins(settings.given, from_file, environ, env_file)
    return settings._replace(given=given), proxy._replace(given=given)


def load_every_setting(
    conf: str | None, env_file: str | None, environ: Mapping[str, str]
) -> tuple[Settings, RelaySettings, ProxySettings]:
    """All there are, to look at.

    Of relay and proxy the upstreams have one name and two forms, so that the form tells whose they are.
    """
    from kongrealip.config.proxy import load_proxy
    from kongrealip.config.relay import load_relay

    from_file = _from_file(env_file)
    both = {**from_file, **environ}
    content = None if conf is None else _content(conf)
    without = {name: value for name, value in both.items() if name != _UPSTREAM}
    of_proxy = "://" in both.get(_UPSTREAM, "")
    settings, relay = load_relay(without if of_proxy else both, content, only_to_look=True)
    proxy = load_proxy(both if of_proxy else without, content)[1]
    given = _origins({**settings.given, **proxy.given}, from_file, environ, env_file)
    return settings._replace(given=given), relay, proxy


def _from_file(env_file: str | None) -> Mapping[str, str]:
    if env_file is None:
        return {}
    try:
        return parse_environment(_content(env_file))
    except ValueError as error:
        raise SettingsError([f"{env_file}: {error}"]) from error


def _origins(
    given: Mapping[str, str], from_file: Mapping[str, str], environ: Mapping[str, str], env_file: str | None
) -> dict[str, str]:
    """Where each key that was set came from, the environment file by its name."""
    return {
        key: f"{name} in {env_file}" if name in from_file and name not in environ else name
        for key, name in given.items()
    }


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


def show(settings: Settings, relay: RelaySettings, proxy: ProxySettings) -> None:
    """Every setting in force, one a line, with where it came from."""
    values = {**settings._asdict(), **relay._asdict(), **proxy._asdict()}
    values["upstreams"] = relay.upstreams or proxy.upstreams
    for key, value in values.items():
        if key not in ("given", "warnings"):
            origin = settings.given.get(key, "default")
            given = key in settings.given
            line = f"{key} = {printed(key, value, given)}  ({origin})"
            # What came as bytes of no encoding is shown, and cannot be printed.
            click.echo(line.encode("utf-8", "backslashreplace").decode())


def printed(key: str, value: object, given: bool) -> str:
    if key == "nginx_worker_processes" and not given:
        return "this process alone"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        value = ", ".join(_without_secrets(key, str(entry)) for entry in value)
    return _EMPTY.get(key, "auto") if value in (None, "") else _without_secrets(key, str(value))


def _without_secrets(key: str, entry: str) -> str:
    # A private key has no place on a screen or in a bug report, in whatever form it was given.
    if "-----BEGIN" in entry:
        return "(PEM text)"
    # Base64 of DER begins with an M, so what begins with a slash is a path of any length.
    is_text = len(entry) >= _SHORTEST_KEY and not entry.startswith("/")
    return "(neither PEM nor a path)" if is_text and key in ("ssl_cert", "ssl_cert_key") else entry
