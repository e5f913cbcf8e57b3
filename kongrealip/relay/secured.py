"""A socket with TLS on it, to be used like one without.

Not the loop's own TLS, which closes both directions when one of them has ended, and not
``ssl.SSLSocket``, which reads from the network when it is to say goodbye, and loses what it finds.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

from proxyprotocol.tlv import ProxyProtocolSSLTLV, Type

_CHUNK = 65536


class Secured:
    """TLS on a connected, non-blocking socket. ``host`` is the name to verify, None for a server;
    ``ahead`` is sent in front of it, in clear.

    Like a socket's, the methods raise BlockingIOError where they would have to wait. What ``send``
    has refused so has to be sent again unchanged.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, host: str | None = None, ahead: bytes = b""
    ) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, host is None, host)
        # Encrypted, and not taken by the socket yet; and how many bytes it was before.
        self._unsent = ahead
        self._accepted = 0
        self._has_said_goodbye = False
        self.fileno = sock.fileno
        self.setsockopt = sock.setsockopt
        self.close = sock.close

    def shake_hands(self) -> bool:
        """Go on, and say whether it is done. Raises ssl.SSLError and OSError."""
        with contextlib.suppress(BlockingIOError):
            while not self._step():
                if not self._receive():
                    raise ConnectionResetError("closed in the middle of its handshake")
            return True
        return False

    def recv(self, size: int, /) -> bytes:
        """Some bytes, or none at the end."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._answer()
            except ssl.SSLZeroReturnError:
                return b""
            if not self._receive():
                # Hung up without a goodbye, as many do. OpenSSL is not told: it would not write any more.
                return b""

    def send(self, data: bytes, /) -> int:
        if not self._accepted:
            self._accepted = self._tls.write(data)
        self._flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def shutdown(self, how: int, /) -> None:
        """Say that nothing more will be sent. What is received still is."""
        if not self._has_said_goodbye:
            self._has_said_goodbye = True
            # It also looks for the other's goodbye, and would choke on other things. It finds nothing.
            received = self._incoming.read()
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._incoming.write(received)
        self._flush()
        self._sock.shutdown(how)

    def _step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError:
            # It has an alert to send.
            with contextlib.suppress(OSError):
                self._flush()
            raise
        self._flush()
        return True

    def _receive(self) -> int:
        """How many bytes there were; none is the end."""
        return self._incoming.write(self._sock.recv(_CHUNK))

    def _answer(self) -> None:
        """Reading may make OpenSSL say something, of new keys for instance."""
        # Behind our goodbye there is nothing more to say.
        if self._outgoing.pending and not self._has_said_goodbye:
            with contextlib.suppress(BlockingIOError):
                self._flush()

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    def tlvs(self) -> list[tuple[int, bytes]]:
        """What a server knows of its client, as TLVs of version 2: ALPN, authority, SSL."""
        found: list[tuple[int, bytes]] = []
        alpn, name = self._tls.selected_alpn_protocol(), getattr(self._tls, "server_name", None)
        if alpn:
            found.append((Type.PP2_TYPE_ALPN, alpn.encode("ascii")))
        if name:
            found.append((Type.PP2_TYPE_AUTHORITY, name.encode("utf-8")))
        found.append((Type.PP2_TYPE_SSL, bytes(self._ssl_tlv())))
        return found

    def _ssl_tlv(self) -> ProxyProtocolSSLTLV:
        cipher = self._tls.cipher()
        # Only one that was verified is kept; a resumed session repeats the one it began with.
        certificate = self._tls.getpeercert()
        resumed = bool(self._tls.session_reused)
        return ProxyProtocolSSLTLV(
            has_ssl=True,
            has_cert_conn=bool(certificate) and not resumed,
            has_cert_sess=bool(certificate),
            # Section 2.2.6: zero where a certificate was shown and verified.
            verified=bool(certificate),
            version=self._tls.version(),
            cn=_common_name(certificate),
            cipher=cipher and cipher[0],
        )


class ServerSide(ssl.SSLObject):
    """Remembers the name that the client asked for, which OpenSSL forgets when a session is resumed."""

    server_name: str | None = None


def note_server_name(tls: Any, name: str | None, context: ssl.SSLContext) -> None:
    """For ``SSLContext.sni_callback``."""
    tls.server_name = name


def _common_name(certificate: Any) -> str | None:
    subject = (certificate or {}).get("subject", ())
    return next((value for names in subject for key, value in names if key == "commonName"), None)
