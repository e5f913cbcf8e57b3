"""Bind, accept, read the preamble, hand the socket on.

The preamble is read with MSG_PEEK and then taken off the socket byte for byte, so that TLS and
HTTP find their own first byte where they expect it and nothing has to be put back.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable

from kongrealip.address import Address
from kongrealip.config.listen import Keepalive, Listen
from kongrealip.errors import PreambleError, StartError
from kongrealip.preamble import Preamble, parse
from kongrealip.realip import Connection
from kongrealip.realip.networks import UNIX
from kongrealip.server.refusals import RefusalLog

logger = logging.getLogger("kongrealip.server")

_BACKLOG = 2048
# Enough to take a burst off the queue, few enough to let the connections at hand have a turn.
_ACCEPTS_A_WAKE_UP = 64
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 0.5
# nginx's value for `deferred`: how long the kernel keeps a silent connection to itself.
_DEFER_SECONDS = 1

HandOver = Callable[[socket.socket, Connection, Listen], None]


def bind(listen: Listen) -> list[socket.socket]:
    """Open the listening sockets of one entry: a name may stand for several addresses.

    Raises StartError with one line that names the entry.
    """
    host = None if listen.host == "*" else listen.host.strip("[]")
    family = socket.AF_INET if host is None else socket.AF_UNSPEC
    try:
        found = socket.getaddrinfo(
            host, listen.port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # A name may be listed twice for one address, in /etc/hosts for instance.
        return [_bound(listen, family, address) for family, address in {f[0::4]: 0 for f in found}]
    except OSError as error:
        raise StartError(f"cannot listen on {listen}: {error.strerror or error}") from error


def bind_unix(path: str) -> socket.socket:
    """Open a listening Unix socket, in the place of one that nobody listens on any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        # As nginx and uvicorn leave it: who may connect is decided by the directory.
        os.chmod(path, 0o666)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on unix:{path}: {error.strerror or error}") from error
    return sock


def _remove_stale(path: str) -> None:
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)


def _bound(listen: Listen, family: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # nginx's default, so that [::]:80 and 0.0.0.0:80 can stand side by side.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "ipv6only=off" not in listen.flags)
        if "deferred" in listen.flags:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_SECONDS)
        _set_keepalive(sock, listen.keepalive)
        sock.bind(address)
        sock.listen(min(_BACKLOG if listen.backlog is None else listen.backlog, 0x7FFFFFFF))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _set_keepalive(sock: socket.socket, keepalive: Keepalive | bool | None) -> None:
    """On the listening socket, from which Linux hands it down to the accepted ones."""
    if keepalive is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalive is not False)
    if isinstance(keepalive, Keepalive):
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        for option, value in zip(options, keepalive, strict=True):
            if value is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Listener:
    """One listening socket: accepts, reads preambles, and hands sockets to ``hand_over``.

    A handed-over socket is non-blocking and stands at the first byte behind the preamble. What
    has no valid preamble within ``timeout`` seconds and ``limit`` bytes is closed without an
    answer and reported to ``refusals``.
    """

    def __init__(
        self,
        sock: socket.socket,
        listen: Listen,
        hand_over: HandOver,
        refusals: RefusalLog,
        timeout: float,
        limit: int,
    ) -> None:
        self.listen = listen
        self.refusals = refusals
        self.timeout = timeout
        self.limit = limit
        self.waiting: set[_HalfRead] = set()
        self._sock = sock
        self._hand_over = hand_over
        self._is_unix = sock.family == socket.AF_UNIX
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Stop accepting, and close at once what has not shown a whole preamble."""
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._sock)
        if self._is_unix:
            os.unlink(self._sock.getsockname())
        self._sock.close()
        for half_read in list(self.waiting):
            half_read.close()

    def hand_over(self, sock: socket.socket, peer: Address, preamble: Preamble | None) -> None:
        self._hand_over(sock, Connection(peer, preamble, self.listen.ssl), self.listen)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_WAKE_UP):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause(error)
                return
            sock.setblocking(False)
            peer = Address(UNIX, None) if self._is_unix else Address(address[0], address[1])
            if self.listen.proxy_protocol:
                _HalfRead(self, self._loop, sock, peer).read()
            else:
                self.hand_over(sock, peer, None)

    def _pause(self, error: OSError) -> None:
        """Leave the queue alone for a moment: with no descriptor left, accept would spin."""
        self.refusals.write("new connections", str(self.listen), f"{error.strerror}, pausing")
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._loop.add_reader, self._sock, self._accept)


class _HalfRead:
    """A connection of which the whole preamble has not been seen yet."""

    __slots__ = ("_deadline", "_held", "_listener", "_loop", "_peer", "_sock")

    def __init__(
        self, listener: Listener, loop: asyncio.AbstractEventLoop, sock: socket.socket, peer: Address
    ) -> None:
        self._listener = listener
        self._loop = loop
        self._sock = sock
        self._peer = peer
        self._held = b""
        self._deadline: asyncio.TimerHandle | None = None

    def read(self) -> None:
        """Read what is there: at once after accept, and again whenever more has come."""
        listener = self._listener
        try:
            peeked = self._sock.recv(listener.limit - len(self._held), socket.MSG_PEEK)
            if not peeked:
                self._refuse("closed before its preamble was complete")
                return
            parsed = parse(self._held + peeked, listener.limit)
            if parsed is None:
                # All of it belongs to the preamble. Left in the socket, it would keep the
                # socket readable, and this would spin.
                self._held += self._sock.recv(len(peeked))
                self._wait()
                return
            preamble, end = parsed
            self._sock.recv(end - len(self._held))
        except (BlockingIOError, InterruptedError):
            self._wait()
        except PreambleError as error:
            self._refuse(str(error))
        except OSError:
            # Reset by the peer, as port scanners and some probes do. Nothing to tell.
            self.close()
        else:
            self._stop_waiting()
            listener.hand_over(self._sock, self._peer, preamble)

    def close(self) -> None:
        self._stop_waiting()
        self._sock.close()

    def _wait(self) -> None:
        if self._deadline is None:
            self._listener.waiting.add(self)
            self._loop.add_reader(self._sock, self.read)
            # One deadline for the whole preamble: a byte now and then does not extend it.
            self._deadline = self._loop.call_later(
                self._listener.timeout, self._refuse, "no whole preamble before the deadline"
            )

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._loop.remove_reader(self._sock)
            self._listener.waiting.discard(self)

    def _refuse(self, reason: str) -> None:
        peer = self._peer.ip if self._peer.port is None else f"{self._peer.ip}:{self._peer.port}"
        self._listener.refusals.write(peer, str(self._listener.listen), reason)
        self.close()
