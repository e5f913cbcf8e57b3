"""How the clients of the soak talk, and what they find wrong with what comes back."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, StreamEnded, StreamReset

from benchmarks.soak_clients import PEER
from benchmarks.soak_talks import (
    ABORTED,
    ASKS,
    HTTP2,
    PIPELINE,
    REFUSED,
    RELAY,
    WEBSOCKET,
    Ask,
    Talk,
)
from benchmarks.soak_wire import Wire, client_context, read_answer, read_head, send_in_pieces
from tests.running import LOOPBACK

_PATIENCE_SECONDS = 30.0
_SHOWN = 20
_CATCH_UP_SECONDS = 1.0
# A server that gives TLS up says so before it closes: a record of type 21.
_TLS_ALERT = b"\x15\x03"
_MASKED_CLOSE = b"\x88\x80\x00\x00\x00\x00"


@dataclass
class Tally:
    """What became of the talks. ``shown`` has the first faults in words."""

    talks: Counter[str] = field(default_factory=Counter)
    #: How many requests were to be sent, and how many were.
    due: float = 0.0
    requests: int = 0
    answered: int = 0
    wrong: int = 0
    #: Talks in which an answer was not to be had, or a connection was to be refused and was held.
    unanswered: int = 0
    wrongly_answered: int = 0
    shown: list[str] = field(default_factory=list)

    def show(self, talk: Talk, text: str) -> None:
        if len(self.shown) < _SHOWN:
            self.shown.append(f"{talk.kind}, {talk.listener}: {text}\n    {repr(talk)[:1000]}")


class Load:
    """Clients that begin at fixed times, whatever becomes of those before."""

    def __init__(self, ports: Mapping[str, int], deck: Iterator[Talk]) -> None:
        self.tally = Tally()
        self.playing: set[asyncio.Task[None]] = set()
        self._ports = ports
        self._deck = deck

    async def run(self, seconds: float, rate: float) -> None:
        """Play so many requests a second: a talk of several takes the time of several.

        When the machine has stood still for longer, what could not begin is left out: to begin it all
        at once would be another load than the one that was asked for.
        """
        loop = asyncio.get_running_loop()
        due, end = loop.time(), loop.time() + seconds
        while due < end:
            await asyncio.sleep(due - loop.time())
            talk = next(self._deck)
            due = max(due, loop.time() - _CATCH_UP_SECONDS) + talk.requests / rate
            task = loop.create_task(self._play(talk))
            self.playing.add(task)
            task.add_done_callback(self.playing.discard)
        self.tally.due += seconds * rate

    async def end(self) -> None:
        """Wait for those that are on their way."""
        if self.playing:
            await asyncio.wait(self.playing)

    async def _play(self, talk: Talk) -> None:
        self.tally.talks[talk.kind] += 1
        self.tally.requests += talk.requests
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._held(talk)
        except Exception as error:
            # Lost, cut short, too late, or something that is no answer: it is not what was due.
            if talk.way != ABORTED:
                self.tally.unanswered += 1
                self.tally.show(talk, f"not to its end: {error!r}")

    async def _held(self, talk: Talk) -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.bind((talk.source, 0))
            await asyncio.get_running_loop().sock_connect(sock, (LOOPBACK, self._ports[talk.listener]))
            wire = Wire(sock)
            if talk.way in (REFUSED, ABORTED):
                await self._not_to_be_answered(wire, talk)
                return
            await send_in_pieces(wire, talk.opening, talk.seconds)
            if talk.is_tls:
                await wire.shake_hands(client_context(talk.way == HTTP2))
            await _WAYS[talk.way](self, wire, talk)
            wire.close(with_reset=random.random() < 0.1)

    async def _not_to_be_answered(self, wire: Wire, talk: Talk) -> None:
        try:
            await wire.send(talk.opening)
            if talk.said:
                if talk.is_tls:
                    await wire.shake_hands(client_context(False))
                await wire.send(talk.said)
        except ConnectionError:
            # It was refused before all of it was said.
            return
        if talk.way == ABORTED:
            await asyncio.sleep(random.choice((0, 0, random.uniform(0, 0.05))))
            wire.close(with_reset=random.random() < 0.5)
            return
        answer = await wire.rest()
        if answer and not answer.startswith((b"HTTP/1.1 400 ", _TLS_ALERT)):
            self.tally.wrongly_answered += 1
            self.tally.show(talk, f"answered with {answer[:300]!r}")

    async def _one_by_one(self, wire: Wire, talk: Talk) -> None:
        for number, ask in enumerate(talk.asks):
            slow = talk.seconds if number == 0 and not talk.opening else 0
            await send_in_pieces(wire, ask.written(), slow)
            self._judge(wire, talk, ask, await read_answer(wire))
        await self._see_the_end(wire, talk)

    async def _at_once(self, wire: Wire, talk: Talk) -> None:
        await wire.send(b"".join(ask.written() for ask in talk.asks))
        for ask in talk.asks:
            self._judge(wire, talk, ask, await read_answer(wire))
        await self._see_the_end(wire, talk)

    async def _see_the_end(self, wire: Wire, talk: Talk) -> None:
        # Of those that may stay some wait until the server finds that they have been idle for too long.
        is_to_close = ("Connection", "close") in talk.asks[-1].lines or random.random() < 0.05
        if is_to_close and (more := await wire.rest()):
            self.tally.wrongly_answered += 1
            self.tally.show(talk, f"behind the last answer: {more[:300]!r}")

    async def _on_streams(self, wire: Wire, talk: Talk) -> None:
        h2 = H2Connection(H2Configuration(header_encoding="latin-1"))
        h2.initiate_connection()
        asked = {_ask_on_stream(h2, ask): ask for ask in talk.asks}
        bodies = dict.fromkeys(asked, b"")
        while asked:
            await wire.send(h2.data_to_send())
            if not (data := await wire.receive()):
                raise EOFError
            for event in h2.receive_data(data):
                if isinstance(event, DataReceived):
                    bodies[event.stream_id] += event.data
                elif isinstance(event, StreamEnded):
                    self._judge(wire, talk, asked.pop(event.stream_id), bodies[event.stream_id])
                elif isinstance(event, StreamReset | ConnectionTerminated):
                    raise EOFError(repr(event))

    async def _websocket(self, wire: Wire, talk: Talk) -> None:
        await wire.send(talk.asks[0].written())
        head = await read_head(wire)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise EOFError(head)
        data = b""
        # One frame of text whose length has two bytes, and one of two to four bytes that closes.
        while len(data) < 4 or len(data) < 6 + int.from_bytes(data[2:4]):
            if not (piece := await wire.receive()):
                raise EOFError(data)
            data += piece
        self._judge(wire, talk, talk.asks[0], data[4 : 4 + int.from_bytes(data[2:4])])
        await wire.send(_MASKED_CLOSE)
        await wire.rest()

    def _judge(self, wire: Wire, talk: Talk, ask: Ask, body: bytes) -> None:
        self.tally.answered += 1
        seen = json.loads(body)
        due = _due(wire, talk, ask)
        came = {name: seen[name] for name in due}
        if came != due:
            self.tally.wrong += 1
            self.tally.show(talk, f"{due} was due, and {came} came")


_WAYS: dict[str, Callable[[Load, Wire, Talk], Awaitable[None]]] = {
    ASKS: Load._one_by_one,
    PIPELINE: Load._at_once,
    HTTP2: Load._on_streams,
    WEBSOCKET: Load._websocket,
}


def _due(wire: Wire, talk: Talk, ask: Ask) -> Mapping[str, object]:
    ip, port, source = ask.due
    due = {
        "client_ip": ip,
        "client_port": wire.port if source == PEER else port,
        "source": source,
        "peer_ip": talk.source,
        "peer_port": wire.port,
        "peer_trusted": talk.source == LOOPBACK,
        "path": ask.path,
    }
    if talk.listener == RELAY:
        # The relay's own connection, of which only the relay knows the port.
        del due["peer_port"]
    return due


def _ask_on_stream(h2: H2Connection, ask: Ask) -> int:
    """Send a request, and return its stream."""
    stream = h2.get_next_available_stream_id()
    host = dict(ask.lines)["Host"]
    pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", ask.path)]
    more = [(name.lower(), value) for name, value in ask.lines if name not in ("Host", "Connection")]
    h2.send_headers(stream, pseudo + more, end_stream=True)
    return stream
