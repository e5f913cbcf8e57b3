"""Several processes: started, replaced when they die, renewed on SIGHUP, drained at the end.

Not uvicorn's supervisor, of which nothing would be left: its parent keeps the sockets open while
nobody accepts, so the end resets what is in the queue; it looks for dead workers twice a second
and imports everything anew for each; and while it waits for a renewed worker it answers no signal.

Workers are forked from a parent that has never imported the application, so each of them
imports it as it is by then. The parent owns the listening sockets; a queue outlives its worker.
"""

import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import connection, get_context
from typing import Any, NamedTuple

from kongrealip.errors import KongRealIPError
from kongrealip.server.counters import Counters
from kongrealip.server.sockets import Sockets

logger = logging.getLogger("kongrealip.server")

#: The exit code of a worker that could not start, as uvicorn has it.
CANNOT_START = 3
#: Rows of the counters beside those of the parent and of the workers: for workers that leave.
ROWS_TO_SPARE = 32
_LOOK_SECONDS = 1.0
# A worker that fails at once would fail again at once.
_FAILURE_PAUSE_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_fork = get_context("fork")


class Plan(NamedTuple):
    """What workers are started with.

    ``serve`` runs in the worker, until SIGTERM; its arguments are the worker's number, its row of
    the counters, and what to call once it serves.
    """

    workers: int
    sockets: Sockets
    counters: Counters
    serve: Callable[[int, int, Callable[[], None]], None]


class Worker:
    """A process, from its parent's side."""

    def __init__(self, plan: Plan, number: int, row: int, open_sockets: list[Sockets]) -> None:
        self.plan = plan
        self.number = number
        self.row = row
        self.is_ready = False
        self.is_silent = True
        self.told, told = _fork.Pipe(duplex=False)
        arguments = (plan, number, row, told, open_sockets)
        self.process = _fork.Process(target=_live, args=arguments, name=f"worker {number}")
        # A signal that reached the child before its own handlers stand would be lost in the parent's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        told.close()

    @property
    def pid(self) -> int | None:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    @property
    def exit_code(self) -> int | None:
        return self.process.exitcode

    def look(self) -> None:
        """Notice that it serves, or that it will never say so."""
        if self.is_silent and self.told.poll():
            self.is_silent = False
            with contextlib.suppress(EOFError):
                self.is_ready = bool(self.told.recv())

    def end(self) -> None:
        """Ask it to serve what it has, and end."""
        self.process.terminate()


def _live(
    plan: Plan, number: int, row: int, told: connection.Connection, open_sockets: list[Sockets]
) -> None:
    """The life of a worker. ``open_sockets`` are all that it has inherited."""
    own = plan.sockets.of_worker(number)
    is_to_end = False

    def end_before_it_serves(number: int, frame: object) -> None:
        # Nothing has been accepted, but clients may wait in a queue that dies with this process.
        nonlocal is_to_end
        is_to_end = True
        if not connection.wait([one.sock for one in own if one.sock.fileno() >= 0], 0):
            sys.exit(0)

    def on_ready() -> None:
        told.send(True)
        if is_to_end:
            # By now there is the server's own handler, which has the queue served first.
            signal.raise_signal(signal.SIGTERM)

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, _take_no_notice)
    signal.signal(signal.SIGHUP, _take_no_notice)
    # Until the server sets its own.
    signal.signal(signal.SIGTERM, end_before_it_serves)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for sockets in open_sockets:
        # A queue that this worker never empties must not live on in it.
        sockets.close_but(own)
    plan.serve(number, row, on_ready)


def _take_no_notice(number: int, frame: object) -> None:
    """Unlike SIG_IGN it is not handed down to programs that the application starts."""


