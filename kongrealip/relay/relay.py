"""From an arrival to a pair of connections, and the end of those that should not go on."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kongrealip.config import Settings
from kongrealip.config.relay import RelaySettings
from kongrealip.realip import Rules, TrustedNetworks
from kongrealip.realip.resolve import PEER, PROXY_PROTOCOL, judge_peer, resolve
from kongrealip.relay.announcement import announcement
from kongrealip.relay.connecting import Connecting
from kongrealip.relay.deadlines import Deadlines
from kongrealip.relay.handshake import Handshake
from kongrealip.relay.pair import Pair
from kongrealip.relay.pipes import Pipes
from kongrealip.relay.readiness import Readiness
from kongrealip.relay.secured import Secured
from kongrealip.relay.upstreams import Target, Upstreams
from kongrealip.server.reception import Arrival, Reception

# In how many looks the idle time is up: a connection may live a tenth longer than it should.
_LOOKS = 10
TO_UPSTREAM, TO_CLIENT = "to_upstream", "to_client"


class Behind(NamedTuple):
    """What a relay needs beside the settings: where to, and TLS on both sides.

    ``contexts`` has that of each ``ssl`` listener by its address, ``upstream_tls`` is None for none.
    """

    relay: RelaySettings
    targets: Sequence[Target]
    contexts: Mapping[str, ssl.SSLContext]
    upstream_tls: ssl.SSLContext | None


class Relay:
    """Everything that is relayed by one process."""

    def __init__(self, settings: Settings, behind: Behind, reception: Reception) -> None:
        relay, targets, self._contexts, self.upstream_tls = behind
        self.loop = reception.loop
        self.readiness = Readiness(self.loop)
        self.pipes = Pipes()
        self.upstreams = Upstreams(targets)
        self.pairs: set[Pair] = set()
        self.connecting: Deadlines[Connecting] = Deadlines(self.loop, relay.connect_timeout)
        self.cells = reception.row.cells
        self.to_upstream = reception.row.place("relayed_bytes", TO_UPSTREAM)
        self.to_client = reception.row.place("relayed_bytes", TO_CLIENT)
        self._reception = reception
        # As in nginx's stream realip: there are no headers, so the preamble alone can tell.
        self._rules = Rules(TrustedNetworks(settings.trusted_ips), PROXY_PROTOCOL, False)
        self._form = relay.send_proxy
        self._allowed = TrustedNetworks(relay.allow) if relay.allow else None
        self._decisions = {
            source: reception.row.place("decisions", source) for source in (PEER, PROXY_PROTOCOL)
        }
        self._connected = {
            target.name: reception.row.place("upstream_connections", target.name) for target in targets
        }
        self._look_seconds = relay.idle_timeout / _LOOKS
        self._next_look = self.loop.call_later(self._look_seconds, self._look_for_idle)

    @property
    def open(self) -> int:
        """Sockets of clients and of upstreams."""
        return 2 * (len(self.pairs) + len(self.connecting))

    def take(self, arrival: Arrival, secured: Secured | None = None) -> None:
        """Connect a client to an upstream; ``secured`` is its end where there is TLS."""
        resolution = resolve(self._rules, arrival.peer, arrival.preamble, ())
        self.cells[self._decisions[resolution.source]] += 1
        if self._allowed is not None and not judge_peer(self._allowed, resolution.client)[1]:
            text = f"the client {resolution.client.ip} is not in the allow list"
            self._reception.refuse(arrival, text, "not_allowed")
            # Behind a handshake it is watched.
            self.readiness.forget(arrival.sock.fileno())
            arrival.sock.close()
            return
        # No other form has room for what is said of the handshake.
        own = secured.tlvs() if secured is not None and self._form == "v2" else None
        preamble = announcement(self._form, resolution, arrival.local, own)
        Connecting(self, arrival, secured or arrival.sock, preamble).begin()

    def shake_hands(self, arrival: Arrival) -> None:
        """TLS first."""
        secured = Secured(arrival.sock, self._contexts[arrival.listener])
        Handshake(self, self._reception, arrival, secured).begin()

    def note_failure(self, target: Target, reason: str) -> None:
        """An upstream could not be reached."""
        self._reception.row.add("upstream_failures", target.name)
        self.upstreams.rest(target, self.loop.time(), reason)

    def note_success(self, target: Target) -> None:
        """An upstream has taken a connection."""
        self.cells[self._connected[target.name]] += 1
        self.upstreams.recover(target)

    def refuse_unconnected(self, arrival: Arrival, reason: str) -> None:
        """There was no upstream for a client."""
        self._reception.refuse(arrival, f"no upstream could be reached: {reason}", "no_upstream")

    def end_all(self) -> None:
        """Reset everything that is still going on."""
        self._next_look.cancel()
        for connecting in self.connecting.drain():
            connecting.give_up()
        for pair in list(self.pairs):
            pair.abort()
        self.pipes.close()
        self.readiness.close()

    def _look_for_idle(self) -> None:
        for pair in list(self.pairs):
            pair.quiet = 0 if pair.is_active else pair.quiet + 1
            pair.is_active = False
            if pair.quiet >= _LOOKS:
                self._reception.row.add("idle_closed")
                pair.close()
        self._next_look = self.loop.call_later(self._look_seconds, self._look_for_idle)
