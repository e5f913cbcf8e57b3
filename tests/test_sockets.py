"""Listening sockets of several processes: shared or one for each, renewed, handed over by systemd."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from kongrealip import Settings
from kongrealip.cli.main import cli
from kongrealip.config import Listen
from kongrealip.config.listen import HTTP_FLAGS, parse_listen
from kongrealip.errors import StartError
from kongrealip.server.sockets import Opened, Sockets, bind, bind_unix, inherited, open_all
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
from tests.test_cli import run, unix_request

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
TCP = socket.IPPROTO_TCP
SYSTEMD = Path(__file__).parent.parent / "examples" / "systemd"


def entry(port: int, flags: str = "") -> Listen:
    return parse_listen(f"{LOOPBACK}:{port} {flags}", HTTP_FLAGS)


def unix_entry(path: Path, *flags: str) -> Listen:
    return Listen(f"unix:{path}", 0, flags)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    # Less may be open: what another test dropped is closed when the collector comes by.
    assert descriptors() <= before


@contextmanager
def opened(*listens: Listen, workers: int = 0, inherited: Iterable[socket.socket] = ()) -> Iterator[Sockets]:
    sockets = open_all(listens, workers, 60.0, inherited)
    try:
        yield sockets
    finally:
        sockets.close()


@contextmanager
def renewed(present: Sockets, *listens: Listen, workers: int = 0) -> Iterator[tuple[Sockets, Sockets]]:
    renewed, left_over = present.renewed(listens, workers, 60.0)
    try:
        yield renewed, left_over
    finally:
        renewed.close()
        left_over.close()


def ports(sockets: Sockets) -> list[int]:
    return [one.sock.getsockname()[1] for one in sockets.opened]


def backlog(sock: socket.socket) -> int:
    # Of a listening socket Linux tells the length of its queue as tcpi_sacked.
    return int(struct.unpack_from("I", sock.getsockopt(TCP, socket.TCP_INFO, 104), 28)[0])


def flags_in_force(sock: socket.socket) -> tuple[bool, int, bool, int]:
    """SO_KEEPALIVE and its idle time, whether accepting is deferred, the backlog."""
    keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, deferred = (sock.getsockopt(TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_DEFER_ACCEPT))
    return bool(keepalive), idle, deferred > 0, backlog(sock)


def accepted(one: Opened) -> int:
    """Empty a queue and count."""
    count = 0
    while True:
        try:
            connection, _ = one.sock.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


# Opening


def test_one_process_has_one_socket_for_each_entry(tmp_path: Path) -> None:
    listens = (entry(free_port(), "reuseport"), entry(free_port()), unix_entry(tmp_path / "s"))
    with opened(*listens) as sockets:
        assert [(one.listen, one.worker) for one in sockets.opened] == [(listen, None) for listen in listens]
        assert sockets.of_worker(0) == sockets.opened
        # With it a second server would be let in unnoticed.
        assert sockets.opened[0].sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        assert not any(one.sock.getblocking() or one.sock.get_inheritable() for one in sockets.opened)


def test_reuseport_opens_one_for_each_worker(tmp_path: Path) -> None:
    own, shared = entry(free_port(), "reuseport"), entry(free_port())
    unix = unix_entry(tmp_path / "s", "reuseport")
    with opened(own, shared, unix, workers=3) as sockets:
        numbers = [(one.listen, one.worker) for one in sockets.opened]
        assert numbers == [(own, 0), (own, 1), (own, 2), (shared, None), (unix, None)]
        assert [one.listen for one in sockets.of_worker(1)] == [own, shared, unix]
        clients = [connect(own.port) for _ in range(30)]
        assert sum(accepted(one) for one in sockets.opened[:3]) == 30, "none is lost between them"
        for client in clients:
            client.close()


def test_a_worker_keeps_only_what_it_accepts_from() -> None:
    with opened(entry(free_port(), "reuseport"), entry(free_port()), workers=2) as sockets:
        sockets.close_but(sockets.of_worker(1))
        assert [one.sock.fileno() >= 0 for one in sockets.opened] == [False, True, True]


def test_what_cannot_be_opened_leaves_nothing_behind(tmp_path: Path) -> None:
    free = entry(free_port())
    with opened(entry(free_port())) as others:
        before = descriptors()
        with pytest.raises(StartError, match=r"^cannot listen on .*: Address already in use$"):
            open_all([free, unix_entry(tmp_path / "s"), others.opened[0].listen], 0, 60.0)
        assert descriptors() == before
    assert not accepts(free.port)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("flags", ["", "reuseport"])
def test_a_port_that_another_server_of_this_user_has(workers: int, flags: str) -> None:
    """With SO_REUSEPORT the system would let it in, and give it half of the connections."""
    listen = entry(free_port(), "reuseport")
    with opened(listen, workers=2), pytest.raises(StartError, match="Address already in use"):
        open_all([entry(listen.port, flags)], workers, 60.0)


def test_a_second_server_on_the_port_of_workers_is_refused() -> None:
    environ = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{free_port()} reuseport"}
    with serving(environ, "--workers", "2"):
        result = run("serve", "--workers", "2", environ=environ)
    assert result.returncode == 3
    expected = f"kongrealip: cannot listen on {environ['KONG_PROXY_LISTEN']}: Address already in use"
    assert result.stderr.splitlines()[-1] == expected


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b"])
def test_a_name_that_stands_for_nothing(host: str) -> None:
    with pytest.raises(StartError, match=f"^cannot listen on {host}:8000: .+"):
        open_all([Listen(host, 8000)], 0, 60.0)


def test_paths_are_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with opened(unix_entry(path)) as sockets:
        sockets.turn_newcomers_away()
        assert not path.exists()
        path.write_text("another server's")
        sockets.turn_newcomers_away()
        assert path.exists()


def test_a_path_that_is_gone_already(tmp_path: Path) -> None:
    with opened(unix_entry(tmp_path / "s")) as sockets:
        (tmp_path / "s").unlink()
        sockets.turn_newcomers_away()


# Renewed


def test_what_stays_is_the_same_socket(tmp_path: Path) -> None:
    stays, goes, comes = entry(free_port()), entry(free_port()), entry(free_port())
    unix = unix_entry(tmp_path / "s")
    with opened(stays, goes, unix) as before, renewed(before, comes, unix, stays) as (after, left_over):
        assert ports(left_over) == [goes.port]
        by_address = {one.listen.address: one for one in after.opened}
        assert by_address[stays.address].sock is before.opened[0].sock
        assert by_address[unix.address] == before.opened[2], "with its path, to be removed at the end"
        left_over.close()
        assert [accepts(listen.port) for listen in (stays, goes, comes)] == [True, False, True]


def test_its_queue_stays_too() -> None:
    listen = entry(free_port())
    with opened(listen) as before, connect(listen.port), renewed(before, listen) as (after, _):
        assert accepted(after.opened[0]) == 1


@pytest.mark.parametrize(("earlier", "later"), [(1, 3), (3, 1), (2, 2)])
def test_another_number_of_workers(earlier: int, later: int) -> None:
    own, shared = entry(free_port(), "reuseport"), entry(free_port())
    with (
        opened(own, shared, workers=earlier) as before,
        renewed(before, own, shared, workers=later) as (after, left_over),
    ):
        assert {one.worker for one in after.opened} == {*range(later), None}
        assert [one.worker for one in left_over.opened] == list(range(later, earlier))
        kept = {id(one.sock) for one in before.opened} & {id(one.sock) for one in after.opened}
        assert len(kept) == min(earlier, later) + 1


def test_flags_are_applied_and_applied_anew() -> None:
    listen = entry(free_port(), "backlog=5 so_keepalive=2m:: deferred")
    with opened(listen) as before:
        assert flags_in_force(before.opened[0].sock) == (True, 120, True, 5)
        with renewed(before, entry(listen.port, "backlog=9 so_keepalive=off proxy_protocol")) as (after, _):
            (one,) = after.opened
            assert one.listen.proxy_protocol
            keepalive, _, deferred, length = flags_in_force(one.sock)
            assert (keepalive, deferred, length) == (False, False, 9)
            with renewed(after, listen) as (again, _):
                assert flags_in_force(again.opened[0].sock) == (True, 120, True, 5)


@pytest.mark.parametrize(
    ("host", "flags", "changed", "reason"),
    [
        ("[::1]", "", "ipv6only=off", "ipv6only cannot change while the port is open, restart"),
        (LOOPBACK, "", "reuseport", "reuseport cannot change while the port is open, restart"),
        (LOOPBACK, "reuseport", "", "reuseport cannot change while the port is open, restart"),
    ],
)
def test_what_cannot_change(host: str, flags: str, changed: str, reason: str) -> None:
    port = free_port()
    with opened(parse_listen(f"{host}:{port} {flags}", HTTP_FLAGS), workers=2) as present:
        in_force = [flags_in_force(one.sock) for one in present.opened]
        before = descriptors()
        other = parse_listen(f"{host}:{port} {changed}", HTTP_FLAGS)
        with pytest.raises(StartError, match=f"^cannot listen on .*: {reason}$"):
            present.renewed([entry(free_port()), other], 2, 60.0)
        assert descriptors() == before
        assert [flags_in_force(one.sock) for one in present.opened] == in_force


@pytest.mark.parametrize("flag", ["so_keepalive=12h::", "so_keepalive=99999999999s::", "so_keepalive=::128"])
def test_more_than_linux_takes_is_ignored_as_in_nginx(flag: str, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with opened(entry(port, flag)) as present:
        assert "so_keepalive: " in caplog.text
        with renewed(present, entry(port, f"{flag} backlog=9")) as (after, _):
            keepalive, _, _, length = flags_in_force(after.opened[0].sock)
            assert (keepalive, length) == (True, 9)


def test_a_very_long_timeout_with_deferred() -> None:
    (sock,) = bind(entry(free_port(), "deferred"), 1e13)
    with sock:
        assert flags_in_force(sock)[2]


@pytest.mark.parametrize("order", [1, -1])
def test_a_renewal_that_fails_changes_nothing(order: int, tmp_path: Path) -> None:
    listen, goes = entry(free_port(), "backlog=5"), entry(free_port())
    unix = unix_entry(tmp_path / "s")
    with opened(listen, goes, unix) as present, opened(entry(free_port())) as others:
        before, in_force = descriptors(), flags_in_force(present.opened[0].sock)
        wanted = [
            entry(listen.port, "backlog=9 so_keepalive=on"),
            entry(free_port()),
            others.opened[0].listen,
        ]
        with pytest.raises(StartError, match="Address already in use"):
            present.renewed(wanted[::order], 0, 60.0)
        assert descriptors() == before
        assert flags_in_force(present.opened[0].sock) == in_force
        assert accepts(listen.port)
        assert accepts(goes.port)
        assert (tmp_path / "s").exists()


def test_reuseport_means_nothing_to_a_unix_socket(tmp_path: Path) -> None:
    unix = unix_entry(tmp_path / "s", "reuseport")
    with opened(unix, workers=2) as before, renewed(before, unix, workers=3) as (after, left_over):
        assert after.opened == before.opened
        assert left_over.opened == []


# Handed over


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "x", "LISTEN_PID": "own"},
    ],
)
def test_nothing_is_handed_over(environ: dict[str, str]) -> None:
    own = {name: value.replace("own", str(os.getpid())) for name, value in environ.items()}
    assert inherited(own) == []


def test_an_inherited_socket_goes_to_the_entry_with_its_address(tmp_path: Path) -> None:
    first, second = entry(free_port(), "reuseport"), entry(free_port())
    unix = unix_entry(tmp_path / "s")
    handed = [bind_unix(str(tmp_path / "s")), *bind(first)]
    with opened(first, second, unix, workers=2, inherited=handed) as sockets:
        found = {one.listen: (one.sock in handed, one.worker, one.path) for one in sockets.opened}
        assert found == {first: (True, None, None), second: (False, None, None), unix: (True, None, None)}
        sockets.turn_newcomers_away()
        assert (tmp_path / "s").exists(), "it is not ours to remove"
        with renewed(sockets, first, unix, workers=3) as (after, left_over):
            assert {one.sock for one in after.opened} == {*handed}
            assert ports(left_over) == [second.port]


def test_what_systemd_opens_it_also_configures() -> None:
    (handed,) = bind(entry(free_port(), "backlog=5 so_keepalive=2m::"))
    listen = entry(handed.getsockname()[1])
    in_force = flags_in_force(handed)
    with opened(listen, inherited=[handed]) as sockets, opened(entry(free_port())) as others:
        assert flags_in_force(handed) == in_force
        changed = entry(listen.port, "backlog=9 proxy_protocol")
        with pytest.raises(StartError, match="Address already in use"):
            sockets.renewed([changed, others.opened[0].listen], 0, 60.0)
        assert flags_in_force(handed) == in_force
        with renewed(sockets, changed) as (after, _):
            assert after.opened[0].listen.proxy_protocol
            assert flags_in_force(handed) == in_force


def test_an_inherited_socket_that_no_entry_is_for() -> None:
    listen = entry(free_port())
    handed = bind(entry(free_port()))
    address = "{}:{}".format(*handed[0].getsockname())
    with pytest.raises(
        StartError, match=rf"^LISTEN_FDS: no entry of .* is for the inherited socket {address}$"
    ):
        open_all([listen], 0, 60.0, handed)
    assert not accepts(listen.port)
    handed[0].close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b"])
def test_a_name_that_stands_for_nothing_beside_an_inherited_socket(host: str) -> None:
    handed = bind(entry(free_port()))
    with handed[0], pytest.raises(StartError, match=f"^cannot listen on {host}:8000: .+"):
        open_all([Listen(host, 8000)], 0, 60.0, handed)


# As systemd does it: the descriptors from 3 on, their number, and for whom they are.
_HAND_OVER = """
import fcntl, os, sys
descriptors, owner = sys.argv[1].split(","), sys.argv[2]
aside = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 100) for descriptor in descriptors]
for place, descriptor in enumerate(aside, 3):
    os.dup2(descriptor, place)
    os.close(descriptor)
