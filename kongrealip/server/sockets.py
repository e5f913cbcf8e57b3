"""Listening sockets: bound here, inherited from systemd, or one for each worker."""

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kongrealip.config.listen import Keepalive, Listen
from kongrealip.errors import StartError

logger = logging.getLogger("kongrealip.server")

_BACKLOG = 2048
_LARGEST = 0x7FFFFFFF
# sd_listen_fds(3): the first descriptor that systemd hands over.
_FIRST_INHERITED = 3
# <asm/socket.h>, which Python does not show.
_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("HBBI")
# Classic BPF, <linux/filter.h>: load the byte of TCP's flags, drop where SYN is among them.
_DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


class Opened(NamedTuple):
    """A listening socket and its entry.

    ``worker`` is None where all workers share it; ``path`` is that of a Unix socket which was
    made here, and is to be removed at the end; an ``inherited`` one lives on without this server.
    """

    sock: socket.socket
    listen: Listen
    worker: int | None = None
    path: str | None = None
    inherited: bool = False


class Sockets:
    """Every listening socket of a server.

    They belong to the process that opens them and outlive the workers: a worker that dies
    leaves its queue to the next one.
    """

    def __init__(self, opened: Iterable[Opened] = ()) -> None:
        self.opened = list(opened)

    def of_worker(self, number: int) -> list[Opened]:
        """What one worker accepts from."""
        return [one for one in self.opened if one.worker in (None, number)]

    def close(self) -> None:
        for one in self.opened:
            one.sock.close()

    def close_but(self, kept_open: Iterable[Opened]) -> None:
        """Close what is not to be kept open."""
        kept = {id(one.sock) for one in kept_open}
        for one in self.opened:
            if id(one.sock) not in kept:
                one.sock.close()

    def turn_newcomers_away(self) -> None:
        """Begin the end: from now on nobody connects, and the queues can be emptied for good."""
        for number, one in enumerate(self.opened):
            if one.path is not None:
                # Once and not again: by then the path may be another server's.
                self.opened[number] = one._replace(path=None)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(one.path)
            elif not one.inherited and one.sock.family != socket.AF_UNIX and one.sock.fileno() >= 0:
                _drop_syn(one.sock)

    def renewed(self, listens: Iterable[Listen], workers: int, defer: float) -> "tuple[Sockets, Sockets]":
        """The sockets for other settings, and those of the present ones that they leave over.

        What stays is not opened anew, so its queue survives. Raises StartError where something
        new cannot be opened; then nothing has changed.
        """
        present: dict[tuple[str, int | None], list[Opened]] = {}
        for one in self.opened:
            present.setdefault((one.listen.address, one.worker), []).append(one)
        kept, fresh = Sockets(), Sockets()
        try:
            for listen, worker in _wanted(listens, workers, self._handed_over):
                found = present.pop((listen.address, worker), None)
                if found is None:
                    self._check_kind(listen, worker)
                    fresh.opened += _open(listen, worker, defer)
                else:
                    kept.opened += [_changed(one, listen, defer) for one in found]
        except StartError:
            fresh.close()
            self.restore(defer)
            raise
        left_over = Sockets(one for group in present.values() for one in group)
        return Sockets([*kept.opened, *fresh.opened]), left_over

    @property
    def _handed_over(self) -> set[str]:
        return {one.listen.address for one in self.opened if one.inherited}

    def _check_kind(self, listen: Listen, worker: int | None) -> None:
        for one in self.opened:
            if one.listen.address == listen.address and (one.worker is None) != (worker is None):
                raise StartError(
                    f"cannot listen on {listen}: reuseport cannot change while the port is open, restart"
                )

    def restore(self, defer: float = 60.0) -> None:
        """Give every socket its own options again."""
        for one in self.opened:
            if not one.listen.is_unix and not one.inherited:
                with contextlib.suppress(OSError):
                    _configure(one.sock, one.listen, defer)


def open_all(
    listens: Iterable[Listen], workers: int, defer: float, inherited: Iterable[socket.socket] = ()
) -> Sockets:
    """Open every entry, or take it from what was inherited. Raises StartError.

    ``workers`` is 0 for a process that serves by itself. Otherwise ``reuseport`` opens a socket
    for each worker, among which the kernel spreads connections.
    """
    sockets = Sockets()
    remaining = {_address_of(sock): sock for sock in inherited}
    try:
        listens = list(listens)
        found = {listen: _taken(listen, remaining) for listen in listens} if remaining else {}
        for address in remaining:
            name = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
            raise StartError(
                "LISTEN_FDS: no entry of KONG_PROXY_LISTEN, KONG_STREAM_LISTEN, KONG_STATUS_LISTEN or --uds"
                f" is for the inherited socket {name}"
            )
        handed_over = {listen.address for listen, socks in found.items() if socks}
        for listen, worker in _wanted(listens, workers, handed_over):
            if listen.address in handed_over:
                sockets.opened += [Opened(sock, listen, inherited=True) for sock in found[listen]]
            else:
                sockets.opened += _open(listen, worker, defer)
    except StartError:
        sockets.close()
        for sock in remaining.values():
            sock.close()
        raise
    return sockets


def _taken(listen: Listen, remaining: dict[Any, socket.socket]) -> list[socket.socket]:
    """Take what was inherited for an entry out of what remains."""
    return [remaining.pop(address) for _, address in _addresses(listen) if address in remaining]


