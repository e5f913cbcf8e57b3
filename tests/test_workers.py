"""Several processes: how many, how they are replaced, renewed and ended, with real signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kongrealip.server.tls import self_signed
from tests.lab import client_tls
from tests.running import (
    LOOPBACK,
    Program,
    accepts,
    clean_environ,
    connect,
    exchange,
    fetch,
    free_port,
    running,
    serving,
    wait_until,
)
from tests.test_cli import FAILING_LIFESPAN, invoke, listen_on_loopback, run, unix_request

SERVES = "Application startup complete"
IN_FORCE = "SIGHUP: the new configuration is in force"
STAYS = "the old configuration stays in force"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CLAIM = (("X-Real-IP", "203.0.113.7"),)

# Says which process answers, and what it was started with. The file "hold" names the import from
# which on none comes to its end while it is there, and "fail" the one that fails.
APP = """
import asyncio, os, time
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

VERSION = {version!r}
FOLDER = Path(__file__).parent
with open(FOLDER / "imported", "a") as file:
    file.write("x")
    file.flush()
    number = file.tell()

def told(name):
    path = FOLDER / name
    return int(path.read_text() or 1) if path.exists() else 0

while 0 < told("hold") <= number:
    time.sleep(0.02)
if told("fail") == number:
    raise RuntimeError("as asked for")

def index(request):
    return JSONResponse({{
        "pid": os.getpid(), "version": VERSION, "client_ip": request.client and request.client.host,
        "variables": {{name: value for name, value in os.environ.items() if name.startswith("OF_FILE")}},
    }})

async def slow(request):
    (FOLDER / "asked").touch()
    await asyncio.sleep(3600)

app = Starlette(routes=[Route("/", index), Route("/slow", slow)])
"""


class Site:
    """A folder with an application, an environment file and the options to serve them with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.file = folder / "env"
        self.write_app("first")
        self.configure()

    def write_app(self, version: str) -> None:
        (self.folder / "site_app.py").write_text(APP.format(version=version))

    def configure(self, *lines: str, listen: str | None = None) -> None:
        """Write the environment file: these lines, and the listeners."""
        text = f"KONG_PROXY_LISTEN={listen or f'{LOOPBACK}:{self.port}'}"
        self.file.write_text("\n".join([text, *lines]) + "\n")

    @property
    def args(self) -> list[str | Path]:
        return ["site_app:app", "--app-dir", self.folder, "--env-file", self.file]

    @contextmanager
    def serving(
        self, *args: str, workers: str = "2", environ: dict[str, str] | None = None
    ) -> Iterator[Program]:
        with serving(environ or {}, *self.args, "--workers", workers, *args) as server:
            wait_until(lambda: server.stderr.count(SERVES) == int(workers), "the workers")
            yield server

    @contextmanager
    def held(self, first: int = 1) -> Iterator[None]:
        """While it lasts no import from this one on comes to its end."""
        path = self.folder / "hold"
        path.write_text(str(first))
        try:
            yield
        finally:
            path.unlink()

    def imports(self) -> int:
        return len((self.folder / "imported").read_text())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def workers_of(server: Program) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return sorted(map(int, children.split()))


def renew(server: Program, outcome: str = IN_FORCE) -> str:
    """Send SIGHUP and wait for how it ends. Returns what was written on the way."""
    before = len(server.stderr)
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: outcome in server.stderr[before:], f"{outcome!r} after SIGHUP")
    return server.stderr[before:]


