"""Every public vector of Kong's forwarded values, as bytes over real sockets to the built-in application."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests import golden
from tests.lab import LOOPS, Lab
from tests.test_forwarded_vectors import LISTEN_PORT, VECTORS, settings_of
from tests.test_forwarded_vectors import wanted as wanted_of_the_core
from tests.test_wire_vectors import listener_key, play

PATIENCE = 10.0
TOPICS = sorted({vector["topic"] for vector in VECTORS})
# Where uvicorn's parser gives other bytes than nginx's (docs/parity.md). With nginx's
# they count in tests/test_forwarded_vectors.py.
HTTP_DIFFERENCES = {
    "tabs round a value are taken away": (
        "fwd_proto-67732ac9cb89 fwd_random-002dbd7d796a fwd_random-298472019981 fwd_random-5f38ed5b4aed fwd_random-9cb92795118a"
        " fwd_random-bded8f117200 fwd_random-d5e76a215a75 fwd_random-e1e24522e535"
    ),
    "400 for a target that is not ASCII": (
        "fwd_path-19554d3c6edf fwd_path-b9bc03be5a52 fwd_path-da060ac57a16 fwd_path-fc1d09382710"
    ),
    "no fragment in a target": "fwd_path-2e8ada222268 fwd_path-65a9471cf2c2 fwd_path-f2aa882d3008",
}
DIFFERING = {name for names in HTTP_DIFFERENCES.values() for name in names.split()}


@pytest.fixture(scope="module", params=LOOPS)
def targets(request: pytest.FixtureRequest) -> Iterator[dict[str, int | str]]:
    lab = Lab()
    targets: dict[str, int | str] = {}
    for vector in {listener_key(vector): vector for vector in VECTORS}.values():
        config = vector["config"]
        flags = ("ssl",) * bool(config.get("ssl")) + ("proxy_protocol",) * config["proxy_protocol"]
        root_path = config.get("route_prefix", "")
        key = listener_key(vector)
        kind = json.loads(key)[1]
        if kind == "unix":
            targets[key] = lab.add_unix(settings_of(vector, 0), flags, root_path)
        else:
            host = {"v4": "127.0.0.1", "v6": "[::1]", "mapped": "[::ffff:127.0.0.1]"}[kind]
            make = partial(settings_of, vector)
            targets[key] = lab.add(make, host, (*flags, "ipv6only=off"), root_path)
    with lab.running(request.param):
        yield targets


@pytest.mark.parametrize("topic", TOPICS)
async def test_topic(topic: str, targets: dict[str, int | str]) -> None:
    gate = asyncio.Semaphore(40)
    found: dict[str, Any] = defaultdict(list)

    async def check(vector: golden.Vector) -> None:
        async with gate:
            answers, local_port = await asyncio.wait_for(
                play(vector, targets[listener_key(vector)], 1), PATIENCE
            )
        status, body = answers[0] if answers else (0, {})
        if status != 200:
            found[vector["id"]].append(status)
            return
        seen = view_of(body, targets[listener_key(vector)], local_port)
        expect = wanted(vector)
        if seen != expect:
            found[vector["id"]].append(difference_of(seen, expect))

    vectors = [vector for vector in VECTORS if vector["topic"] == topic]
    await asyncio.gather(*map(check, vectors))
    differing = {name: found.pop(name, None) for vector in vectors if (name := vector["id"]) in DIFFERING}
    assert found == {}
    assert None not in differing.values(), "what does not differ any more"


def view_of(body: dict[str, Any], target: int | str, local_port: str) -> dict[str, Any]:
    """The application's answer by the vectors' names."""
    forwarded = body["forwarded"]
    passed_on = [[name, value] for name, value in body["headers"] if name.startswith(("x_f", "x_r"))]
    lines = [[name.lower(), value] for name, value in body["upstream_headers"].items()]

    def port(number: Any) -> Any:
        return "$peer_port" if str(number) == local_port else LISTEN_PORT if number == target else number

    return {
        "upstream_headers": sorted(
            [name, str(LISTEN_PORT) if value == str(target) else value] for name, value in lines + passed_on
        ),
        "getters": {
            **{f"forwarded_{name}": value for name, value in forwarded.items()},
            "forwarded_port": port(forwarded["port"]),
            "client_forwarded_ip": body["client_ip"],
            "client_forwarded_port": port(body["client_port"]),
            "client_ip": body["peer_ip"],
            "client_port": port(body["peer_port"]),
        },
    }


def difference_of(seen: dict[str, Any], expect: dict[str, Any]) -> dict[str, Any]:
    getters, wanted = seen["getters"], expect["getters"]
    found = {name: (getters[name], wanted[name]) for name in getters if getters[name] != wanted[name]}
    if seen["upstream_headers"] != expect["upstream_headers"]:
        found["upstream_headers"] = (seen["upstream_headers"], expect["upstream_headers"])
    return found


def wanted(vector: golden.Vector) -> dict[str, Any]:
    expect = wanted_of_the_core(vector)
    for name in ("scheme", "host", "port", "path"):
        del expect["getters"][name]
    if vector["config"].get("route_prefix") == "" and expect["getters"]["forwarded_prefix"] == "":
        # ASGI has no prefix that is there and empty.
        expect["getters"]["forwarded_prefix"] = None
    return expect
