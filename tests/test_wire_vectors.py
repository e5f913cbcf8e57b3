"""Every public vector of nginx's realip and PROXY protocol, as bytes over real sockets.

The server answers with what it saw, and that must be what nginx saw. The HTTP message itself is
read by uvicorn; where its parser differs from nginx's the vector is listed in
``tests/differences.py`` and counts in ``tests/test_resolve_vectors.py`` with nginx's values.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from kongrealip import Settings
from kongrealip.realip import resolve
from tests import golden
from tests import test_resolve_vectors as core
from tests.differences import DIFFERENCES, HTTP_DIFFERENCES
from tests.lab import LOOPS, Lab, client_tls, connect
from tests.test_resolve_vectors import tlv, wanted

PAUSE = 0.06
PEER_PORTS = ("remote_port", "realip_remote_port")
PATIENCE = 10.0

Answer = tuple[int, dict[str, Any]]
VECTORS = [vector for vector in golden.load("realip") if wanted(vector) != "config_error"]
TOPICS = sorted({vector["topic"] for vector in VECTORS})


def listener_key(vector: golden.Vector) -> str:
    peer = vector["peer"]
    kind = "unix" if peer == "unix:" else "mapped" if peer.startswith("::ffff:") else "v6"
    return json.dumps([vector["config"], kind if ":" in peer else "v4"])


@pytest.fixture(scope="module", params=LOOPS)
def targets(request: pytest.FixtureRequest) -> Iterator[dict[str, int | str]]:
    """A server with a listener for each configuration and kind of peer."""
    lab = Lab()
    targets: dict[str, int | str] = {}
    for key in {listener_key(vector) for vector in VECTORS}:
        config, kind = json.loads(key)
        settings = Settings(
            trusted_ips=tuple(config["trusted_ips"]),
            real_ip_header=config["real_ip_header"],
            real_ip_recursive=config["real_ip_recursive"] == "on",
        )
        flags = ("ssl",) * bool(config.get("ssl")) + ("proxy_protocol",) * config["proxy_protocol"]
        if kind == "unix":
            targets[key] = lab.add_unix(settings, flags)
        else:
            host = {"v4": "127.0.0.1", "v6": "[::1]", "mapped": "[::ffff:127.0.0.1]"}[kind]
            targets[key] = lab.add(settings, host, (*flags, "ipv6only=off"))
    with lab.running(request.param):
        yield targets


@pytest.mark.parametrize("topic", TOPICS)
async def test_topic(topic: str, targets: dict[str, int | str]) -> None:
    gate = asyncio.Semaphore(40)
    found: dict[str, list[str]] = defaultdict(list)

    async def check(vector: golden.Vector) -> None:
        async with gate:
            problem = await problem_with(vector, targets[listener_key(vector)])
        if problem:
            found[vector["id"]].append(problem)

    vectors = [vector for vector in VECTORS if vector["topic"] == topic]
    await asyncio.gather(*map(check, vectors))
    assert found == {}


async def problem_with(vector: golden.Vector, target: int | str) -> str | None:
    """Play a vector; None where the answers are the wanted ones."""
    expected = golden.expectations(vector)
    difference = HTTP_DIFFERENCES.get(vector["id"]) or DIFFERENCES.get(vector["id"])
    answers, local_port = await asyncio.wait_for(play(vector, target, len(expected)), PATIENCE)
    if difference and difference.outcome != "ok":
        outcomes = {"closed": [], "waits": [], "status": [400]}
        statuses = [status for status, _ in answers[:1]]
        return None if statuses == outcomes[difference.outcome] else f"{difference} but {statuses}"
    if difference:
        expected = [by_the_rules(vector)]
    for expect, answer in zip(expected, [*answers, *[None] * len(expected)], strict=False):
        problem = compare(expect, answer, local_port)
        if problem:
            return problem
    return None


def by_the_rules(vector: golden.Vector) -> dict[str, Any]:
    """What must come out where nginx did not decide, from what uvicorn makes of the message."""
    preamble, data = core.split_preamble(vector)
    rules = core.rules_of(vector)
    headers = next(golden.requests(data))
    lines = [value.strip(b" \t") for name, value in headers if name == rules.header_name]
    resolution = resolve(rules, core.peer_of(vector), preamble, lines)
    scheme = "https" if vector["config"].get("ssl") else "http"
    return {"outcome": "ok", "scheme": scheme, **core.nginx_view(resolution)}


def compare(expect: dict[str, Any], answer: Answer | None, local_port: str) -> str | None:
    if answer is None:
        return None if expect["outcome"] == "closed" else f"closed, expected {expect}"
    status, body = answer
    if expect["outcome"] == "status":
        return None if status == expect["status"] else f"status {status}, expected {expect}"
    if expect["outcome"] != "ok" or status != 200:
        return f"status {status}, expected {expect}"
    seen = nginx_view(body, local_port)
    # The system may have given us the very port that the vector's client has.
    expect = {**expect, **{name: "$peer_port" for name in PEER_PORTS if expect[name] == local_port != ""}}
    differing: dict[str, object] = {key: (seen[key], expect[key]) for key in seen if seen[key] != expect[key]}
    found = {
        int(kind, 16): bytes.fromhex(value)
        for kind, value in (body["preamble"] or {"tlvs": {}})["tlvs"].items()
    }
    for name, value in expect.get("tlv", {}).items():
        if tlv(found, name) != bytes.fromhex(value):
            differing[name] = (tlv(found, name), value)
    return f"saw, expected: {differing}" if differing else None


def nginx_view(body: dict[str, Any], local_port: str) -> dict[str, str | None]:
    """The application's answer as nginx's variables."""
    preamble = body["preamble"] or dict.fromkeys(
        ("source_ip", "source_port", "destination_ip", "destination_port")
    )
    known = preamble["source_ip"] is not None

    def port(number: int | None) -> str:
        return "$peer_port" if str(number) == local_port else str(number or "")

    return {
        "remote_addr": body["client_ip"],
        "remote_port": port(body["client_port"]),
        "realip_remote_addr": body["peer_ip"],
        "realip_remote_port": port(body["peer_port"]),
        "proxy_protocol_addr": preamble["source_ip"],
        "proxy_protocol_port": str(preamble["source_port"] or "") if known else None,
        "proxy_protocol_server_addr": preamble["destination_ip"],
        "proxy_protocol_server_port": str(preamble["destination_port"] or "") if known else None,
        "scheme": body["scheme"],
    }


async def play(vector: golden.Vector, target: int | str, count: int) -> tuple[list[Answer], str]:
    """Send a vector's segments and read up to ``count`` answers; none where it was closed."""
    reader, writer = await connect(target, vector["peer"])
    name = writer.get_extra_info("sockname")
    local_port = str(name[1]) if isinstance(name, tuple) else ""
    answers: list[Answer] = []
    try:
        await send(writer, golden.segments(vector))
        if vector.get("tls_segments"):
            if vector.get("tls_delay"):
                await asyncio.sleep(PAUSE)
            await writer.start_tls(client_tls())
            await send(writer, golden.segments(vector, "tls_segments"))
        while len(answers) < count:
            answers.append(await read_answer(reader))
    except (asyncio.IncompleteReadError, OSError):
        pass  # closed: what came before it counts
    finally:
        writer.transport.abort()
    return answers, local_port


async def send(writer: asyncio.StreamWriter, segments: list[bytes]) -> None:
    for position, segment in enumerate(segments):
        if position:
            await asyncio.sleep(PAUSE)
        writer.write(segment)
        await writer.drain()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    return status, json.loads(body) if status == 200 else {}