def inherited(environ: Mapping[str, str]) -> list[socket.socket]:
    """What systemd hands over by LISTEN_FDS and LISTEN_PID (sd_listen_fds(3)). Raises StartError."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for descriptor in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError as error:
            raise StartError(f"LISTEN_FDS: descriptor {descriptor} is no socket: {error.strerror}") from error
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise StartError(f"LISTEN_FDS: descriptor {descriptor} is no listening stream socket")
        sock.set_inheritable(False)
        sock.setblocking(False)
        found.append(sock)
    return found


def _wanted(
    listens: Iterable[Listen], workers: int, handed_over: Iterable[str]
) -> list[tuple[Listen, int | None]]:
    """The sockets that there should be: an entry, and a worker's number where it is one's own."""
    return [
        (listen, worker)
        for listen in listens
        for worker in (
            range(workers)
            if listen.reuseport and not listen.is_unix and listen.address not in handed_over and workers
            else (None,)
        )
    ]


def _open(listen: Listen, worker: int | None, defer: float) -> list[Opened]:
    if listen.is_unix:
        path = listen.host.removeprefix("unix:")
        return [Opened(bind_unix(path), listen, path=path)]
    if worker == 0:
        # SO_REUSEPORT would let a second server of the same user bind the port unnoticed, and
        # take half of the connections.
        for sock in bind(listen):
            sock.close()
    bound = bind(listen, defer, reuseport=worker is not None)
    return [Opened(sock, listen, worker) for sock in bound]


def _changed(one: Opened, listen: Listen, defer: float) -> Opened:
    if ("ipv6only=off" in one.listen.flags) != ("ipv6only=off" in listen.flags):
        raise StartError(f"cannot listen on {listen}: ipv6only cannot change while the port is open, restart")
    try:
        # What systemd opens it also configures.
        if not one.inherited and not listen.is_unix and listen != one.listen:
            _configure(one.sock, listen, defer)
    except OSError as error:
        raise StartError(f"cannot listen on {listen}: {error.strerror or error}") from error
    return one._replace(listen=listen)


def bind(listen: Listen, defer: float = 60.0, reuseport: bool = False) -> list[socket.socket]:
    """Open the listening sockets of one entry: a name may stand for several addresses.

    With the flag ``deferred`` the kernel keeps a connection that says nothing to itself for about
    ``defer`` seconds, which nginx sets to client_header_timeout as well. Raises StartError with
    one line that names the entry.
    """
    opened: list[socket.socket] = []
    try:
        for family, address in _addresses(listen):
            opened.append(_bound(listen, family, address, defer, reuseport))
    except OSError as error:
        for sock in opened:
            sock.close()
        raise StartError(f"cannot listen on {listen}: {error.strerror or error}") from error
    return opened


def _addresses(listen: Listen) -> list[tuple[int, tuple[object, ...] | str]]:
    """Family and address of each socket that an entry stands for."""
    if listen.is_unix:
        return [(socket.AF_UNIX, listen.host.removeprefix("unix:"))]
    host = "0.0.0.0" if listen.host == "*" else listen.host.strip("[]")  # noqa: S104 - as asked for
    try:
        found = socket.getaddrinfo(host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartError(f"cannot listen on {listen}: {getattr(error, 'strerror', error)}") from error
    # A name may be listed twice for one address, in /etc/hosts for instance.
    return list(dict.fromkeys((entry[0], entry[4]) for entry in found))


def _address_of(sock: socket.socket) -> tuple[object, ...] | str:
    address: tuple[object, ...] | str = sock.getsockname()
    return address


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


def _bound(
    listen: Listen, family: int, address: tuple[object, ...] | str, defer: float, reuseport: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # nginx's default, so that [::]:80 and 0.0.0.0:80 can stand side by side.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "ipv6only=off" not in listen.flags)
        if reuseport:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        _configure(sock, listen, defer)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _configure(sock: socket.socket, listen: Listen, defer: float) -> None:
    """What may change while a socket is open."""
    seconds = max(1, min(int(defer), _LARGEST)) if "deferred" in listen.flags else 0
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)
    _set_keepalive(sock, listen.keepalive)
    sock.listen(min(_BACKLOG if listen.backlog is None else listen.backlog, _LARGEST))


def _drop_syn(sock: socket.socket) -> None:
    """Let the kernel drop every SYN that arrives at a listening socket.

    Whoever connects between the last accept and the close would be reset, though established.
    A client whose SYN is dropped sends it again a second later and meets a closed port, or the
    next server.
    """
    import ctypes

    program = b"".join(_INSTRUCTION.pack(*instruction) for instruction in _DROP_SYN)
    memory = ctypes.create_string_buffer(program)
    filter_of_four = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_of_four)


def _set_keepalive(sock: socket.socket, keepalive: Keepalive | bool | None) -> None:
    """On the listening socket, from which Linux hands it down to the accepted ones."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, bool(keepalive))
    if isinstance(keepalive, Keepalive):
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        for option, value in zip(options, keepalive, strict=True):
            if value is None:
                continue
            try:
                sock.setsockopt(socket.IPPROTO_TCP, option, min(value, _LARGEST))
            except OSError as error:
                # As nginx does. Linux takes no more than 32767 seconds and 127 probes.
                logger.warning("so_keepalive: %d is ignored: %s", value, error.strerror)
