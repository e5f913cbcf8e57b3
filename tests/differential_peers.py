"""The two servers of the differential test, which answer every request with how they saw it."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kongrealip import RealIPMiddleware, Settings
from kongrealip.config import Listen
from kongrealip.middleware.asgi import resolution_of
from kongrealip.preamble import Preamble, first_tlvs
from kongrealip.realip import CONNECTION_KEY
from kongrealip.realip.networks import UNIX
from kongrealip.server import tls
from kongrealip.server.asgi import Server
from kongrealip.server.sockets import Opened, bind, bind_unix
from tests.differential_cases import Config
from tests.nginx import binary, certificate
from tests.running import free_port, running, wait_until

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# Our server closes at the deadline what nginx closes at once. A request head has the same time and
# up to two seconds more, and is to be waited for like in nginx: see _SILENT_SECONDS.
_PREAMBLE_SECONDS = 2.1

#: One request as it was seen: nginx's variables, without those that do not exist.
View = dict[str, Any]
#: A port, or the path of a Unix socket.
Target = int | str

_SHOW_JS = """
const NAMES = ['remote_addr', 'remote_port', 'realip_remote_addr', 'realip_remote_port', 'scheme',
    'proxy_protocol_addr', 'proxy_protocol_port', 'proxy_protocol_server_addr', 'proxy_protocol_server_port'];
