"""Servers that answer two bytes, each as its documents say: one worker, one thread, no access log.

All are given the same job. Who reads preambles takes the client from there or, with networks,
from X-Forwarded-For; who cannot is bare. At naming.PATH each tells whom it takes for the client.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from benchmarks import naming
from benchmarks.comparison import OURS
from benchmarks.load import HOST
from kongrealip.server.tls import self_signed
from tests.balancers import programs
from tests.running import Program, clean_environ, running

UVICORN, PROXY_HEADERS, GUNICORN, GRANIAN = "uvicorn", "uvicorn ProxyHeaders", "gunicorn", "granian"
NGINX, HAPROXY, CADDY = "nginx", "HAProxy", "Caddy"
BALANCERS = "127.0.0.0/8"
_ROOT = Path(__file__).parent.parent
_APPLICATION = "benchmarks.naming:app"


class Pair(NamedTuple):
    """PEM files: a certificate, its key, and both in one for who wants them so."""

    certificate: Path
    key: Path
    both: Path


class Job(NamedTuple):
    """What a server is to do, and a folder for its files. Networks are trusted, BALANCERS being one."""

    folder: Path
    port: int
    pair: Pair | None = None
    is_deferred: bool = False
    networks: Sequence[str] = ()

    @property
    def by_preamble(self) -> bool:
        return not self.networks

    @property
    def trusted(self) -> Sequence[str]:
        return self.networks or [BALANCERS]


Start = Callable[[Job], AbstractContextManager[Program]]


def certificate_pair(folder: Path) -> Pair:
    pair = Pair(folder / "certificate.pem", folder / "key.pem", folder / "both.pem")
    certificate, key = self_signed()
    for path, text in zip(pair, (certificate, key, certificate + key), strict=True):
        path.write_text(text)
    return pair


def python(
    ports: Sequence[int], *arguments: str | Path, environ: Mapping[str, str] = {}
) -> AbstractContextManager[Program]:
    """A module of Python's, with these arguments."""
    command = [sys.executable, "-m", *arguments]
    return running(command, {**clean_environ(), **environ}, ports, _ROOT)


def kongrealip(job: Job, application: str = _APPLICATION) -> AbstractContextManager[Program]:
    flags = " proxy_protocol" * job.by_preamble + " ssl" * bool(job.pair) + " deferred" * job.is_deferred
    environ = {
        "KONG_PROXY_LISTEN": f"{HOST}:{job.port}{flags}",
        "KONG_TRUSTED_IPS": ",".join(job.trusted),
        "KONG_REAL_IP_HEADER": "proxy_protocol" if job.by_preamble else "X-Forwarded-For",
        "KONG_REAL_IP_RECURSIVE": "on",
    }
    if job.pair:
        environ |= {"KONG_SSL_CERT": str(job.pair.certificate), "KONG_SSL_CERT_KEY": str(job.pair.key)}
    return python([job.port], "kongrealip", "serve", application, "--no-access-log", environ=environ)


def uvicorn(job: Job, *options: str) -> AbstractContextManager[Program]:
    """Bare, unless the options say otherwise."""
    arguments: list[str | Path] = ["--port", str(job.port), "--no-access-log", "--no-proxy-headers"]
    if job.pair:
        arguments += ["--ssl-certfile", job.pair.certificate, "--ssl-keyfile", job.pair.key]
    return python([job.port], "uvicorn", _APPLICATION, *arguments, *options)


def uvicorn_with_proxy_headers(job: Job) -> AbstractContextManager[Program]:
    return uvicorn(job, "--proxy-headers", "--forwarded-allow-ips", ",".join(job.trusted))


