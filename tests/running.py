"""Real processes and real sockets: ``kongrealip serve`` as an operator starts it, and its clients.

Everything stays on loopback. The client has an address of its own: where client and balancer
were both 127.0.0.1, a walk past trusted hops would land on the forged entry.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

LOOPBACK = "127.0.0.1"
CLIENT_IP = "127.0.0.9"
#: Nobody but the balancer, which connects from here.
TRUST_THE_BALANCER = {"KONG_TRUSTED_IPS": f"{LOOPBACK}/32"}

_PATIENCE_SECONDS = 8.0
_POLL_SECONDS = 0.02
# SO_LINGER with no time at all: close() then sends a reset.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_handed_out: set[int] = set()

Headers = Sequence[tuple[str, str]]
#: What whoami answers with.
Seen = dict[str, Any]


def free_port() -> int:
    """A port that nothing listens on, never the same one twice.

    From below the range of outgoing connections, none of which can take it before its server does.
    """
    while True:
        port = random.randrange(10240, 32768)
        with socket.socket() as probe:
            if port not in _handed_out and probe.connect_ex((LOOPBACK, port)) != 0 and _bindable(port):
                _handed_out.add(port)
                return port


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll, and fail with ``what`` when patience ends."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"in vain waited for {what}")
        time.sleep(_POLL_SECONDS)


def accepts(port: int) -> bool:
    """Whether somebody listens there. Leaves with a reset, of which a server has nothing to log."""
    with socket.socket() as probe:
        if probe.connect_ex((LOOPBACK, port)) != 0:
            return False
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        return True


class Program:
    """A process that this test started, its ports, and what it wrote so far."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ports: Sequence[int],
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> None:
        self.ports = tuple(ports)
        self._process = process
        self._stdout = stdout
        self._stderr = stderr

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return _written(self._stdout)

    @property
    def stderr(self) -> str:
        return _written(self._stderr)

    def wait_for_ports(self) -> None:
        for port in self.ports:
            wait_until(partial(self._accepts_or_ended, port), f"port {port}")
        assert not self._ended(), f"ended with {self._process.returncode} instead of listening"

    def wait_for_stderr(self, text: str) -> str:
        """Wait for a line with ``text`` in it, and return everything written so far."""
        wait_until(lambda: text in self.stderr, f"{text!r} on standard error")
        return self.stderr

    def terminate(self) -> None:
        """Ask to end, with SIGTERM."""
        self._process.terminate()

    def wait(self) -> int:
        """The exit code, where it ends in time."""
        return self._process.wait(_PATIENCE_SECONDS)

    def stop(self) -> int:
        """End, by force as the last resort. A second call only tells the exit code again."""
        try:
            self._process.terminate()
            return self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _accepts_or_ended(self, port: int) -> bool:
        return self._ended() or accepts(port)

    def _ended(self) -> bool:
        return self._process.poll() is not None


def _written(file: IO[bytes]) -> str:
    # The process shares the file's position, so this reads without moving it.
    return os.pread(file.fileno(), 1 << 20, 0).decode("utf-8", "replace")


@contextmanager
def running(
    command: Sequence[str | Path],
    environ: Mapping[str, str],
    ports: Sequence[int],
    folder: Path | None = None,
) -> Iterator[Program]:
    """Start a program, wait until its ports accept, and end it by its pid."""
    # Files and not pipes: nobody has to read along, and a chatty program never blocks.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        program = Program(process, ports, stdout, stderr)
        try:
            program.wait_for_ports()
            yield program
        except BaseException as error:
            error.add_note(f"{command[0]} wrote:\n{program.stdout}{program.stderr}")
            raise
        finally:
            program.stop()


@contextmanager
def serving(environ: Mapping[str, str], *args: str | Path) -> Iterator[Program]:
    """``kongrealip serve`` with these variables and arguments, ended by SIGTERM, which it must obey."""
    ports = [int(port) for port in re.findall(r":(\d+)", environ.get("KONG_PROXY_LISTEN", ""))]
    command = [sys.executable, "-m", "kongrealip", "serve", *args]
    with running(command, {**clean_environ(), **environ}, ports) as program:
        yield program
        assert program.stop() == 0, "SIGTERM is the ordinary end"


def clean_environ() -> dict[str, str]:
    """Nothing that could configure a server, but for what lets coverage follow into the process."""
    return {
        name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("COVERAGE_")
    }


def connect(port: int, source_ip: str = CLIENT_IP) -> socket.socket:
    """A connection from ``source_ip``, over IPv6 where that is an IPv6 address."""
    host = "::1" if ":" in source_ip else LOOPBACK
    return socket.create_connection((host, port), _PATIENCE_SECONDS, (source_ip, 0))


class Client:
    """One HTTP/1.1 connection: ``ip`` and ``port`` are its own end, ``get`` asks on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.ip: str
        self.port: int
        self.ip, self.port = sock.getsockname()[:2]
        self._http = http.client.HTTPConnection(LOOPBACK)
        self._http.sock = sock
        # A connection that the server closed is to be an error, and not opened anew.
        self._http.auto_open = 0

    def get(self, path: str = "/", headers: Headers = ()) -> Seen:
        """Ask, and return the JSON of the answer, whose status must be 200."""
        self._http.putrequest("GET", path, skip_accept_encoding=True)
        for name, value in headers:
            self._http.putheader(name, value)
        self._http.endheaders()
        response = self._http.getresponse()
        body = response.read()
        assert response.status == 200, body
        seen: Seen = json.loads(body)
        return seen


@contextmanager
def client(
    port: int,
    source_ip: str = CLIENT_IP,
    *,
    preamble: bytes = b"",
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> Iterator[Client]:
    """Connect, send ``preamble`` and, with ``tls``, shake hands with ``server_name``."""
    with connect(port, source_ip) as sock:
        sock.sendall(preamble)
        if tls is None:
            yield Client(sock)
        else:
            with tls.wrap_socket(sock, server_hostname=server_name) as encrypted:
                yield Client(encrypted)


def fetch(
    port: int,
    *,
    source_ip: str = CLIENT_IP,
    path: str = "/",
    headers: Headers = (),
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> Seen:
    """One request on a connection of its own."""
    with client(port, source_ip, tls=tls, server_name=server_name) as asking:
        return asking.get(path, headers)


def exchange(port: int, data: bytes, source_ip: str = CLIENT_IP) -> tuple[bytes, str]:
    """Send raw bytes and read until the server closes. Returns its bytes and the sender's ip:port."""
    with connect(port, source_ip) as sock:
        sock.sendall(data)
        answer = b"".join(received(sock))
        ip, sender_port = sock.getsockname()[:2]
        return answer, f"{ip}:{sender_port}"


def received(sock: socket.socket) -> Iterator[bytes]:
    """What arrives until the other side closes, be it with a reset."""
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return
        if not data:
            return
        yield data
