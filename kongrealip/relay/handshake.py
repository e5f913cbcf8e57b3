"""A client's TLS handshake."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kongrealip.relay.secured import Secured
from kongrealip.server.reception import Arrival, Reception

if TYPE_CHECKING:
    from kongrealip.relay.relay import Relay


class Handshake:
    """Goes on whenever the client has sent something, until its deadline."""

    def __init__(self, relay: Relay, reception: Reception, arrival: Arrival, secured: Secured) -> None:
        self._relay = relay
        self._reception = reception
        self._arrival = arrival
        self._secured = secured
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._arrival.handshake = self
        self._reception.handshakes[self._arrival] = None
        self._timer = self._relay.loop.call_at(self._arrival.deadline, self._time_out)
        self._relay.readiness.watch(self._arrival.sock.fileno(), self._on_events)

    def cancel(self) -> None:
        """Give up, without a word."""
        self._end()
        self._relay.readiness.forget(self._arrival.sock.fileno())
        self._arrival.sock.close()

    def _on_events(self, events: int) -> None:
        try:
            is_done = self._secured.shake_hands()
        except OSError as error:
            self._reception.fail_handshake(self._arrival, error)
            self.cancel()
            return
        if is_done:
            self._end()
            self._relay.take(self._arrival, self._secured)

    def _time_out(self) -> None:
        self._reception.time_out_handshake(self._arrival)
        self.cancel()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._arrival.handshake = None
        self._reception.handshakes.pop(self._arrival, None)
