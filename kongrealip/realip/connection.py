"""What this package's own server knows about a connection, for the middleware to find."""

from __future__ import annotations

from typing import Any

from kongrealip.address import Address
from kongrealip.preamble import Preamble

#: Where the server puts a :class:`Connection` into the ASGI ``scope["state"]``.
CONNECTION_KEY = "kongrealip.connection"
#: Where the middleware leaves the :class:`Resolution` in ``scope["extensions"]``.
EXTENSION_KEY = "kongrealip"
#: Where one that stands further out leaves a function there that wants to be told of the Resolution.
TELL_KEY = "kongrealip.tell"
#: Where the request lies as it was received, when host or prefix have been put into the scope, and the
#: scheme, when another one has.
RECEIVED_KEY = "kongrealip.received"
OWN_SCHEME_KEY = "kongrealip.own_scheme"


class Connection:
    """One accepted connection.

    ``peer`` is what ``accept`` returned. It cannot get lost, unlike ``getpeername()`` of a
    connection that the peer has reset. ``local`` is this end as ASGI's ``scope["server"]`` has
    it: host and port, or path and None. ``listener`` is the listener's address as it was
    configured. ``memo`` is where the middleware keeps what it worked out for this peer, so that
    later requests of the connection need not.
    """

    __slots__ = ("listener", "local", "memo", "peer", "preamble", "tls")

    def __init__(
        self,
        peer: Address,
        local: tuple[str, int | None],
        preamble: Preamble | None,
        tls: bool,
        listener: str = "",
    ) -> None:
        self.peer = peer
        self.local = local
        self.preamble = preamble
        self.tls = tls
        self.listener = listener
        self.memo: Any = None