const TYPES = [];
for (let type = 0; type < 256; type++) {
    TYPES.push('0x' + (type < 16 ? '0' : '') + type.toString(16));
}
function tlvs(r, prefix) {
    const found = {};
    TYPES.forEach((name, type) => {
        const value = r.rawVariables[prefix + name];
        if (value !== undefined) {
            found[type] = value.toString('hex');
        }
    });
    return found;
}
function show(r) {
    const view = {};
    NAMES.forEach(name => { view[name] = r.variables[name]; });
    if (view.proxy_protocol_addr !== undefined) {
        view.tlvs = tlvs(r, 'proxy_protocol_tlv_');
        view.ssl = 32 in view.tlvs ? tlvs(r, 'proxy_protocol_tlv_ssl_') : {};
        view.ssl_verify = r.variables.proxy_protocol_tlv_ssl_verify;
    }
    r.return(200, JSON.stringify(view));
}
export default {show};
"""
_HTTP = """
daemon off; master_process off; pid {folder}/pid; error_log stderr alert;
events {{ worker_connections 4096; }}
http {{
    access_log off; underscores_in_headers on;
    # The size of the first read, and so of the longest preamble: our own limit. Header lines of
    # 7 KB go into the large buffers.
    client_header_buffer_size 4k; large_client_header_buffers 16 32k;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    ssl_certificate {pair}; ssl_certificate_key {pair};
    js_import main from {folder}/show.js;
{servers}
}}
"""


def server_block(config: Config, address: str) -> str:
    """The configuration as nginx reads it."""
    trusted = "".join(f"set_real_ip_from {entry}; " for entry in config.trusted_ips)
    recursive = "on" if config.recursive else "off"
    return (
        f"    server {{ listen {' '.join((address, *config.flags))}; {trusted}"
        f"real_ip_header {config.header}; real_ip_recursive {recursive}; "
        "location / { js_content main.show; } }"
    )


_reserved: list[socket.socket] = []


@cache
def _port(position: int) -> int:
    """A port for nginx, the same one for every batch: there are not enough for all configurations.

    It stays bound, to no effect on nginx, which sets SO_REUSEADDR as well. Whoever looks for a free
    port in the same way, such as another run of this test, finds that it is taken.
    """
    while True:
        port = free_port()
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind(("::", port))
        except OSError:
            sock.close()
            continue
        _reserved.append(sock)
        return port


@contextmanager
def nginx(configs: Sequence[Config]) -> Iterator[list[Target]]:
    """One nginx with a server block for each configuration; yields where each one listens."""
    with tempfile.TemporaryDirectory(prefix="kongrealip-") as folder:
        targets: list[Target] = [
            f"{folder}/{position}.sock" if config.host == UNIX else _port(position)
            for position, config in enumerate(configs)
        ]
        blocks = [
            server_block(config, f"unix:{target}" if config.host == UNIX else f"{config.host}:{target}")
            for config, target in zip(configs, targets, strict=True)
        ]
        Path(folder, "show.js").write_text(_SHOW_JS, encoding="ascii")
        conf = Path(folder, "nginx.conf")
        conf.write_text(
            _HTTP.format(folder=folder, pair=certificate(), servers="\n".join(blocks)), encoding="ascii"
        )
        with running([binary(), "-p", folder, "-c", conf, "-e", "stderr"], {}, []):
            # Written when all sockets are open. A port alone would tell nothing of the others.
            wait_until(Path(folder, "pid").exists, "nginx")
            yield targets


@contextmanager
def ours(configs: Sequence[Config]) -> Iterator[list[Target]]:
    """Our server on as many listeners, and behind each a middleware with its own settings."""
    apps: dict[object, ASGIApp] = {}

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError  # which tells the server that there is none
        await apps[scope["server"]](scope, receive, send)

    with tempfile.TemporaryDirectory(prefix="kongrealip-") as folder:
        sockets = [_open(config, f"{folder}/{position}.sock") for position, config in enumerate(configs)]
        targets = [_target(one.sock) for one in sockets]
        listens = tuple(one.listen for one in sockets)
        limits = Settings(client_header_timeout=_PREAMBLE_SECONDS, proxy_listen=listens)
        for config, target in zip(configs, targets, strict=True):
            app = RealIPMiddleware(show, settings(config))
            apps[_local_end(config, target)] = _behind_plain_uvicorn(app) if config.plain_uvicorn else app
        server = Server(dispatch, limits, sockets, {False: tls.context(limits)})
        thread = threading.Thread(target=server.run, name="ours")
        thread.start()
        try:
            yield targets
        finally:
            server.should_exit = True
            thread.join()


def _behind_plain_uvicorn(app: ASGIApp) -> ASGIApp:
    """Keep from a middleware what our server tells beyond uvicorn, whose protocols both have."""

    async def forgetful(scope: Scope, receive: Receive, send: Send) -> None:
        ip, port = scope["state"].pop(CONNECTION_KEY).peer
        scope["client"] = None if port is None else (ip, port)
        await app(scope, receive, send)

    return forgetful


def _open(config: Config, path: str) -> Opened:
    if config.host == UNIX:
        return Opened(bind_unix(path), Listen(f"{UNIX}{path}", 0, config.flags))
    listen = Listen(config.host, 0, config.flags)
    sock = bind(listen)[0]
    return Opened(sock, listen._replace(port=sock.getsockname()[1]))


def _target(sock: socket.socket) -> Target:
    name: str | tuple[str, int] = sock.getsockname()
    return name if isinstance(name, str) else name[1]


def _local_end(config: Config, target: Target) -> tuple[str, int | None]:
    """What a request of this configuration has for its server."""
    if isinstance(target, str):
        return target, None
    return {"[::1]": "::1", "[::]": "::ffff:127.0.0.1"}.get(config.host, config.host), target


def settings(config: Config) -> Settings:
    """By way of the environment, as an operator gives them."""
    return Settings.load(
        {
            "KONG_TRUSTED_IPS": ",".join(config.trusted_ips),
            "KONG_REAL_IP_HEADER": config.header,
            "KONG_REAL_IP_RECURSIVE": "on" if config.recursive else "off",
        }
    )


async def show(scope: Scope, receive: Receive, send: Send) -> None:
    """The application behind our server: answers with what nginx's script answers with."""
    body = json.dumps(view_of(scope)).encode("ascii")
    headers = [(b"content-length", str(len(body)).encode("ascii"))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def view_of(scope: Scope) -> View:
    resolution = resolution_of(scope)
    ip, port = scope["client"] or (UNIX, 0)
    # A failure here is a 500, and so a difference.
    assert (ip, port or None) == resolution.client
    view = {
        "remote_addr": ip,
        "remote_port": str(port or ""),
        "realip_remote_addr": resolution.peer.ip,
        "realip_remote_port": str(resolution.peer.port or ""),
        "scheme": scope["scheme"],
    }
    preamble = resolution.preamble
    return view if preamble is None or preamble.source_ip is None else view | _preamble_view(preamble)


def _preamble_view(preamble: Preamble) -> View:
    found = first_tlvs(preamble.tlv_area)
    ssl = found.get(0x20, b"")
    view = {
        "proxy_protocol_addr": preamble.source_ip,
        "proxy_protocol_port": str(preamble.source_port or ""),
        "proxy_protocol_server_addr": preamble.destination_ip,
        "proxy_protocol_server_port": str(preamble.destination_port or ""),
        "tlvs": _hexadecimal(found),
        "ssl": _hexadecimal(first_tlvs(ssl[5:])),
    }
    return view if len(ssl) < 5 else {**view, "ssl_verify": str(int.from_bytes(ssl[1:5], "big"))}


def _hexadecimal(tlvs: dict[int, bytes]) -> dict[str, str]:
    return {str(kind): value.hex() for kind, value in tlvs.items()}
