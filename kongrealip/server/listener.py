"""Accept, read the preamble, hand the socket on.

The preamble is read with MSG_PEEK and then taken off the socket byte for byte, so that TLS and
HTTP find their own first byte where they expect it and nothing has to be put back.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket

from kongrealip.address import Address
from kongrealip.config.listen import Listen
from kongrealip.errors import PreambleError
from kongrealip.preamble import parse
from kongrealip.preamble.v2 import SIGNATURE
from kongrealip.realip.networks import UNIX
from kongrealip.server.reception import Arrival, Reception

logger = logging.getLogger("kongrealip.server")

_PAUSE_SECONDS = 0.5
# How many to accept at once where no cap counts any more.
_TO_THE_END = 64
# How often to look whether a peer that need not send a preamble has begun one.
_LOOK_AGAIN_SECONDS = 0.05
# Linux reports what befell a connection in the queue as accept's own error. See accept(2).
_OF_THAT_CONNECTION = (
    errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
)  # fmt: skip
# What a peer may send instead of a preamble where it need not send one.
_NO_PREAMBLE = ("http", "tls", "not_proxy")
_BEGINNINGS = (SIGNATURE, b"PROXY ")


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
        self._sock = sock
        self._reception = reception
        self._loop = reception.loop
        self._name = listen.address
        self._wants_preamble = listen.proxy_protocol
        self._is_tls = listen.ssl
        self._is_unix = sock.family == socket.AF_UNIX
        self._family = sock.family
        self._socket_class = _SOCKET_CLASSES[sock.family]
        # Where the listener stands on one address, that is the local end of every connection.
        name = sock.getsockname()
        self._local = (name, None) if self._is_unix else (name[0], name[1])
        self._is_wildcard = name[0] in ("0.0.0.0", "::")  # noqa: S104 - compared only
        self._cells = reception.row.cells
        self._accepted = reception.row.place("accepted", self._name)
        self._preambles = [reception.row.place("preambles", version) for version in ("none", "1", "2")]
        self._paused: asyncio.TimerHandle | None = None
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

    def _accept(self) -> None:
        room = self._reception.room()
        if room > 0:
            self._accept_some(room)
        else:
            self._pause("worker_connections are not enough")

    def _accept_some(self, room: int) -> bool:
        """Accept no more than ``room``, and say whether there was anything."""
        accepted: list[Arrival] = []
        try:
            while len(accepted) < room and (arrival := self._accept_one()):
                accepted.append(arrival)
        finally:
            self._cells[self._accepted] += len(accepted)
            # All are accepted before the first is read: it takes a moment, and that is the moment
            # in which a balancer that has just connected sends its preamble.
            for arrival in accepted:
                self._begin(arrival)
        return bool(accepted)

    def _accept_one(self) -> Arrival | None:
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
        sock = self._socket_class(self._family, socket.SOCK_STREAM, 0, descriptor)
        sock.setblocking(False)
        peer = Address(UNIX, None) if self._is_unix else Address(address[0], address[1])
        local = sock.getsockname()[:2] if self._is_wildcard else self._local
        return Arrival(sock, peer, local, self._is_tls, self._name)

    def _pause(self, reason: str) -> None:
        """Leave the queue alone for a moment."""
        self._reception.refusals.write_pause(self._name, reason)
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._loop.add_reader, self._sock, self._accept)

    def _begin(self, arrival: Arrival) -> None:
        try:
            if self._wants_preamble:
                self._read(arrival)
            else:
                self._go_on(arrival, False)
        except Exception:
            # Whatever one connection brings up, the others of this wake-up have their turn.
            logger.exception("lost a connection on %s", self._name)
            self._reception.close(arrival)

    def _read(self, arrival: Arrival) -> None:
        """Read what is there: at once after accept, and again whenever more has come."""
        try:
            self._read_preamble(arrival)
        except PreambleError as error:
            if error.reason in _NO_PREAMBLE and not arrival.held and self._reception.may_omit(arrival.peer):
                self._cells[self._preambles[0]] += 1
                self._go_on(arrival, True)
            else:
                self._reception.refuse(arrival, str(error), error.reason)
        except (BlockingIOError, InterruptedError):
            self._wait(arrival)
        except OSError:
            # Reset by the peer, as port scanners and some probes do. Nothing to tell.
            self._reception.close(arrival)

    def _read_preamble(self, arrival: Arrival) -> None:
        """Take what belongs to the preamble off the socket.

        Raises PreambleError where this can become none, OSError where the connection is lost.
        """
        held, limit = arrival.held, self._reception.limit
        peeked = arrival.sock.recv(limit - len(held), socket.MSG_PEEK)
        if not peeked and not held:
            # A health check that only connects, many times a minute: not worth a line.
            raise ConnectionAbortedError
        if not peeked:
            raise PreambleError("closed in the middle of its preamble", "cut_off")
        data = held + peeked
        parsed = parse(data, limit, self._reception.strict)
        if parsed is not None:
            arrival.preamble, end = parsed
            arrival.sock.recv(end - len(held))
            self._cells[self._preambles[arrival.preamble.version]] += 1
            self._go_on(arrival, len(data) > end)
        elif any(word.startswith(data) for word in _BEGINNINGS) and self._reception.may_omit(arrival.peer):
            # Nobody can tell yet whether these bytes are a preamble's: "P" begins a POST as well.
            # They stay where they are, the socket stays readable, and so it is not waited for.
            self._reception.enter(arrival)
            self._loop.call_later(_LOOK_AGAIN_SECONDS, self._read, arrival)
        else:
            # All of it belongs to the preamble. Left in the socket, it would keep the socket
            # readable, and the loop would spin.
            arrival.held += arrival.sock.recv(len(peeked))
            self._wait(arrival)

    def _wait(self, arrival: Arrival) -> None:
        self._reception.enter(arrival)
        self._loop.add_reader(arrival.sock, self._read, arrival)

    def _go_on(self, arrival: Arrival, has_more: bool) -> None:
        """To HTTP, or to TLS once it has begun: a handshake costs memory that silence is not worth."""
        arrival.held = b""
        if not self._is_tls:
            self._reception.leave(arrival)
            self._reception.hand_over(arrival)
            return
        arrival.stage = "handshake"
        self._reception.enter(arrival)
        if has_more:
            self._loop.remove_reader(arrival.sock)
            self._reception.shake_hands(arrival)
        else:
            self._loop.add_reader(arrival.sock, self._see_hello, arrival)

    def _see_hello(self, arrival: Arrival) -> None:
        try:
            beginning = arrival.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            beginning = b""
        if not beginning:
            self._reception.close(arrival)
            return
        self._loop.remove_reader(arrival.sock)
        self._reception.shake_hands(arrival)
