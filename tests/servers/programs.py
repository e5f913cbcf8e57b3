"""The servers as they are started, and a client that speaks to ports and to Unix sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    Headers,
    Program,
    Seen,
    clean_environ,
    connect,
    free_port,
    running,
    wait_until,
)

ROOT = Path(__file__).parent.parent.parent
#: A port, or the path of a Unix socket.
Where = int | Path
CONFIGURED = {
    "KONG_TRUSTED_IPS": LOOPBACK,
    "KONG_REAL_IP_HEADER": "X-Forwarded-For",
    "KONG_REAL_IP_RECURSIVE": "on",
}
BY_PREAMBLE = {"KONG_TRUSTED_IPS": LOOPBACK, "KONG_REAL_IP_HEADER": "proxy_protocol"}
_WERKZEUG = "import tests.servers.application as it, werkzeug.serving as s; s.run_simple({!r}, {}, it.wsgi)"
_RUNSERVER = """
from django.conf import settings
from django.core.management import execute_from_command_line
settings.configure(DEBUG=True, WSGI_APPLICATION="tests.servers.application.wsgi")
execute_from_command_line(["", "runserver", "--noreload", "--skip-checks", "{}:{}"])
"""


def _gunicorn(worker: str, app: str) -> Callable[[Where], list[str]]:
    def command(where: Where) -> list[str]:
        bind = f"{LOOPBACK}:{where}" if isinstance(where, int) else f"unix:{where}"
        return ["-m", "gunicorn", "--no-control-socket", "-k", worker, "-b", bind, _target(app)]

    return command


def _hypercorn(app: str) -> Callable[[Where], list[str]]:
    def command(where: Where) -> list[str]:
        bind = f"{LOOPBACK}:{where}" if isinstance(where, int) else f"unix:{where}"
        return ["-m", "hypercorn", "-b", bind, _target(app)]

    return command


def _with_options(module: str, *options: str, app: str) -> Callable[[Where], list[str]]:
    def command(where: Where) -> list[str]:
        place = ["--port", str(where)] if isinstance(where, int) else ["--uds", str(where)]
        return ["-m", module, *options, *place, _target(app)]

    return command


def _target(app: str) -> str:
    return f"tests.servers.application:{app}"


SERVERS: dict[str, Callable[[Where], list[str]]] = {
    "uvicorn": _with_options("uvicorn", "--no-proxy-headers", app="asgi"),
    "hypercorn": _hypercorn("asgi"),
    "granian": _with_options("granian", "--interface", "asgi", app="asgi"),
    "gunicorn, asgi": _gunicorn("asgi", "asgi"),
    "gunicorn, sync": _gunicorn("sync", "wsgi"),
    "gunicorn, gthread": _gunicorn("gthread", "wsgi"),
    "werkzeug": lambda where: ["-c", _WERKZEUG.format(LOOPBACK, where)],
    "runserver": lambda where: ["-c", _RUNSERVER.format(LOOPBACK, where)],
    "hypercorn, WSGI": _hypercorn("wsgi"),
    "granian, WSGI": _with_options("granian", "--interface", "wsgi", app="wsgi"),
}


@contextmanager
def serving(server: str, environ: dict[str, str], *options: str) -> Iterator[Program]:
    """A server on a port of its own."""
    port = free_port()
    with running(_command(server, port, options), clean_environ() | environ, [port], ROOT) as program:
        yield program


@contextmanager
def serving_unix(server: str, path: Path, environ: dict[str, str], *options: str) -> Iterator[None]:
    """A server on a Unix socket."""
    with running(_command(server, path, options), clean_environ() | environ, [], ROOT):
        wait_until(lambda: _takes_connections(path), f"a listener at {path}")
        yield


def _command(server: str, where: Where, options: tuple[str, ...]) -> list[str]:
    first, name, *rest = SERVERS[server](where)
    return [sys.executable, first, name, *options, *rest]


def _takes_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Refused(NamedTuple):
    """An answer that is not the application's; a status of None where the connection is closed."""

    status: int | None


def ask(sock: socket.socket, headers: Headers = (), path: str = "/") -> Seen | Refused:
    """One request on a connection that may be used again."""
    asking = http.client.HTTPConnection(LOOPBACK)
    asking.sock = sock
    asking.auto_open = 0
    try:
        asking.putrequest("GET", path, skip_accept_encoding=True)
        for name, value in headers:
            asking.putheader(name, value)
        asking.endheaders()
        response = asking.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return Refused(None)
    seen: Seen | Refused = json.loads(body) if response.status == 200 else Refused(response.status)
    return seen


def fetch(
    port: int, headers: Headers = (), *, source_ip: str = LOOPBACK, preamble: bytes = b""
) -> Seen | Refused:
    """One request from the balancer, unless from somebody else, on a connection of its own."""
    with connect(port, source_ip) as sock:
        # Who does not want a preamble may have closed while it is written.
        with contextlib.suppress(OSError):
            sock.sendall(preamble)
        return ask(sock, headers)


def fetch_unix(path: Path, headers: Headers = (), preamble: bytes = b"") -> Seen | Refused:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(8)
        sock.connect(str(path))
        sock.sendall(preamble)
        return ask(sock, headers)


def where_from(seen: Seen | Refused) -> tuple[str, str]:
    """The decided client, and why."""
    assert not isinstance(seen, Refused), seen
    return seen["client"], seen["source"]


NOBODY_NAMED = (CLIENT_IP, "peer")