os.environ.update(LISTEN_FDS=str(len(aside)), LISTEN_PID=owner or str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "kongrealip", "serve", *sys.argv[3:]])
"""


def handing_over(
    files: Sequence[socket.socket | IO[bytes]], args: Sequence[str], owner: str = ""
) -> list[str]:
    numbers = ",".join(str(file.fileno()) for file in files)
    return [sys.executable, "-c", _HAND_OVER, numbers, owner, *args]


@contextmanager
def serving_on(
    files: Sequence[socket.socket], environ: dict[str, str], *args: str, owner: str = ""
) -> Iterator[Program]:
    """``kongrealip serve`` with these descriptors from 3 on, which this process holds as well."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            handing_over(files, args, owner),
            env={**clean_environ(), **environ}, pass_fds=[file.fileno() for file in files],
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        )  # fmt: skip
        program = Program(process, (), stdout, stderr)
        try:
            program.wait_for_stderr("Application startup complete")
            yield program
            assert program.stop() == 0
        except BaseException as error:
            error.add_note(program.stderr)
            raise
        finally:
            program.stop()


def refused(file: socket.socket | IO[bytes], environ: dict[str, str]) -> str:
    """The last line of a server that cannot start, with this descriptor as its number 3."""
    result = subprocess.run(
        handing_over([file], []), env={**clean_environ(), **environ}, pass_fds=[file.fileno()],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert result.returncode == 3, result.stderr
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_serving_on_what_systemd_hands_over(workers: tuple[str, ...], tmp_path: Path) -> None:
    port, status, path = free_port(), free_port(), tmp_path / "s"
    environ = {
        # As in Kong's default: reuseport asks for a socket for each worker, and there is this one.
        "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port} proxy_protocol reuseport",
        "KONG_STATUS_LISTEN": f"{LOOPBACK}:{status}",
        "KONG_TRUSTED_IPS": "127.0.0.0/8",
        "KONG_REAL_IP_HEADER": "proxy_protocol",
    }
    (tcp,), (for_status,), unix = bind(entry(port)), bind(entry(status)), bind_unix(str(path))
    with tcp, for_status, unix:
        with serving_on([unix, for_status, tcp], environ, "--uds", str(path), *workers):
            answer, _ = exchange(port, b"PROXY TCP4 203.0.113.7 1.1.1.1 5 443\r\n" + REQUEST)
            assert b'"client_ip":"203.0.113.7"' in answer
            assert b'"peer_ip":"unix:"' in unix_request(path, REQUEST)
            assert fetch(status, path="/status/ready") == {"message": "ready"}
        assert path.exists(), "it is systemd's, and so is the queue"


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_who_connects_between_two_services_waits_for_the_next(workers: tuple[str, ...]) -> None:
    (handed,) = bind(entry(free_port()))
    port = handed.getsockname()[1]
    environ = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}
    with handed:
        with serving_on([handed], environ, *workers):
            fetch(port)
        with connect(port) as sock:
            sock.sendall(REQUEST)
            with serving_on([handed], environ, *workers):
                assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_renewal_keeps_what_was_handed_over(tmp_path: Path) -> None:
    (handed,) = bind(entry(free_port()))
    port = handed.getsockname()[1]
    file = tmp_path / "env"
    file.write_text("KONG_TRUSTED_IPS=127.0.0.0/8")
    environ = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port} reuseport"}
    with handed, serving_on([handed], environ, "--workers", "2", "--env-file", str(file)) as server:
        assert fetch(port)["peer_trusted"]
        file.write_text("")
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for_stderr("SIGHUP: the new configuration is in force")
        wait_until(lambda: not fetch(port)["peer_trusted"], "an answer under the new configuration")


