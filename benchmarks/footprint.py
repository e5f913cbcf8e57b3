"""What it costs to be there: importing the middleware, starting a server, and the memory it holds.

A server is started anew in every round, and asked once; then a thousand times more. Wall clock of a
start is known to the 20 milliseconds in which its port is tried.

    python -m benchmarks.footprint [--effort 0.2]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import naming
from benchmarks.comparison import OURS, Case, Sample, less, main, measure
from benchmarks.cost import LOAD_CORE, SERVER_CORE, cpu_seconds, on_core, tree
from benchmarks.load import CLIENT, HOST, Side, keep_alive, named_client
from benchmarks.servers import (
    BALANCERS,
    CADDY,
    GRANIAN,
    GUNICORN,
    HAPROXY,
    NGINX,
    STARTS,
    UVICORN,
    Job,
    python,
)
from tests.running import Program, free_port

IMPORTS = {
    OURS: "from kongrealip import RealIPMiddleware",
    "uvicorn ProxyHeaders": "from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware",
    "granian proxy headers": "from granian.utils.proxies import wrap_asgi_with_proxy_headers",
    "hypercorn ProxyFix": "from hypercorn.middleware import ProxyFixMiddleware",
    "python-ipware": "from python_ipware import IpWare",
    "forwarded": "from forwarded import client_from_x_forwarded",
}
BARE, HYPERCORN = "bare interpreter", "hypercorn"
SERVERS = (OURS, UVICORN, GUNICORN, GRANIAN, HYPERCORN, NGINX, HAPROXY, CADDY)
IMPORT_ROUNDS, STARTS_OF_EACH = 21, 11
REQUESTS = 1000
MOST_FOR_IMPORT, MOST_TO_UVICORN = 0.015, 1.1
_PRINT_CPU = "; import time; print(time.process_time())"


class Footprint(NamedTuple):
    """Of a server: until its first answer, its memory then, and after many."""

    start: Sample
    first: Sample
    later: Sample


def importing(statement: str) -> Sample:
    begin = time.perf_counter()
    command = [sys.executable, "-c", statement + _PRINT_CPU]
    # An empty environment: nothing else is to follow into the process.
    said = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout
    return Sample(float(said), time.perf_counter() - begin)


def imports(effort: float) -> Case:
    sides = {BARE: "pass"} | IMPORTS
    measured = measure(
        {name: partial(importing, statement) for name, statement in sides.items()},
        max(2, round(IMPORT_ROUNDS * effort)),
    )
    bare = measured.pop(BARE)
    own = {name: less(samples, bare) for name, samples in measured.items()}
    name = "importing the middleware, more than a bare interpreter"
    return Case("footprint", name, "import", own, limit=MOST_FOR_IMPORT)


def memory(pids: list[int]) -> Sample:
    """Proportional and resident set size of these processes."""
    sizes = {"Pss": 0, "Rss": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size, *_ = line.split()
            if name[:-1] in sizes:
                sizes[name[:-1]] += int(size) * 1024
    return Sample(sizes["Pss"], sizes["Rss"])


def hypercorn(job: Job) -> AbstractContextManager[Program]:
    return python([job.port], "hypercorn", "--bind", f"{HOST}:{job.port}", "benchmarks.naming:app")


def footprint(name: str) -> Footprint:
    """A server from its start to its end. It is to find the client in a header, where it can."""
    start = hypercorn if name == HYPERCORN else STARTS[name]
    with ExitStack() as stack, on_core(LOAD_CORE):
        job = Job(Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port(), networks=[BALANCERS])
        begin = time.perf_counter()
        with on_core(SERVER_CORE):
            program = stack.enter_context(start(job))
        named_client(b"", Side(job.port, []), naming.PATH, CLIENT)
        wall = time.perf_counter() - begin
        pids = tree(program.pid)
        cpu, first = cpu_seconds(pids), memory(pids)
        keep_alive(b"", Side(job.port, pids), REQUESTS)
        return Footprint(Sample(cpu, wall), first, memory(pids))


def servers(effort: float) -> Iterator[Case]:
    rounds = max(2, round(STARTS_OF_EACH * effort))
    measured = measure({name: partial(footprint, name) for name in SERVERS}, rounds)
    bars = {UVICORN: MOST_TO_UVICORN}
    rows = (
        ("start, until the first answer", "start", "time"),
        ("memory after the first answer", "server", "memory"),
        (f"memory after {REQUESTS:,} requests more", "server", "memory"),
    )
    for number, (name, unit, kind) in enumerate(rows):
        sides = {side: [prints[number] for prints in footprints] for side, footprints in measured.items()}
        yield Case("footprint", name, unit, sides, dict(bars), kind=kind)


def cases(effort: float) -> Iterator[Case]:
    yield imports(effort)
    yield from servers(effort)


if __name__ == "__main__":
    main(__doc__, cases)
