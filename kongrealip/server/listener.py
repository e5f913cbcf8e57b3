"""Accept, read the preamble, hand the socket on.

The preamble is read with MSG_PEEK and taken off the socket when it is whole, byte for byte, so
that TLS and HTTP find their own first byte where they expect it and nothing has to be put back.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import socket

from kongrealip.address import Address
from kongrealip.config.listen import Listen
from kongrealip.errors import PreambleError
from kongrealip.preamble import Preamble, parse
from kongrealip.realip.networks import UNIX
from kongrealip.server.reception import Arrival, Reception, printed
from kongrealip.server.waiting import WaitingRoom

logger = logging.getLogger("kongrealip.server")

# Short, because after a shortage the queue is full of clients that have gone: each batch of them
# uses the descriptors up again, and costs another pause.
_PAUSE_SECONDS = 0.05
# How many to accept at once where no cap counts any more.
_TO_THE_END = 64
# Linux reports what befell a connection in the queue as accept's own error. See accept(2).
_OF_THAT_CONNECTION = (
    errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
)  # fmt: skip
# What a peer may send instead of a preamble where it need not send one.
_NO_PREAMBLE = ("http", "tls", "not_proxy")
# What a receive buffer surely has room for, and more than most preambles and ClientHellos have.
_LONG = 4096
# A Unix socket has room for no more than some seventy writes, however short. Longer than what may
# be the beginning of something else than a preamble.
_LONG_FOR_UNIX = 16
_HANDSHAKE_RECORD = 0x16
_NONE_OF_IT = (None, 0)
_UNIX_PEER = Address(UNIX, None)


# socket.socket makes an enumeration member of its family and its type at each look, and between
# here and the transport there are five looks: two microseconds of each connection's hundred.
_SOCKET_CLASSES = {
    family: type(
        "_AcceptedSocket", (socket.socket,), {"__slots__": (), "family": family, "type": socket.SOCK_STREAM}
    )
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
}


class Listener:
    """One listening socket: accepts, reads preambles, and gives arrivals to the reception.

    What has no valid preamble is closed without an answer.
    """

    def __init__(self, sock: socket.socket, listen: Listen, reception: Reception) -> None:
        self.name = listen.address
        self._sock = sock
        self._reception = reception
        self._loop = reception.loop
        self._wants_preamble = listen.proxy_protocol
        self._is_tls = listen.ssl
        self._most_bytes = reception.limit + (_LONG + 1 if listen.ssl else 0)
        self._is_unix = sock.family == socket.AF_UNIX
        self._long = _LONG_FOR_UNIX if self._is_unix else _LONG
        self._family = sock.family
        self._socket_class = _SOCKET_CLASSES[sock.family]
        # Where the listener stands on one address, that is the local end of every connection.
        name = sock.getsockname()
        self._local = (name, None) if self._is_unix else (name[0], name[1])
        self._is_wildcard = name[0] in ("0.0.0.0", "::")  # noqa: S104 - compared only
        self._cells = reception.row.cells
        self._accepted = reception.row.place("accepted", self.name)
        self._preambles = [reception.row.place("preambles", version) for version in ("none", "1", "2")]
        self.waiting = WaitingRoom(self._loop, self._resume, self._time_out)
        # What had to be taken of preambles that are longer than most.
        self._held: dict[int, bytes] = {}
        self._paused: asyncio.TimerHandle | None = None
        self._queue = select.poll()
        self._queue.register(sock, select.POLLIN)
        reception.listeners.append(self)
        self._loop.add_reader(sock, self._accept)

    def stop(self) -> None:
        """Accept what is in the queue, and nothing after that.

        A queue that is closed with connections in it resets them, though their clients have
        seen them established and may have sent a request.
        """
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._sock)
        while self._accept_some(_TO_THE_END):
            pass
        if self._paused is not None:
            self._paused.cancel()
        self._sock.close()

    def close_waiting(self) -> None:
        """Close at once what has not shown a whole preamble."""
        for descriptor in list(self.waiting.deadlines):
            self._forget(descriptor)
            os.close(descriptor)
        self.waiting.close()

    def crowd_out(self, descriptor: int) -> None:
        """Close one that has waited for long, in favour of others."""
        self._refuse_waiting(descriptor, "too many connections are waiting", "crowded_out")

    def _accept(self) -> None:
        room = self._reception.room()
        if room > 0:
            self._accept_some(room)
        else:
            self._pause("worker_connections are not enough")

    def _accept_some(self, room: int) -> bool:
        """Accept no more than ``room``, and say whether there was anything."""
        accepted: list[tuple[socket.socket, Address]] = []
        try:
            while connection := self._accept_one():
                accepted.append(connection)
                # Most come alone, and to ask costs a fifth of accepting nothing.
                if len(accepted) == room or not self._queue.poll(0):
                    break
        finally:
            self._cells[self._accepted] += len(accepted)
            # All are accepted before the first is read: it takes a moment, and that is the moment
            # in which a balancer that has just connected sends its preamble.
            for sock, peer in accepted:
                self._look(sock, peer, False)
        return bool(accepted)

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
                if error.errno not in _OF_THAT_CONNECTION:
                    # EMFILE and its kin, or something that nobody thought of: the queue stays
                    # readable, and accepting at once again would spin.
                    self._pause(error.strerror or str(error))
                    return None
        sock = self._socket(descriptor)
        # The descriptor stays so, through all the objects that it has on its way.
        sock.setblocking(False)
        return sock, _UNIX_PEER if self._is_unix else Address(address[0], address[1])

    def _socket(self, descriptor: int) -> socket.socket:
        sock: socket.socket = self._socket_class(self._family, socket.SOCK_STREAM, 0, descriptor)
        return sock

    def _pause(self, reason: str) -> None:
        """Leave the queue alone for a moment."""
        self._reception.refusals.write_pause(self.name, reason)
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._loop.add_reader, self._sock, self._accept)

    def _look(self, sock: socket.socket, peer: Address, has_ended: bool) -> None:
        """See what has come: at once after accept, and again whenever there is more."""
        try:
            if not self._wants_preamble and not self._is_tls:
                self._go_on(sock, peer, None)
            elif not self._read(sock, peer, has_ended):
                self._wait(sock)
        except PreambleError as error:
            self._refuse(sock, peer, str(error), error.reason)
        except OSError:
            # Reset by the peer, as port scanners and some probes do. Nothing to tell.
            self._close(sock)
        except Exception:
            # Whatever one connection brings up, the others have their turn.
            logger.exception("lost a connection on %s", self.name)
            self._close(sock)

    def _read(self, sock: socket.socket, peer: Address, has_ended: bool) -> bool:
        """Go on with a connection of which enough has come, and say whether it has.

        Raises PreambleError where this can become no preamble, OSError where the connection is lost.
        """
        held = self._held.get(sock.fileno(), b"")
        try:
            peeked = sock.recv(self._most_bytes - len(held), socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        data = held + peeked
        if not data:
            # A health check that only connects, many times a minute: not worth a line.
            raise ConnectionAbortedError
        found = self._parse(data, peer)
        if found is None:
            if has_ended or not peeked:
                raise PreambleError("closed in the middle of its preamble", "cut_off")
            if len(peeked) > self._long:
                # All of it belongs to the preamble, and the rest might not fit in behind it.
                self._held[sock.fileno()] = held + sock.recv(len(peeked))
            return False
        preamble, end = found
        if self._is_tls and not _may_shake_hands(data, end, self._long):
            if has_ended:
                raise ConnectionAbortedError
            return False
        if end:
            sock.recv(end - len(held))
        self._go_on(sock, peer, preamble)
        return True

    def _parse(self, data: bytes, peer: Address) -> tuple[Preamble | None, int] | None:
        """The preamble and its end, or None for more; (None, 0) where there need not be one."""
        if not self._wants_preamble:
            return _NONE_OF_IT
        try:
            return parse(data, self._reception.limit, self._reception.strict)
        except PreambleError as error:
            if error.reason in _NO_PREAMBLE and self._reception.may_omit(peer):
                return _NONE_OF_IT
            raise

    def _go_on(self, sock: socket.socket, peer: Address, preamble: Preamble | None) -> None:
        """To HTTP, or to TLS."""
        deadline = self._forget(sock.fileno())
        if self._wants_preamble:
            self._cells[self._preambles[preamble.version if preamble else 0]] += 1
        local = sock.getsockname()[:2] if self._is_wildcard else self._local
        arrival = Arrival(sock, peer, local, preamble, self._is_tls, self.name)
        if not self._is_tls:
            self._reception.hand_over(arrival)
            return
        if deadline is None:
            self._reception.make_room()
            deadline = self._loop.time() + self._reception.timeout
        # One deadline counts for preamble and handshake.
        arrival.deadline = deadline
        self._reception.shake_hands(arrival)

    def _wait(self, sock: socket.socket) -> None:
        """Keep the descriptor and nothing else."""
        if sock.fileno() not in self.waiting.deadlines:
            self._reception.make_room()
            self.waiting.enter(sock.fileno(), self._loop.time() + self._reception.timeout)
        sock.detach()

    def _resume(self, descriptor: int, has_ended: bool) -> None:
        sock = self._socket(descriptor)
        try:
            peer = self._peer(sock)
        except OSError:
            self._close(sock)
            return
        self._look(sock, peer, has_ended)

    def _peer(self, sock: socket.socket) -> Address:
        """What accept said. Fails where the peer has reset the connection, which is lost then."""
        if self._is_unix:
            return _UNIX_PEER
        address = sock.getpeername()
        return Address(address[0], address[1])

    def _time_out(self, descriptor: int) -> None:
        missing = "no whole preamble" if self._wants_preamble else "no TLS handshake"
        self._refuse_waiting(descriptor, f"{missing} before the deadline", "timeout")

    def _refuse_waiting(self, descriptor: int, text: str, reason: str) -> None:
        sock = self._socket(descriptor)
        try:
            peer = self._peer(sock)
        except OSError:
            self._close(sock)
        else:
            self._refuse(sock, peer, text, reason)

    def _refuse(self, sock: socket.socket, peer: Address, text: str, reason: str) -> None:
        """End a connection without a byte; ``reason`` is one of ``counters.REFUSALS``."""
        self._reception.refusals.write(printed(peer), self.name, text)
        self._reception.row.add("refused", reason)
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._forget(sock.fileno())
            sock.close()

    def _forget(self, descriptor: int) -> float | None:
        """Wait for it no more; returns the deadline that it had."""
        if self._held:
            self._held.pop(descriptor, None)
        return self.waiting.leave(descriptor)


def _may_shake_hands(data: bytes, start: int, most: int) -> bool:
    """Whether the first record of TLS is there, or something that is none.

    A handshake that has begun costs the loop a hundred kilobytes, and a client that sends half a
    ClientHello nothing. RFC 8446, section 5.1: a type, a version, a length of two bytes.
    """
    length = len(data) - start
    if length == 0 or data[start] != _HANDSHAKE_RECORD or length > most:
        return length > 0
    return length >= 5 and length >= 5 + int.from_bytes(data[start + 3 : start + 5], "big")