def test_what_is_for_another_process_is_left_alone() -> None:
    (handed,) = bind(entry(free_port()))
    port = free_port()
    with handed, serving_on([handed], {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}, owner="1"):
        assert fetch(port)["source"] == "peer"


def test_a_socket_that_no_entry_is_for_keeps_it_from_starting() -> None:
    (handed,) = bind(entry(free_port()))
    with handed:
        last = refused(handed, {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{free_port()}"})
        address = "{}:{}".format(*handed.getsockname())
    assert last.startswith("kongrealip: LISTEN_FDS: no entry of KONG_PROXY_LISTEN")
    assert last.endswith(f" is for the inherited socket {address}")


def no_socket() -> IO[bytes]:
    return tempfile.TemporaryFile()


def connected() -> socket.socket:
    """As with Accept=yes."""
    one, other = socket.socketpair()
    other.close()
    return one


def datagrams() -> socket.socket:
    """As with ListenDatagram=."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def bound() -> socket.socket:
    return socket.socket()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_socket, "is no socket: Socket operation on non-socket"),
        (connected, "is no listening stream socket"),
        (datagrams, "is no listening stream socket"),
        (bound, "is no listening stream socket"),
    ],
)
def test_what_cannot_be_listened_on(make: Callable[[], socket.socket | IO[bytes]], reason: str) -> None:
    port = free_port()
    with make() as file:
        if make in (datagrams, bound):
            assert isinstance(file, socket.socket)
            file.bind((LOOPBACK, port))
        last = refused(file, {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"})
    assert last.startswith(f"kongrealip: LISTEN_FDS: descriptor 3 {reason}")


ACTIVATE = shutil.which("systemd-socket-activate")
ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ACTIVATE is None, reason="systemd is not installed; the same is tested above by hand")
def test_systemds_own_hand_over() -> None:
    assert ACTIVATE is not None
    port = free_port()
    environ = {**clean_environ(), "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}
    # It hands its own environment down only by name.
    passed = [f"--setenv={name}" for name in environ if name != "PATH"]
    command = [ACTIVATE, f"--listen={LOOPBACK}:{port}", *passed, sys.executable, "-m", "kongrealip", "serve"]
    with running(command, environ, [port]) as program:
        assert fetch(port)["source"] == "peer"
        assert program.stop() == 0
        assert "Application startup complete" in program.stderr


# The units in examples/systemd


def unit(name: str) -> list[tuple[str, str]]:
    """The settings of a unit in order, for a name may stand there several times."""
    lines = (SYSTEMD / name).read_text().splitlines()
    return [
        (line.partition("=")[0], line.partition("=")[2]) for line in lines if line[:1] not in ("", "#", "[")
    ]


def of_unit(name: str, key: str) -> list[str]:
    return [value for found, value in unit(name) if found == key]


def environ_of_service() -> dict[str, str]:
    words = [word for value in of_unit("kongrealip.service", "Environment") for word in shlex.split(value)]
    return dict(word.split("=", 1) for word in words)


def test_the_units_name_the_same_listeners() -> None:
    settings = Settings.load(environ_of_service())
    assert settings.warnings == ()
    assert [listen.address for listen in settings.proxy_listen] == of_unit(
        "kongrealip.socket", "ListenStream"
    )
    assert all(listen.proxy_protocol for listen in settings.proxy_listen)


def test_the_service_starts_and_renews_as_it_should(tmp_path: Path) -> None:
    (start,) = of_unit("kongrealip.service", "ExecStart")
    file = tmp_path / "env"
    file.write_text("KONG_TRUSTED_IPS=10.0.0.0/8")
    program, name, *args = [word.replace("/etc/kongrealip.env", str(file)) for word in shlex.split(start)]
    assert Path(program).name == "kongrealip"
    parameters = cli.commands[name].make_context(name, args).params
    assert (parameters["workers"], parameters["env_file"]) == ("auto", str(file)), "as the reload needs them"
    assert of_unit("kongrealip.service", "ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert of_unit("kongrealip.service", "KillMode") == ["mixed"]


@pytest.mark.skipif(ANALYZE is None, reason="systemd, which checks its own units, is not installed")
def test_the_units_as_systemd_reads_them(tmp_path: Path) -> None:
    assert ANALYZE is not None
    for path in SYSTEMD.iterdir():
        # It wants to see the program, which is somewhere else here.
        text = path.read_text().replace("/opt/kongrealip/bin/kongrealip", sys.executable)
        (tmp_path / path.name).write_text(text)
    files = sorted(str(path) for path in tmp_path.iterdir())
    result = subprocess.run(
        [ANALYZE, "verify", *files], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
