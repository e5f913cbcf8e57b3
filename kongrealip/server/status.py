"""KONG_STATUS_LISTEN: how the server is doing, for people and for Prometheus.

``/status`` and ``/status/ready`` are those of Kong's Status API as far as there is something to
tell. Whichever process answers, it answers for all of them: see :mod:`kongrealip.server.counters`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kongrealip.realip import CONNECTION_KEY
from kongrealip.server.counters import Counters, Key, Row

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_JSON = "application/json; charset=utf-8"
_NOT_INSTALLED = "metrics need one more package: pip install 'kongrealip[metrics]'\n"


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes
    allow: str | None = None


class _Family(NamedTuple):
    """A metric. ``key`` is the first word of its counters; the words behind it are the labels."""

    key: str
    name: str
    labels: tuple[str, ...]
    help: str


_FAMILIES = (
    _Family(
        "accepted",
        "kongrealip_connections_accepted_total",
        ("listener",),
        "Connections that were accepted.",
    ),
    _Family(
        "connections",
        "kongrealip_connections",
        ("listener", "state"),
        "Connections there are now: in their PROXY preamble, in their TLS handshake, or open.",
    ),
    _Family(
        "preambles",
        "kongrealip_preambles_total",
        ("version",),
        "PROXY preambles that were read, by version; none counts connections that were let in without one.",
    ),
    _Family(
        "refused",
        "kongrealip_preambles_refused_total",
        ("reason",),
        "Connections closed for a wrong preamble, or for want of a whole preamble or TLS handshake.",
    ),
    _Family(
        "tls_failures",
        "kongrealip_tls_failures_total",
        ("listener",),
        "TLS handshakes that failed.",
    ),
    _Family(
        "decisions",
        "kongrealip_decisions_total",
        ("source",),
        "Requests, or relayed connections, by where the client's address was taken from;"
        " peer is the connection itself.",
    ),
    _Family(
        "header_values_refused",
        "kongrealip_header_values_refused_total",
        (),
        "Requests of trusted peers with a header from which no address could be taken.",
    ),
    _Family(
        "requests",
        "kongrealip_requests_total",
        (),
        "Requests and WebSocket connections that reached the application.",
    ),
    _Family(
        "worker_restarts",
        "kongrealip_worker_restarts_total",
        (),
        "Workers that ended unasked and were replaced.",
    ),
    _Family(
        "relayed_bytes",
        "kongrealip_relayed_bytes_total",
        ("direction",),
        "Bytes that were relayed, without preambles and TLS.",
    ),
    _Family(
        "upstream_connections",
        "kongrealip_upstream_connections_total",
        ("upstream",),
        "Connections that an upstream has taken.",
    ),
    _Family(
        "upstream_failures",
        "kongrealip_upstream_failures_total",
        ("upstream",),
        "Connections that an upstream has refused or not taken in time.",
    ),
    _Family(
        "idle_closed",
        "kongrealip_idle_closed_total",
        (),
        "Relayed connections that were closed because nothing moved.",
    ),
)
_OF_THE_RELAY = ("relayed_bytes", "upstream_connections", "upstream_failures")


def status_app(counters: Counters, is_ready: Callable[[], bool], refresh: Callable[[], None]) -> ASGIApp:
    """An ASGI application, for HTTP alone. ``refresh`` lets this process write its gauges."""
    pages: dict[str, Callable[[], _Answer]] = {
        "/status": lambda: _json(200, _describe(_readable(counters.total()))),
        "/status/ready": lambda: _readiness(is_ready()),
        "/metrics": lambda: _metrics(_readable(counters.total())),
    }

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        page = pages.get(scope["path"])
        if page is None:
            found = _json(404, {"message": "Not found"})
        elif scope["method"] not in ("GET", "HEAD"):
            found = _json(405, {"message": "Method not allowed"})._replace(allow="GET, HEAD")
        else:
            refresh()
            found = page()
        await _send(found, send, with_body=scope["method"] != "HEAD")

    return answer


def write_open(row: Row, listeners: Sequence[str], connections: Iterable[object]) -> None:
    """Count the connections that have a protocol, by listener.

    ``connections`` is uvicorn's ``server_state.connections``. What knows of no listener, or of
    one that is not asked for, is passed over.
    """
    counts = dict.fromkeys(listeners, 0)
    for protocol in connections:
        state: Mapping[str, Any] = getattr(protocol, "app_state", {})
        connection = state.get(CONNECTION_KEY)
        if connection is not None and connection.listener in counts:
            counts[connection.listener] += 1
    for listener, count in counts.items():
        row.set("connections", listener, "open", value=count)


def _describe(total: Mapping[Key, int]) -> dict[str, Any]:
    """The numbers as JSON. ``server`` has the names of Kong, which are those of nginx's stub_status.

    ``connections_writing`` and ``connections_waiting`` are left out: nobody counts here which of
    the open connections have a request.
    """

    def of(*beginning: str) -> dict[str, int]:
        return {key[-1]: count for key, count in total.items() if key[:-1] == beginning}

    def in_state(state: str) -> int:
        return sum(count for key, count in total.items() if key[0] == "connections" and key[-1] == state)

    accepted, tls_failures = of("accepted"), of("tls_failures")
    reading = in_state("preamble") + in_state("handshake")
    # Only serve counts requests, and only relay what it passes on.
    requests = {"total_requests": total["requests",]} if ("requests",) in total else {}
    words = {key[0]: count for key, count in total.items() if len(key) == 1 and key[0] != "requests"}
    relayed = {kind: of(kind) for kind in _OF_THE_RELAY if of(kind)}
    return {
        "server": {
            "connections_accepted": sum(accepted.values()),
            # As in nginx, without those for which there was no room.
            "connections_handled": sum(accepted.values()) - total["refused", "crowded_out"],
            "connections_active": reading + in_state("open"),
            "connections_reading": reading,
            **requests,
        },
        "listeners": {
            listener: {
                "accepted": count,
                "connections": of("connections", listener),
                "tls_failures": tls_failures[listener],
            }
            for listener, count in accepted.items()
        },
        "preambles": {**of("preambles"), "refused": of("refused")},
        "decisions": of("decisions"),
        "tls_failures": sum(tls_failures.values()),
        **relayed,
        **words,
    }


def _readiness(ready: bool) -> _Answer:
    if ready:
        return _json(200, {"message": "ready"})
    return _json(503, {"message": "not ready: the server is starting or about to end"})


def _metrics(total: Mapping[Key, int]) -> _Answer:
    """Prometheus' text format. Its client is imported here, because few need it."""
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
        from prometheus_client.registry import Collector
    except ImportError:
        return _Answer(501, "text/plain; charset=utf-8", _NOT_INSTALLED.encode())

    class Numbers(Collector):
        def collect(self) -> Iterable[Metric]:
            for key, name, labels, text in _FAMILIES:
                make = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                family = make(name, text, labels=labels)
                for (kind, *values), count in total.items():
                    if kind == key:
                        family.add_metric(values, count)
                if family.samples:
                    yield family

    # Not the client's global registry: what an application counts for itself is its own affair.
    registry = CollectorRegistry()
    registry.register(Numbers())
    return _Answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))


def _readable(total: Mapping[Key, int]) -> dict[Key, int]:
    """A header's name or a socket's path may hold bytes that no encoding of an answer can."""
    return {
        tuple(word.encode("utf-8", "replace").decode() for word in key): count for key, count in total.items()
    }


def _json(status: int, value: object) -> _Answer:
    return _Answer(status, _JSON, json.dumps(value).encode())


async def _send(answer: _Answer, send: Send, with_body: bool) -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", b"%d" % len(answer.body)),
        (b"cache-control", b"no-store"),
    ]
    if answer.allow is not None:
        headers.append((b"allow", answer.allow.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})
