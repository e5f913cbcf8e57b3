"""A peer that asks and resets the connection before anybody has looked at it.

A server that asks the socket for its peer then finds nothing, and nothing is what a Unix socket has
as well: whoever leaves at once must not be trusted as that.
"""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from kongrealip.address import Address
from kongrealip.preamble import writing
from tests.running import LOOPBACK, connect, wait_until
from tests.servers.programs import BY_PREAMBLE, CONFIGURED, SERVERS, fetch, serving, where_from

FORGED = "6.6.6.6"
PREAMBLE = writing.v1(Address(FORGED, 51000), Address("10.0.0.1", 80))
ONE_AT_A_TIME = [name for name in SERVERS if name not in ("werkzeug", "runserver")]
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def leave_at_once(port: int, data: bytes) -> None:
    with connect(port, "127.0.0.66") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.sendall(data)


def seen_while_busy(
    name: str, folder: Path, environ: dict[str, str], data: bytes, *options: str
) -> list[Any]:
    """What a server makes of a connection that it accepts when it is over already."""
    log = folder / "seen"
    with serving(name, environ | {"SEEN": str(log)}, *options) as program:
        with connect(program.port, LOOPBACK) as busy:
            busy.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(log.exists, "the request that keeps the server busy")
            leave_at_once(program.port, data)
            Path(f"{log}.go").touch()
            assert busy.recv(1)
        # Served behind the other one, or in its place.
        assert where_from(fetch(program.port)) == (LOOPBACK, "peer")
    first, *others, _ = (json.loads(line) for line in log.read_text().splitlines())
    assert first["peer"] == LOOPBACK
    return others


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_it_is_not_taken_for_a_unix_socket(tmp_path: Path, name: str) -> None:
    environ = CONFIGURED | {"KONG_TRUSTED_IPS": f"unix:,{LOOPBACK}"}
    request = f"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {FORGED}\r\n\r\n".encode()
    for seen in seen_while_busy(name, tmp_path, environ, request):
        assert seen["client"] in ("127.0.0.66", "")
        assert not seen["peer_trusted"]


@pytest.mark.parametrize("name", ["gunicorn, sync", "gunicorn, gthread"])
def test_nor_is_its_preamble_believed(tmp_path: Path, name: str) -> None:
    environ = BY_PREAMBLE | {"KONG_TRUSTED_IPS": f"unix:,{LOOPBACK}"}
    request = PREAMBLE + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    reads = ("--proxy-protocol", "auto", "--proxy-allow-from", "*")
    (seen,) = seen_while_busy(name, tmp_path, environ, request, *reads)
    assert (seen["client"], seen["peer"], seen["peer_trusted"]) == ("", "", False)
