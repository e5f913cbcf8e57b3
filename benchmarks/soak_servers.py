"""What runs in the soak, and what it takes: memory, descriptors, threads, and lines of its logs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak_clients import TRUSTED
from benchmarks.soak_talks import HEADERS, HEADERS_TLS, PLAIN, RELAY, TLS
from tests.faults.processes import children
from tests.running import LOOPBACK, Program, clean_environ, free_port, running, wait_until

_ROOT = Path(__file__).parent.parent
_WORKERS = 2
# What uvloop opens with a process's first connection, to have one to give up when there are no more.
_RESERVE = "/dev/null"


class Taken(NamedTuple):
    """What a program takes with all its processes. Memory is in bytes.

    ``anonymous`` is its proportional share of what belongs to no file. ``pss`` has the files too, of
    which the share changes with everything else on the machine that has them open.
    """

    rss: int
    pss: int
    anonymous: int
    descriptors: int
    pipe_ends: int
    threads: int


class AccessLog:
    """Reads along. The first segment of each path is the client that is due."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answered = 0
        self.wrong = 0
        self._read = 0
        self._rest = b""

    def read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = self._rest + file.read()
            self._read = file.tell()
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            client, _, rest = line.partition(b" ")
            _, request, status, *_ = rest.split(b'"')
            self.answered += status.split()[0] in (b"200", b"101")
            self.wrong += request.split(b" ")[1].split(b"/")[1] != client


class Soaked(NamedTuple):
    """What runs, by name, and the ports of its listeners."""

    programs: Mapping[str, Program]
    status_ports: Mapping[str, int]
    ports: Mapping[str, int]
    logs: Sequence[AccessLog]

    def processes(self) -> dict[str, set[int]]:
        return {name: {one.pid, *children(one.pid)} for name, one in self.programs.items()}

    def tracebacks(self) -> int:
        """In all that was written, of which a Program shows the beginning only."""
        return sum(
            Path(f"/proc/{one.pid}/fd/2").read_bytes().count(b"Traceback") for one in self.programs.values()
        )


@contextmanager
def soaked(loop: str) -> Iterator[Soaked]:
    """A server of two workers for preambles with a relay in front, and one alone for X-Forwarded-For."""
    ports = {name: free_port() for name in (PLAIN, TLS, RELAY, HEADERS, HEADERS_TLS)}
    status = {name: free_port() for name in ("preambles", "headers", "relay")}
    at = {name: f"{LOOPBACK}:{port}" for name, port in ports.items()}
    listens = {
        "preambles": f"{at[PLAIN]} proxy_protocol, {at[TLS]} ssl http2 proxy_protocol",
        "headers": f"{at[HEADERS]}, {at[HEADERS_TLS]} ssl http2",
        "relay": f"{at[RELAY]} proxy_protocol",
    }
    commands = {
        "preambles": ("serve", "benchmarks.soak_app:app", "--app-dir", _ROOT, "--workers", str(_WORKERS)),
        "headers": ("serve",),
        "relay": ("relay", "--send-proxy", "v2", "--upstream", at[PLAIN]),
    }
    rules = {
        "preambles": {"KONG_REAL_IP_HEADER": "proxy_protocol"},
        "headers": {"KONG_REAL_IP_HEADER": "X-Forwarded-For", "KONG_REAL_IP_RECURSIVE": "on"},
        "relay": {},
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        programs = {}
        for name, words in commands.items():
            environ = {
                **clean_environ(),
                **rules[name],
                "KONG_TRUSTED_IPS": TRUSTED[name],
                "KONG_STATUS_LISTEN": f"{LOOPBACK}:{status[name]}",
                "KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT": "10s",
                "KONG_STREAM_LISTEN" if name == "relay" else "KONG_PROXY_LISTEN": listens[name],
                "KONG_PROXY_ACCESS_LOG": str(folder / name),
            }
            command = [sys.executable, "-m", "kongrealip", *words, "--loop", loop]
            programs[name] = stack.enter_context(running(command, environ, [status[name]]))
        # With workers the port is open before anybody is there who serves it.
        wait_until(lambda: programs["preambles"].stderr.count("startup complete") == _WORKERS, "the workers")
        yield Soaked(programs, status, ports, [AccessLog(folder / name) for name in ("preambles", "headers")])


def taken(pids: Iterable[int]) -> Taken:
    memory = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    targets = [target for pid in pids for target in _descriptors(pid)]
    pipe_ends = sum(target.startswith("pipe:") for target in targets)
    rss, pss, anonymous = (
        sum(_bytes(text, field) for text in memory) for field in ("Rss", "Pss", "Pss_Anon")
    )
    return Taken(
        rss,
        pss,
        anonymous,
        descriptors=len(targets) - pipe_ends - targets.count(_RESERVE),
        pipe_ends=pipe_ends,
        threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
    )


def _bytes(rollup: str, field: str) -> int:
    return int(rollup.split(f"\n{field}:")[1].split()[0]) * 1024


def _descriptors(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed by now.
        with suppress(OSError):
            yield os.readlink(descriptor)