def is_gone(pid: int) -> bool:
    """Whether it ended; whoever inherited it may not have looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for_workers(server: Program, count: int, but: Sequence[int] = ()) -> list[int]:
    """Until there are ``count`` of them, none of which is one of ``but``."""

    def are_there() -> bool:
        found = workers_of(server)
        return len(found) == count and not set(found) & set(but)

    wait_until(are_there, f"{count} workers but {but}")
    return workers_of(server)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# How many

TWO = {"KONG_NGINX_WORKER_PROCESSES": "2"}


@pytest.mark.parametrize(
    ("args", "environ", "expected"),
    [
        (("--workers", "2"), {}, 2),
        (("--workers", "1"), {}, 1),
        ((), TWO, 2),
        (("--workers", "1"), TWO, 1),
        ((), {"KONG_NGINX_MAIN_WORKER_PROCESSES": "1", **TWO}, 1),
        (("--workers", "auto"), {}, None),
        ((), {"KONG_NGINX_WORKER_PROCESSES": "auto"}, None),
    ],
)
def test_how_many(args: tuple[str, ...], environ: dict[str, str], expected: int | None) -> None:
    with serving({**listen_on_loopback(), **environ}, *args) as server:
        wait_for_workers(server, expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "", "auto "])
def test_a_wrong_number_on_the_command_line_is_2(number: str) -> None:
    result = invoke("serve", f"--workers={number}")
    assert result.exit_code == 2
    assert "write auto or a number of at least 1" in result.output


@pytest.mark.parametrize("name", ["KONG_NGINX_WORKER_PROCESSES", "KONG_NGINX_MAIN_WORKER_PROCESSES"])
def test_a_wrong_number_in_the_environment_is_3(name: str) -> None:
    result = run("serve", environ={name: "0"})
    assert result.returncode == 3
    assert result.stderr == f"kongrealip: {name}: '0': write auto or a number of at least 1\n"


def test_each_of_them_answers_and_shows_the_same_certificate(site: Site) -> None:
    site.configure(listen=f"{LOOPBACK}:{site.port} ssl")
    with site.serving() as server:
        first, second = wait_for_workers(server, 2)
        certificates = set()
        for idle, busy in ((first, second), (second, first)):
            with stopped(idle):
                assert fetch(site.port, tls=client_tls())["pid"] == busy
                with client_tls().wrap_socket(connect(site.port)) as sock:
                    certificates.add(sock.getpeercert(binary_form=True))
        assert len(certificates) == 1


def test_a_unix_socket_with_workers(site: Site) -> None:
    path = site.folder / "s"
    with site.serving("--uds", str(path)) as server:
        before = wait_for_workers(server, 2)
        assert b'"client_ip":null' in unix_request(path, REQUEST)
        renew(server)
        wait_for_workers(server, 2, but=before)
        assert b'"client_ip":null' in unix_request(path, REQUEST)
    assert not path.exists()


# The environment file


@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
def test_the_environment_file_reaches_the_application(workers: tuple[str, ...], site: Site) -> None:
    site.configure(
        "# a comment", "; another", "", "OF_FILE_1=a b ", "  OF_FILE_2 = 'quoted # not a comment'  ",
        'OF_FILE_3="', "OF_FILE_4=", "OF_FILE_5=x=y", "OF_FILE_6=of the file", "KONG_TRUSTED_IPS=127.0.0.0/8\r",
    )  # fmt: skip
    environ = {"OF_FILE_6": "of the process", "KONG_PROXY_LISTEN": f"{LOOPBACK}:{site.port}"}
    with serving(environ, *site.args, *workers):
        seen = fetch(site.port, headers=CLAIM)
    assert seen["client_ip"] == "203.0.113.7"
    assert seen["variables"] == {
        "OF_FILE_1": "a b", "OF_FILE_2": "quoted # not a comment", "OF_FILE_3": '"', "OF_FILE_4": "",
        "OF_FILE_5": "x=y", "OF_FILE_6": "of the process",
    }  # fmt: skip


@pytest.mark.parametrize("line", ["no equals sign", "1A=b", "export A=b", "=b", "A B=c"])
def test_a_wrong_line_in_the_environment_file_is_3(line: str, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text(f"# first\nA=b\n{line}\n")
    result = run("serve", "--env-file", str(file))
    assert result.returncode == 3
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"kongrealip: {file}: line 3")
    assert told.endswith(": write NAME=value")


def test_a_wrong_line_may_be_a_secret(tmp_path: Path) -> None:
    """A key over several lines is what such a file cannot hold, and the log is not the place for it."""
    _, key = self_signed()
    file = tmp_path / "env"
    file.write_text(f'KONG_SSL_CERT_KEY="{key}"\n')
    result = run("serve", "--env-file", str(file))
    assert result.returncode == 3
    assert not any(line in result.stderr for line in key.splitlines())


# Renewed


def test_a_renewal_reads_everything_anew(site: Site) -> None:
    conf, log = site.folder / "kong.conf", site.folder / "access.log"
    conf.write_text(f"proxy_access_log = {log}\n")
    site.configure("OF_FILE_1=1", "OF_FILE_2=2")
    with site.serving("--conf", str(conf)) as server:
        before = wait_for_workers(server, 2)
        seen = fetch(site.port, headers=CLAIM)
        assert (seen["version"], seen["client_ip"]) == ("first", "127.0.0.9")

        site.configure("OF_FILE_1=changed", "KONG_TRUSTED_IPS=127.0.0.0/8")
        conf.write_text(f"proxy_access_log = {log}\nreal_ip_header = X-Client\n")
        site.write_app("the second version")
        log.rename(site.folder / "moved.log")
        renew(server)
        wait_for_workers(server, 2, but=before)

        seen = fetch(site.port, headers=(("X-Client", "203.0.113.9"), *CLAIM))
        assert (seen["version"], seen["client_ip"]) == ("the second version", "203.0.113.9")
        # What the file no longer names is gone.
        assert seen["variables"] == {"OF_FILE_1": "changed"}
        wait_until(lambda: log.exists() and log.read_text() != "", "a line in the new log")
        assert [path.read_text().count("\n") for path in (log, site.folder / "moved.log")] == [1, 1]


def test_listeners_come_and_go(site: Site) -> None:
    other, third = free_port(), free_port()
    here = f"{LOOPBACK}:{site.port}"
    with site.serving() as server:
        site.configure(listen=f"{here} proxy_protocol, {LOOPBACK}:{other}")
        renew(server)
        assert fetch(other)["client_ip"] == "127.0.0.9"
        with_preamble = b"PROXY TCP4 203.0.113.7 1.1.1.1 5 443\r\n" + REQUEST
        wait_until(lambda: b" 200 OK" in exchange(site.port, with_preamble)[0], "the flag to be in force")

        site.configure(listen=f"{here} ssl, {LOOPBACK}:{third}")
        renew(server)
        assert fetch(third)["client_ip"] == "127.0.0.9"
        wait_until(lambda: not accepts(other), "the port to be closed that nobody listens on any more")
        wait_until(lambda: speaks_tls(site.port), "TLS on the port that was without")


def speaks_tls(port: int) -> bool:
    try:
        fetch(port, tls=client_tls())
    except (ssl.SSLError, ConnectionError):
        return False
    return True


@pytest.mark.parametrize("flags", ["", " reuseport"])
def test_more_workers_and_fewer(flags: str, site: Site) -> None:
    listen = f"{LOOPBACK}:{site.port}{flags}"
    site.configure("KONG_NGINX_WORKER_PROCESSES=1", listen=listen)
    with serving({}, *site.args) as server:
        wait_until(lambda: accepts(site.port), "the port")
        found = wait_for_workers(server, 1)
        for count in (3, 1):
            site.configure(f"KONG_NGINX_WORKER_PROCESSES={count}", listen=listen)
            renew(server)
            found = wait_for_workers(server, count, but=found)
            # Whatever queue a connection comes into, somebody is there to empty it.
            assert {fetch(site.port)["pid"] for _ in range(12)} <= set(found)


def test_the_log_level(site: Site) -> None:
    with site.serving() as server:
        before = wait_for_workers(server, 2)
        site.configure("KONG_LOG_LEVEL=error")
        length = len(server.stderr)
        os.kill(server.pid, signal.SIGHUP)
        after = wait_for_workers(server, 2, but=before)
        # From the old workers, at the level that they were started with.
        assert not re.search(
            r" INFO (?!Shutting|Waiting|Application shutdown|Finished)", server.stderr[length:]
        )
        site.configure("KONG_LOG_LEVEL=info")
        renew(server)
        wait_for_workers(server, 2, but=after)


def test_twice_in_a_row(site: Site) -> None:
    with site.serving() as server:
        before = wait_for_workers(server, 2)
        site.configure("OF_FILE_1=1")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: site.imports() > 2, "a renewal on its way")
        site.configure("OF_FILE_1=2")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: server.stderr.count(IN_FORCE) == 2, "both renewals")
        wait_for_workers(server, 2, but=before)
        assert fetch(site.port)["variables"] == {"OF_FILE_1": "2"}


def test_a_wrong_configuration_changes_nothing(site: Site) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken, site.serving() as server:
        before = wait_for_workers(server, 2)
        here = f"{LOOPBACK}:{site.port}"
        in_use = f"{LOOPBACK}:{taken.getsockname()[1]}"
        wrong: list[tuple[Callable[[], Any], list[str]]] = [
            (
                lambda: site.configure("KONG_TRUSTED_IPS=a", "KONG_LOG_LEVEL=loud"),
                ["KONG_TRUSTED_IPS: entry 1 'a': ", "KONG_LOG_LEVEL: 'loud': "],
            ),
            (
                lambda: site.configure(listen=f"{here}, {in_use}"),
                [f"cannot listen on {in_use}: Address already"],
            ),
            (
                lambda: site.configure(
                    "KONG_SSL_CERT=/no/cert", "KONG_SSL_CERT_KEY=/no/key", listen=f"{here} ssl"
                ),
                ["entry 1 cannot be loaded: no such file: /no/cert"],
            ),
            (lambda: site.configure("no equals sign"), [f"{site.file}: line 2"]),
            (site.file.unlink, [f"cannot read {site.file}: No such file"]),
        ]
        for spoil, expected in wrong:
            spoil()
            lines = renew(server, STAYS).splitlines()
            assert len(lines) == len(expected) + 1
            assert all(" ERROR SIGHUP: " in line for line in lines)
            assert all(text in line for text, line in zip(expected, lines, strict=False))
            assert workers_of(server) == before
            assert fetch(site.port)["client_ip"] == "127.0.0.9"


def test_a_wrong_configuration_does_not_change_the_log_level(site: Site) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken, site.serving() as server:
        in_use = f"{LOOPBACK}:{taken.getsockname()[1]}"
        site.configure("KONG_LOG_LEVEL=error", listen=f"{LOOPBACK}:{site.port}, {in_use}")
        renew(server, STAYS)
        # A worker has its parent's level.
        os.kill(workers_of(server)[0], signal.SIGKILL)
        wait_until(lambda: server.stderr.count(SERVES) == 3, "a third line of that")


@pytest.mark.parametrize("text", ["1 / 0", FAILING_LIFESPAN, "app = None\nimport os\nos._exit(1)"])
def test_an_application_that_no_longer_starts_leaves_the_old_workers(text: str, site: Site) -> None:
    with site.serving() as server:
        before = wait_for_workers(server, 2)
        (site.folder / "site_app.py").write_text(text)
        told = renew(server, STAYS)
        assert "ERROR SIGHUP: a worker could not start; " in told
        assert wait_for_workers(server, 2) == before
        assert fetch(site.port)["version"] == "first"
        site.write_app("repaired")
        renew(server)
        wait_for_workers(server, 2, but=before)
        assert fetch(site.port)["version"] == "repaired"


def test_a_renewal_that_fails_half_way_is_taken_back(site: Site) -> None:
    other = free_port()
    with site.serving() as server:
        before = wait_for_workers(server, 2)
        site.configure("OF_FILE_1=new", listen=f"{LOOPBACK}:{site.port}, {LOOPBACK}:{other}")
        # The first new worker serves, and the second does not come to it.
        (site.folder / "fail").write_text("4")
        renew(server, f"a worker could not start; {STAYS}")
        found = wait_for_workers(server, 2, but=before[:1])
        wait_until(lambda: server.stderr.count(SERVES) == 4, "one to take the place of the new one")
        assert [seen["variables"] for seen in answers_of_each(site.port, found)] == [{}, {}]
        wait_until(lambda: not accepts(other), "the new port to be closed again")
        renew(server)
        found = wait_for_workers(server, 2, but=found)
        for port in (site.port, other):
            assert [seen["variables"] for seen in answers_of_each(port, found)] == [{"OF_FILE_1": "new"}] * 2


def test_a_new_worker_that_dies_in_the_middle_of_a_renewal(site: Site) -> None:
    with site.serving("--no-access-log") as server:
        before = wait_for_workers(server, 2)
        site.configure("OF_FILE_1=new")
        with site.held(first=4):
            os.kill(server.pid, signal.SIGHUP)
            wait_until(lambda: site.imports() == 4, "the second new worker")
            first, _ = sorted(set(workers_of(server)) - set(before))
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: site.imports() == 5, "another in the place of the first")
        server.wait_for_stderr(IN_FORCE)
        found = wait_for_workers(server, 2, but=[*before, first])

        def are_new() -> bool:
            found[:] = workers_of(server)
            return len(found) == 2 and all(seen["variables"] for seen in answers_of_each(site.port, found))

        wait_until(are_new, "two workers under the new configuration")


def answers_of_each(port: int, workers: Sequence[int]) -> list[Any]:
    """Ask each of them, while the others are stopped."""
    seen = []
    for worker in workers:
        with ExitStack() as others:
            for other in set(workers) - {worker}:
                others.enter_context(stopped(other))
            seen.append(fetch(port))
    return seen


# What ends by itself


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "cannot import the application 'site_app:app': ZeroDivisionError('division by zero')"),
        ("", 'cannot import the application: Attribute "app" not found'),
        (FAILING_LIFESPAN, "no database"),
    ],
)
def test_an_application_that_cannot_start_is_3(text: str, message: str, site: Site) -> None:
    (site.folder / "site_app.py").write_text(text)
    path = site.folder / "s"
    for workers in ((), ("--workers", "1"), ("--workers", "2")):
        result = run("serve", *map(str, site.args), "--uds", str(path), *workers)
        assert result.returncode == 3
        assert message in result.stderr
        assert "starting another" not in result.stderr
        assert not path.exists()


def test_a_worker_that_is_killed_is_replaced_and_counted(site: Site) -> None:
    status = free_port()
    site.configure(f"KONG_STATUS_LISTEN={LOOPBACK}:{status}")
    with site.serving() as server:
        for count in (1, 2):
            before = wait_for_workers(server, 2)
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda pid=before[0]: pid not in workers_of(server), "its burial")  # type: ignore[misc]
            wait_for_workers(server, 2)
            assert fetch(status, path="/status")["worker_restarts"] == count
            assert f"ERROR worker {before[0]} ended with -9, starting another" in server.stderr
        assert fetch(site.port)["pid"] in wait_for_workers(server, 2)


# The end

_OWN_GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


@contextmanager
def in_a_group_of_its_own(site: Site, *args: str) -> Iterator[Program]:
    """So that a signal to the group, as a terminal sends it, spares the tests."""
    command = [sys.executable, "-c", _OWN_GROUP, "-m", "kongrealip", "serve", *site.args, *args]
    with running(command, clean_environ(), [site.port]) as server:
        server.wait_for_stderr(SERVES)
        yield server


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_the_terminals_interrupt(workers: tuple[str, ...], site: Site) -> None:
    with in_a_group_of_its_own(site, *workers) as server:
        processes = workers_of(server)
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert "Traceback" not in server.stderr
        assert all(map(is_gone, processes))


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_a_second_interrupt_does_not_wait(workers: tuple[str, ...], site: Site) -> None:
    with in_a_group_of_its_own(site, *workers) as server, connect(site.port) as sock:
        processes = workers_of(server)
        sock.sendall(REQUEST.replace(b" / ", b" /slow "))
        wait_until((site.folder / "asked").exists, "the request")
        os.killpg(server.pid, signal.SIGINT)
        wait_until(lambda: not accepts(site.port), "the port to be closed")
        server.wait_for_stderr("Waiting for")
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert all(map(is_gone, processes))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_before_the_beginning(number: int, site: Site) -> None:
    """The workers are still importing the application, and have nothing to wait for."""
    with site.held(), in_the_middle_of_its_start(site) as server:
        os.kill(server.pid, number)
        assert server.wait() == 0
        assert "starting another" not in server.stderr


@contextmanager
def in_the_middle_of_its_start(site: Site) -> Iterator[Program]:
    command = [sys.executable, "-m", "kongrealip", "serve", *site.args, "--workers", "2"]
    with running(command, clean_environ(), []) as server:
        wait_until(lambda: (site.folder / "imported").exists() and site.imports() == 2, "both imports")
        yield server


def test_the_end_in_the_middle_of_a_renewal(site: Site) -> None:
    with site.serving() as server:
        processes = wait_for_workers(server, 2)
        with site.held():
            os.kill(server.pid, signal.SIGHUP)
            wait_until(lambda: site.imports() == 3, "the first new worker")
            processes += workers_of(server)
            server.terminate()
            assert server.wait() == 0
        assert all(map(is_gone, processes))


def test_workers_whose_parent_was_killed_end_by_themselves(site: Site) -> None:
    with in_a_group_of_its_own(site, "--workers", "2") as server:
        processes = workers_of(server)
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        wait_until(lambda: all(map(is_gone, processes)), "the end of the workers")
        assert "the parent process is gone, so this worker ends" in server.stderr
        with socket.create_server((LOOPBACK, site.port)):
            pass


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_hangup_without_workers_is_told_of(loop: str, site: Site) -> None:
    with serving(listen_on_loopback(), "--loop", loop) as server:
        for count in (1, 2):
            os.kill(server.pid, signal.SIGHUP)
            told = "WARNING SIGHUP: nothing is read anew without --workers"
            wait_until(lambda: server.stderr.count(told) == count, "a line")  # noqa: B023
        assert fetch(server.port)["source"] == "peer"


def test_the_end_while_a_worker_starts_serves_who_waits(site: Site) -> None:
    slow = "import time\ntime.sleep(1.5)\nfrom kongrealip.cli.whoami import app\n"
    (site.folder / "site_app.py").write_text(slow)
    with serving({}, *site.args, "--workers", "2") as server:
        wait_until(lambda: accepts(site.port), "the queue")
        waiting = socket.create_connection((LOOPBACK, site.port), 10)
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        server.terminate()
        assert waiting.recv(12) == b"HTTP/1.1 200"
        waiting.close()
        assert server.wait() == 0
