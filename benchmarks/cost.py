"""What a piece of work costs a server: CPU time of its process tree, and the time that passes.

Servers have a core, and the load and everything else have another.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.comparison import Sample

SERVER_CORE, LOAD_CORE = 0, 1
# When the client has all answers, a server is still closing the last connections.
_SETTLE_SECONDS = 0.005
_PATIENCE_SECONDS = 60
# The clock that counts the time of a whole process on the processor, as its id is made in the
# kernel (include/linux/posix-timers_types.h). Threads that ended count as well; the sum of
# /proc/PID/task/*/schedstat would lack them.
_CLOCK_OF_A_PROCESS = 2


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Stay on this core. Whatever is started meanwhile stays there too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(pid: int) -> list[int]:
    """A process and all that it started, and these started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """Time of these processes on the processor, to the nanosecond."""
    return sum(time.clock_gettime_ns(~pid << 3 | _CLOCK_OF_A_PROCESS) for pid in pids) / 1e9


def cost_of(pids: Sequence[int], work: Callable[[], None], units: float) -> Sample:
    """What a unit costs. Who does not come to an end breaks off the whole benchmark."""
    cpu, begin = cpu_seconds(pids), time.perf_counter()
    with _patience():
        work()
    wall = time.perf_counter() - begin
    time.sleep(_SETTLE_SECONDS)
    return Sample((cpu_seconds(pids) - cpu) / units, wall / units)


@contextmanager
def _patience() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _give_up(*_: object) -> None:
    raise TimeoutError("a round does not come to its end")