class Supervisor:
    """The parent. ``renew`` reads the configuration anew for SIGHUP, and raises where it is wrong.

    It returns the new plan, and the sockets of the present one that the new one leaves over.
    """

    def __init__(self, plan: Plan, renew: Callable[[Plan], tuple[Plan, Sockets]]) -> None:
        self._plan = plan
        self._renew = renew
        self._workers: dict[int, Worker] = {}
        self._leaving: list[Worker] = []
        # When a worker that failed is to be started again, by its number.
        self._due: dict[int, float] = {}
        self._has_served = False
        # A renewal, while one goes on: its plan, what it leaves over, who is next, who is coming.
        self._next_plan: Plan | None = None
        self._left_over = Sockets()
        self._next_numbers: list[int] = []
        self._incoming: Worker | None = None
        self._signals: list[int] = []
        self._wake_up, self._wake_up_write = socket.socketpair()

    def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns the exit code."""
        self._listen_for_signals()
        for number in range(self._plan.workers):
            self._start(number)
        code = None
        while code is None:
            self._wait()
            self._renewal_step()
            code = self._replace_the_dead()
            if any(number != signal.SIGHUP for number in self._signals):
                code = 0
            elif self._signals and self._next_plan is None:
                self._signals.clear()
                self._begin_renewal()
        self._end()
        return code

    def _listen_for_signals(self) -> None:
        self._wake_up.setblocking(False)
        self._wake_up_write.setblocking(False)
        signal.set_wakeup_fd(self._wake_up_write.fileno(), warn_on_full_buffer=False)
        for name in _SIGNALS:
            signal.signal(name, lambda number, frame: self._signals.append(number))

    def _everybody(self) -> list[Worker]:
        incoming = [] if self._incoming is None else [self._incoming]
        return [*self._workers.values(), *self._leaving, *incoming]

    def _wait(self) -> None:
        """Until a worker ends or serves, a signal comes, or it is time to look."""
        everybody = self._everybody()
        events: list[Any] = [self._wake_up, *(worker.process.sentinel for worker in everybody)]
        events += [worker.told for worker in everybody if worker.is_silent]
        now = time.monotonic()
        timeout = min([_LOOK_SECONDS, *(due - now for due in self._due.values())])
        connection.wait(events, max(0, timeout))
        with contextlib.suppress(BlockingIOError):
            self._wake_up.recv(4096)
        for worker in everybody:
            worker.look()
        self._has_served = self._has_served or any(worker.is_ready for worker in everybody)

    def _start(self, number: int) -> None:
        self._due.pop(number, None)
        plan = self._plan_for(number)
        self._workers[number] = Worker(plan, number, self._free_row(plan), self._open_sockets())

    def _plan_for(self, number: int) -> Plan:
        """A number that a renewal has been through already belongs to the new plan."""
        plan, incoming = self._next_plan, self._incoming
        if plan is None or number in self._next_numbers or number >= plan.workers:
            return self._plan
        return self._plan if incoming is not None and incoming.number == number else plan

    def _open_sockets(self) -> list[Sockets]:
        """All listening sockets of this process, among them those that a renewal brings and leaves."""
        of_next = [] if self._next_plan is None else [self._next_plan.sockets]
        return [self._plan.sockets, self._left_over, *of_next]

    def _free_row(self, plan: Plan) -> int:
        """A row of the counters that nobody writes to; 0 is the parent's own.

        Should so many workers be leaving that there is none, two share the last one and may miss
        a count, which is better than not to start.
        """
        taken = {worker.row for worker in self._everybody()}
        last = plan.counters.rows - 1
        return next((row for row in range(1, last) if row not in taken), last)

    def _replace_the_dead(self) -> int | None:
        """Bury them and start others. Returns an exit code where that is hopeless."""
        for worker in [worker for worker in self._leaving if not worker.is_alive]:
            self._leaving.remove(worker)
            self._bury(worker)
        for number, worker in list(self._workers.items()):
            if worker.is_alive:
                continue
            self._bury(self._workers.pop(number))
            if worker.exit_code == CANNOT_START and not self._has_served:
                return CANNOT_START
            logger.error("worker %d ended with %s, starting another", worker.pid, worker.exit_code)
            self._plan.counters.row(0).add("worker_restarts")
            self._due[number] = time.monotonic() + (0 if worker.is_ready else _FAILURE_PAUSE_SECONDS)
        for number, due in list(self._due.items()):
            if due <= time.monotonic():
                self._start(number)
        return None

    def _bury(self, worker: Worker) -> None:
        worker.process.join()
        worker.told.close()
        worker.plan.counters.row(worker.row).leave_to(self._plan.counters.row(0))

    def _begin_renewal(self) -> None:
        try:
            self._next_plan, self._left_over = self._renew(self._plan)
        except Exception as error:
            # Whatever comes up, a server that is up stays up.
            if not isinstance(error, KongRealIPError):
                logger.exception("SIGHUP: an error of this program's own")
            for line in str(error).splitlines():
                logger.error("SIGHUP: %s", line)
            logger.error("SIGHUP: the old configuration stays in force")
            return
        logger.info("SIGHUP: replacing the workers")
        self._next_numbers = list(range(self._next_plan.workers))
        self._start_next(self._next_plan)

    def _start_next(self, plan: Plan) -> None:
        number, row = self._next_numbers.pop(0), self._free_row(plan)
        self._incoming = Worker(plan, number, row, self._open_sockets())

    def _renewal_step(self) -> None:
        """Let a worker go when its successor serves, and send for the next."""
        plan, incoming = self._next_plan, self._incoming
        if plan is None or incoming is None:
            return
        if not incoming.is_alive:
            self._give_renewal_up(plan, incoming)
        elif incoming.is_ready:
            if not self._next_numbers:
                # In the parent first: the last to close a socket must have emptied its queue.
                self._left_over.turn_newcomers_away()
                self._left_over.close()
            self._let_go(incoming.number)
            self._workers[incoming.number] = incoming
            self._incoming = None
            if self._next_numbers:
                self._start_next(plan)
            else:
                self._finish_renewal(plan)

    def _let_go(self, number: int) -> None:
        self._due.pop(number, None)
        worker = self._workers.pop(number, None)
        if worker is not None:
            worker.end()
            self._leaving.append(worker)

    def _finish_renewal(self, plan: Plan) -> None:
        for number in [number for number in self._workers if number >= plan.workers]:
            self._let_go(number)
        if plan.counters is not self._plan.counters:
            self._plan.counters.row(0).leave_to(plan.counters.row(0))
        self._plan, self._next_plan, self._left_over = plan, None, Sockets()
        logger.info("SIGHUP: the new configuration is in force")

    def _give_renewal_up(self, plan: Plan, incoming: Worker) -> None:
        """Go back to what was: those that are new already make way again."""
        self._bury(incoming)
        self._incoming = self._next_plan = None
        self._left_over = Sockets()
        renewed = [number for number, worker in self._workers.items() if worker.plan is plan]
        for number in renewed:
            self._let_go(number)
        # In the parent first, and before the next fork: the last to close has emptied the queue.
        plan.sockets.close_but(self._plan.sockets.opened)
        self._plan.sockets.restore()
        for number in range(self._plan.workers):
            if number not in self._workers:
                self._start(number)
        logger.error("SIGHUP: a worker could not start; the old configuration stays in force")

    def _end(self) -> None:
        """Leave the sockets to the workers, who empty the queues before they close them."""
        for sockets in self._open_sockets():
            sockets.turn_newcomers_away()
        for sockets in self._open_sockets():
            sockets.close()
        workers = self._everybody()
        for worker in workers:
            worker.end()
        self._signals.clear()
        while alive := [worker for worker in workers if worker.is_alive]:
            connection.wait([worker.process.sentinel for worker in alive], _LOOK_SECONDS / 5)
            if signal.SIGINT in self._signals:
                for worker in alive:
                    worker.process.kill()
        for worker in workers:
            self._bury(worker)
