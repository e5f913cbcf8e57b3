"""A little of each scenario of processes.py, with wide bounds, for the machine may be busy.

benchmarks/faults_processes.py has the whole of them, and the real bounds.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.faults import processes as faults
from tests.faults.processes import ANSWERED, LOST, PREAMBLE, REFUSED, Load, served
from tests.lab import LOOPS

WORKERS = ("--workers", "2")
BEGINNING_SECONDS = 0.5
FEW_FILES, HELD, ASKED = 64, 120, 20

each_loop = pytest.mark.parametrize("loop", LOOPS)
each_socket = pytest.mark.parametrize("flags", ["", "reuseport"], ids=["one socket", "reuseport"])


@pytest.mark.parametrize(
    ("flags", "args", "keep_alive"),
    [
        ("", WORKERS, False),
        ("", WORKERS, True),
        ("reuseport", WORKERS, False),
        ("proxy_protocol", WORKERS, False),
        ("", (), False),
    ],
    ids=["workers", "keep-alive", "reuseport", "proxy_protocol", "alone"],
)
@each_loop
def test_the_end_loses_no_request(flags: str, args: tuple[str, ...], keep_alive: bool, loop: str) -> None:
    preamble = PREAMBLE if flags == "proxy_protocol" else b""
    with served(flags, *args, "--loop", loop) as server:
        load = Load(server.port, keep_alive=keep_alive, preamble=preamble)
        code, _ = asyncio.run(faults.end(server, load, before=BEGINNING_SECONDS, after=0.1))
    assert code == 0
    assert load.count(*LOST) == 0
    assert load.count(ANSWERED) > 0
    assert load.count(REFUSED) > 0, "the load was to outlast the server"


@pytest.mark.parametrize(
    ("flags", "keep_alive"), [("", True), ("reuseport", False)], ids=["keep-alive", "reuseport"]
)
def test_renewals_lose_no_request(flags: str, keep_alive: bool) -> None:
    times = 2
    with served(flags, *WORKERS) as server:
        load = Load(server.port, keep_alive=keep_alive)
        answering, by_old = asyncio.run(faults.renew(server, load, 2, times, BEGINNING_SECONDS))
    assert load.count(*LOST, REFUSED) == 0
    assert answering == 2 + 2 * times
    assert by_old == 0


@each_socket
def test_a_worker_that_is_killed_loses_its_own_requests_only(flags: str) -> None:
    with served(flags, *WORKERS) as server:
        load = Load(server.port, "/named")
        kills = asyncio.run(faults.kill(server, load, times=2, seconds=BEGINNING_SECONDS))
    assert load.count(REFUSED) == 0
    assert load.count(*LOST) > 0, "somebody was to be in the middle of an answer"
    assert faults.lost_by_others(load, kills) == 0


@each_loop
def test_a_burst_waits_for_a_loop_that_is_busy(loop: str) -> None:
    with served("backlog=4096", "--workers", "1", "--loop", loop) as server:
        figures = faults.burst(server.port, 500)
    assert figures["refused or reset while connecting"] == 0
    assert figures["answered"] == 500


@pytest.mark.parametrize(
    ("flags", "preamble"), [("", b""), ("proxy_protocol", PREAMBLE)], ids=["plain", "proxy_protocol"]
)
@each_loop
def test_a_server_without_descriptors_serves_what_it_has(flags: str, preamble: bytes, loop: str) -> None:
    with served(flags, "--loop", loop, files=FEW_FILES) as server:
        figures = faults.run_short(server, preamble, HELD, 1.0, ASKED)
        assert "Too many open files" in server.stderr
    assert figures["answered on open ones"] == ASKED
    assert 1 <= figures["log lines"] <= 20
    assert figures["share of a core"] < 0.5