def gunicorn(job: Job) -> AbstractContextManager[Program]:
    """With its parser in Python: the one in C (gunicorn_h1c) is not used where preambles are read."""
    options: list[str | Path] = ["--proxy-protocol", "auto", "--proxy-allow-from", BALANCERS]
    if job.pair:
        # With TLS it would look for a preamble inside of the encryption, where no balancer writes it.
        options = ["--certfile", job.pair.certificate, "--keyfile", job.pair.key]
    place = ["--bind", f"{HOST}:{job.port}", "--worker-class", "asgi", "--no-control-socket"]
    return python([job.port], "gunicorn", *place, *options, _APPLICATION)


def granian(job: Job) -> AbstractContextManager[Program]:
    options: list[str | Path] = ["--interface", "asgi", "--port", str(job.port)]
    if job.pair:
        options += ["--ssl-certificate", job.pair.certificate, "--ssl-keyfile", job.pair.key]
    return python([job.port], "granian", *options, _APPLICATION)


def nginx(job: Job) -> AbstractContextManager[Program]:
    flags = " proxy_protocol" * job.by_preamble + " ssl" * bool(job.pair) + " deferred" * job.is_deferred
    pair = f"ssl_certificate {job.pair.certificate}; ssl_certificate_key {job.pair.key};" if job.pair else ""
    trusted = " ".join(f"set_real_ip_from {network};" for network in job.trusted)
    config = f"""
http {{
    access_log off;
    default_type text/plain;
    {trusted}
    real_ip_header {"proxy_protocol" if job.by_preamble else "X-Forwarded-For"};
    real_ip_recursive on;
    server {{
        listen {HOST}:{job.port}{flags};
        {pair}
        location / {{ return 200 "ok"; }}
        location = {naming.PATH} {{ return 200 $remote_addr; }}
    }}
}}
"""
    return programs.nginx(job.folder, config, job.port)


def haproxy(job: Job) -> AbstractContextManager[Program]:
    """It does not walk past trusted hops, so it is given headers with one address alone."""
    flags = " accept-proxy" * job.by_preamble + " defer-accept" * job.is_deferred
    flags += f" ssl crt {job.pair.both}" if job.pair else ""
    (job.folder / "trusted").write_text("\n".join(job.trusted) + "\n")
    by_header = "http-request set-src hdr_ip(X-Forwarded-For,-1) if { src -f trusted }"
    config = f"""
listen http
    mode http
    bind {HOST}:{job.port}{flags}
    {"" if job.by_preamble else by_header}
    http-request return status 200 content-type text/plain lf-string %[src] if {{ path {naming.PATH} }}
    http-request return status 200 content-type text/plain string ok
"""
    return programs.haproxy(job.folder, config, job.port)


def caddy(job: Job) -> AbstractContextManager[Program]:
    preamble = f"listener_wrappers {{\n proxy_protocol {{\n allow {BALANCERS}\n }}\n tls\n }}"
    header = f"trusted_proxies static {' '.join(job.trusted)}\n trusted_proxies_strict"
    options = f"servers {{\n {preamble if job.by_preamble else header}\n }}\n"
    config = f"""
{"https" if job.pair else "http"}://:{job.port} {{
    bind {HOST}
    {f"tls {job.pair.certificate} {job.pair.key}" if job.pair else ""}
    respond {naming.PATH} {{client_ip}}
    respond "ok"
}}
"""
    return programs.caddy(job.folder, config, job.port, options=options)


STARTS: Mapping[str, Start] = {
    OURS: kongrealip,
    UVICORN: uvicorn,
    PROXY_HEADERS: uvicorn_with_proxy_headers,
    GUNICORN: gunicorn,
    GRANIAN: granian,
    NGINX: nginx,
    HAPROXY: haproxy,
    CADDY: caddy,
}


def reads_preambles(name: str, job: Job) -> bool:
    if name in (UVICORN, PROXY_HEADERS, GRANIAN) or not job.by_preamble:
        return False
    return name != GUNICORN or job.pair is None


def reads_headers(name: str, job: Job) -> bool:
    return not job.by_preamble and name not in (UVICORN, GUNICORN, GRANIAN)
