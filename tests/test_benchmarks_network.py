"""The benchmarks of servers and relays do what they say: everybody starts, is right, and is counted whole."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import contest, cost, http2, load, proxy, relay, relay_load, server, servers, view
from benchmarks.comparison import OURS, Case, read
from benchmarks.servers import HAPROXY, UVICORN
from tests.running import clean_environ, free_port, running

TINY = contest.Extent(starts=1, rounds=2, share=0.1)


def check(case: Case) -> None:
    """Well-formed: every side in every round, each with costs, and ours beside them."""
    assert OURS in case.sides
    assert {len(samples) for samples in case.sides.values()} == {2}
    for side, samples in case.sides.items():
        assert all(number > 0 for sample in samples for number in sample)
        assert all(math.isfinite(number) for number in case.ratio(side))
    assert {*case.bars, *case.wall_bars, *case.notes} <= set(case.sides) - {OURS}


def test_servers() -> None:
    """Before they are measured all have named the client, and each answer is looked at."""
    cases = list(server.cases(0.01))
    assert [len(case.sides) for case in cases] == [7, 7, 7, 4, 7, 7, 6]
    for case in cases:
        check(case)
        assert UVICORN in case.bars


def test_relays() -> None:
    """Before they are measured all have told the upstream of the client."""
    cases = list(relay.cases(0.01))
    assert [len(case.sides) for case in cases] == [6, 6, 6, 5, 6]
    for case in cases:
        check(case)


def test_where_splicing_pays() -> None:
    line = relay.line(relay.STARTS).only(["of 64 KB"])
    [case] = contest.cases_of("relay", [line], TINY)
    assert list(case.sides) == [OURS, "copied", "spliced", HAPROXY, relay.SPLICING]
    check(case)


@pytest.mark.parametrize(
    "contests", [[http2.contest()], view.contests(), [proxy.contest()]], ids=["http2", "view", "proxy"]
)
def test_others_beside_the_suite(contests: list[contest.Contest]) -> None:
    for case in contest.cases_of("other", contests, TINY):
        check(case)


def test_the_view_read_by_the_middleware_alone(capsys: pytest.CaptureFixture[str]) -> None:
    view.of_the_middleware(1)
    assert capsys.readouterr().out.count(" ns with\n") == 2


def test_a_sidecars_memory(capsys: pytest.CaptureFixture[str]) -> None:
    proxy.stream(64 << 16)
    assert capsys.readouterr().out.count("bar 8 MB more") == 2


def test_extents() -> None:
    whole = contest.Extent(starts=8, rounds=12)
    assert whole.scaled(1) == (8, 12, 1)
    assert whole.scaled(2) == (16, 12, 1)
    assert whole.scaled(0.5) == (4, 12, 1)
    assert whole.scaled(0.1) == (1, 10, 1)
    assert whole.scaled(0.01) == (1, 2, 0.1)


def test_what_the_command_line_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "samples.json"
    line = ["--effort", "0.01", "--rounds", "3", "--only", "deferred", "--beside", "UVICORN,nobody"]
    options = contest.parser_of(None).parse_args([*line, "--json", str(path)])
    contest.run("server", server.contests(), server.WHOLE, options)
    [case] = read(path)
    assert "deferred" in case.name
    assert list(case.sides) == [OURS, UVICORN]
    assert len(case.sides[OURS]) == 3
    assert case.name in capsys.readouterr().out


# Who does not do the work is not measured.


@pytest.fixture
def uvicorn(tmp_path: Path) -> Iterator[tuple[servers.Job, int]]:
    job = servers.Job(tmp_path, free_port())
    with servers.uvicorn(job) as program:
        yield job, program.pid


def test_a_server_that_takes_somebody_else_for_the_client(uvicorn: tuple[servers.Job, int]) -> None:
    job, pid = uvicorn
    assert server.checked(UVICORN, job, pid).pids == [pid]
    with pytest.raises(SystemExit, match=r"nginx takes '127\.0\.0\.1' for the client"):
        server.checked(servers.NGINX, job._replace(networks=[servers.BALANCERS]), pid)


def test_a_server_that_gives_another_answer() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ConnectionResetError, match="400 Bad Request"):
            load.expect_answer(ours)


def test_a_relay_that_tells_of_nobody(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.relay_load", str(port), "--preamble"]
    with running(command, clean_environ(), [port]) as upstream:
        # Nobody is between, so that the upstream gets what the client itself sends.
        job = relay.Job(tmp_path, port, upstream, accepts=True, sends=True)
        relay.check_preamble("nobody", job)
        with pytest.raises(SystemExit, match="nobody sends ''"):
            relay.check_preamble("nobody", job._replace(accepts=False))


def test_haproxy_that_splices_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_SPLICE", "global\n    stats socket unix@stats\n")
    starts = {relay.SPLICING: relay.haproxy_in_bulk}
    with (
        pytest.raises(SystemExit, match="HAProxy splicing spliced 0% only"),
        relay.started(starts, [relay.SPLICING]) as sides,
    ):
        relay_load.round_trips(32, sides[relay.SPLICING], 64)


@pytest.mark.parametrize("preamble", [load.PREAMBLE_V1, load.PREAMBLE_V2])
def test_whom_a_preamble_names(preamble: bytes) -> None:
    assert relay_load.names_client(preamble, load.CLIENT, load.CLIENT_PORT)
    assert not relay_load.names_client(preamble, load.CLIENT, load.CLIENT_PORT + 1)
    assert not relay_load.names_client(preamble, "203.0.113.8", load.CLIENT_PORT)


def test_every_client_is_new() -> None:
    requests = load.new_clients()
    assert len({next(requests) for _ in range(1 << 17)}) == 1 << 17


# What is counted.

_BUSY = """
import subprocess, sys, threading, time

def work():
    while time.thread_time() < 0.05:
        pass

if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(time.process_time(), flush=True)
sys.stdin.read()
"""


def test_all_processes_and_their_ended_threads_count() -> None:
    command = [sys.executable, "-c", _BUSY, _BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        told = [float(process.stdout.readline()) for _ in range(2)]
        pids = cost.tree(process.pid)
        counted = cost.cpu_seconds(pids)
        process.stdin.close()
    assert (pids[0], len(pids)) == (process.pid, 2)
    assert counted >= sum(told) >= 0.1


def test_who_does_not_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_PATIENCE_SECONDS", 1)
    with pytest.raises(TimeoutError, match="does not come to its end"):
        cost.cost_of([], lambda: exec("while True: pass"), 1)
