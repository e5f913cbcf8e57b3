"""What is written in one turn of the loop leaves together, in order, and not later than that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongrealip import Settings
from kongrealip.server.gathering import GatheringTransport
from tests.lab import LOOPS, Lab, connect

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 65537


class Sent(asyncio.Transport):
    """Remembers each write, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


async def test_head_and_body_are_one_write() -> None:
    sent = Sent()
    gathering = GatheringTransport(sent, asyncio.get_running_loop())
    gathering.write(b"head")
    gathering.write(b"body")
    assert sent.writes == []
    gathering.send_gathered()
    assert sent.writes == [b"headbody"]
    await asyncio.sleep(0)
    assert sent.writes == [b"headbody"]


async def test_nothing_waits_longer_than_a_turn() -> None:
    sent = Sent()
    gathering = GatheringTransport(sent, asyncio.get_running_loop())
    gathering.write(b"head")
    await asyncio.sleep(0)
    assert sent.writes == [b"head"]


async def test_what_closes_sends_first_and_what_is_lost_sends_nothing() -> None:
    sent, lost = Sent(), Sent()
    closing, losing = (GatheringTransport(one, asyncio.get_running_loop()) for one in (sent, lost))
    closing.write(b"last")
    closing.close()
    losing.write(b"nobody reads this")
    lost.close()
    await asyncio.sleep(0)
    assert (sent.writes, sent.closing, lost.writes) == ([b"last"], True, [])


async def test_what_the_application_changes_later_was_copied() -> None:
    sent = Sent()
    gathering = GatheringTransport(sent, asyncio.get_running_loop())
    data = bytearray(b"as it was")
    gathering.write(data)
    data[:] = b"otherwise"
    gathering.write(memoryview(b"!"))
    gathering.send_gathered()
    assert sent.writes == [b"as it was!"]


@given(st.lists(st.sampled_from([0, 1, 100, 40000, LARGE - 1, LARGE, 200_000]), max_size=8))
def test_any_sizes_arrive_in_order_and_little_is_held_back(sizes: list[int]) -> None:
    async def run() -> list[bytes]:
        sent = Sent()
        gathering = GatheringTransport(sent, asyncio.get_running_loop())
        written = 0
        for number, size in enumerate(sizes):
            gathering.write(bytes([number]) * size)
            written += size
            assert written - sum(map(len, sent.writes)) < LARGE
        gathering.close()
        return sent.writes

    assert b"".join(asyncio.run(run())) == b"".join(
        bytes([number]) * size for number, size in enumerate(sizes)
    )


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_head_is_seen_before_the_body_is_there(loop: str) -> None:
    """Of a stream, an event source, or an answer to Expect: 100-continue."""
    go_on = asyncio.Event()
    here = asyncio.get_running_loop()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), here))
        await send({"type": "http.response.body", "body": b"bo", "more_body": True})
        await send({"type": "http.response.body", "body": b"dy"})

    lab = Lab(app)
    port = lab.add(Settings())
    with lab.running(loop):
        reader, writer = await connect(port)
        writer.write(REQUEST)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200 OK")
        go_on.set()
        assert await asyncio.wait_for(reader.readexactly(4), 10) == b"body"
        writer.close()
