"""Bind, accept, read the preamble, hand the socket on.

The preamble is read with MSG_PEEK and then taken off the socket byte for byte, so that TLS and
HTTP find their own first byte where they expect it and nothing has to be put back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
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

_BACKLOG = 2048
# Enough to take a burst off the queue, few enough to let the connections at hand have a turn.
_ACCEPTS_A_WAKE_UP = 64
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 0.5
# Linux reports what befell a connection in the queue as accept's own error. See accept(2).
_OF_THAT_CONNECTION = (
    errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
)  # fmt: skip

HandOver = Callable[[socket.socket, Connection, Listen], None]


# socket.socket makes an enumeration member of its family and its type at each look, and between
# here and the transport there are five looks: two microseconds of each connection's hundred.
_SOCKET_CLASSES = {
    family: type(
        "_AcceptedSocket", (socket.socket,), {"__slots__": (), "family": family, "type": socket.SOCK_STREAM}
    )
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
}


def bind(listen: Listen, defer: float = 60.0) -> list[socket.socket]:
    """Open the listening sockets of one entry: a name may stand for several addresses.

    With the flag ``deferred`` the kernel keeps a connection that says nothing to itself for about
    ``defer`` seconds, which nginx sets to client_header_timeout as well. Raises StartError with
    one line that names the entry.
    """
    host = "0.0.0.0" if listen.host == "*" else listen.host.strip("[]")  # noqa: S104 - as asked for
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name may be listed twice for one address, in /etc/hosts for instance.
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            opened.append(_bound(listen, family, address, defer))
    except OSError as error:
        for sock in opened:
            sock.close()
        raise StartError(f"cannot listen on {listen}: {error.strerror or error}") from error
    return opened


def bind_unix(path: str) -> socket.socket:
    """Open a listening Unix socket, in the place of one that nobody listens on any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        # As nginx and uvicorn leave it: who may connect is decided by the directory.
        os.chmod(path, 0o666)  # noqa: S103
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


def _bound(listen: Listen, family: int, address: tuple[object, ...], defer: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # nginx's default, so that [::]:80 and 0.0.0.0:80 can stand side by side.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "ipv6only=off" not in listen.flags)
        if "deferred" in listen.flags:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, max(1, int(defer)))
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
        self._sock = sock
        self._listen = listen
        self._hand_over = hand_over
        self._refusals = refusals
        self._timeout = timeout
        self._limit = limit
        self._is_unix = sock.family == socket.AF_UNIX
        self._family = sock.family
        self._socket_class = _SOCKET_CLASSES[sock.family]
        # Where the listener stands on one address, that is the local end of every connection.
        name = sock.getsockname()
        self._local = (name, None) if self._is_unix else (name[0], name[1])
        self._is_wildcard = name[0] in ("0.0.0.0", "::")  # noqa: S104 - compared only
        self._loop = asyncio.get_running_loop()
        # In the order of their deadlines, because all have the same time.
        self._waiting: dict[_HalfRead, float] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._paused: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Stop accepting, and close at once what has not shown a whole preamble."""
        for timer in (self._paused, self._deadline):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._sock)
        if self._is_unix:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._sock.getsockname())
        self._sock.close()
        for half_read in list(self._waiting):
            self._forget(half_read)
            half_read.sock.close()

    def _accept(self) -> None:
        accepted: list[tuple[socket.socket, Address]] = []
        try:
            while len(accepted) < _ACCEPTS_A_WAKE_UP and (connection := self._accept_one()):
                accepted.append(connection)
        finally:
            # All are accepted before the first is read: it takes a moment, and that is the moment
            # in which a balancer that has just connected sends its preamble.
            for sock, peer in accepted:
                if self._listen.proxy_protocol:
                    self._read(_HalfRead(sock, peer))
                else:
                    self._give_away(sock, peer, None)

    def _accept_one(self) -> tuple[socket.socket, Address] | None:
        """The next connection, or None where there is none to be had now."""
        while True:
            try:
                # What socket.accept() itself calls, for the descriptor without the object.
                descriptor, address = self._sock._accept()  # type: ignore[attr-defined]
                break
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._pause(error)
                    return None
                if error.errno not in _OF_THAT_CONNECTION:
                    raise
        sock = self._socket_class(self._family, socket.SOCK_STREAM, 0, descriptor)
        sock.setblocking(False)
        return sock, Address(UNIX, None) if self._is_unix else Address(address[0], address[1])

    def _pause(self, error: OSError) -> None:
        """Leave the queue alone for a moment: with no descriptor left, accept would spin."""
        self._refusals.write("new connections", str(self._listen), f"{error.strerror}, pausing")
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._loop.add_reader, self._sock, self._accept)

    def _read(self, half_read: _HalfRead) -> None:
        """Read what is there: at once after accept, and again whenever more has come."""
        try:
            preamble = half_read.read(self._limit)
        except PreambleError as error:
            self._refuse(half_read, str(error))
        except OSError:
            # Reset by the peer, as port scanners and some probes do. Nothing to tell.
            self._forget(half_read)
            half_read.sock.close()
        else:
            if preamble is None:
                self._wait(half_read)
                return
            self._forget(half_read)
            self._give_away(half_read.sock, half_read.peer, preamble)

    def _give_away(self, sock: socket.socket, peer: Address, preamble: Preamble | None) -> None:
        local = sock.getsockname()[:2] if self._is_wildcard else self._local
        self._hand_over(sock, Connection(peer, local, preamble, self._listen.ssl), self._listen)

    def _wait(self, half_read: _HalfRead) -> None:
        if half_read in self._waiting:
            return
        self._loop.add_reader(half_read.sock, self._read, half_read)
        # One deadline for the whole preamble: a byte now and then does not extend it.
        self._waiting[half_read] = self._loop.time() + self._timeout
        if self._deadline is None:
            self._deadline = self._loop.call_later(self._timeout, self._expire)

    def _expire(self) -> None:
        """Refuse those whose time is over. One timer serves all of them, because one is enough."""
        self._deadline = None
        now = self._loop.time()
        for half_read, deadline in list(self._waiting.items()):
            if deadline > now:
                self._deadline = self._loop.call_at(deadline, self._expire)
                break
            self._refuse(half_read, "no whole preamble before the deadline")

    def _forget(self, half_read: _HalfRead) -> None:
        if self._waiting.pop(half_read, None) is not None:
            self._loop.remove_reader(half_read.sock)

    def _refuse(self, half_read: _HalfRead, reason: str) -> None:
        ip, port = half_read.peer
        peer = ip if port is None else f"{ip}:{port}"
        self._refusals.write(peer, str(self._listen), reason)
        self._forget(half_read)
        half_read.sock.close()


class _HalfRead:
    """A connection of which the whole preamble has not been seen yet."""

    __slots__ = ("_held", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        self.sock = sock
        self.peer = peer
        self._held = b""

    def read(self, limit: int) -> Preamble | None:
        """Take what belongs to the preamble off the socket; None where more is needed.

        Raises PreambleError where this can become none, OSError where the connection is lost.
        """
        try:
            peeked = self.sock.recv(limit - len(self._held), socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return None
        if not peeked and not self._held:
            # A health check that only connects, many times a minute: not worth a line.
            raise ConnectionAbortedError
        if not peeked:
            raise PreambleError("closed in the middle of its preamble")
        parsed = parse(self._held + peeked, limit)
        if parsed is None:
            # All of it belongs to the preamble. Left in the socket, it would keep the socket
            # readable, and the loop would spin.
            self._held += self.sock.recv(len(peeked))
            return None
        preamble, end = parsed
        self.sock.recv(end - len(self._held))
        return preamble
