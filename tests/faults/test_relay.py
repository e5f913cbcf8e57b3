"""A little of each scenario of relay.py. The bounds are wide, for the machine may be busy."""

from __future__ import annotations

import pytest

from tests.faults import relay
from tests.lab import LOOPS

each_loop = pytest.mark.parametrize("loop", LOOPS)


@each_loop
def test_a_reader_that_stops_costs_no_memory_and_no_byte(loop: str) -> None:
    figures = relay.stopped(loop, size=64 << 20, pause=1)
    assert figures["directions with other bytes"] == 0
    assert figures["memory at the most, MB more"] < 8


@each_loop
def test_no_descriptor_is_left_behind(loop: str) -> None:
    assert relay.opened_and_closed(loop, count=600)["descriptors left"] == 0


def test_a_connection_that_rests_costs_little() -> None:
    figures = relay.idle("uvloop", count=300)
    assert figures["KB each"] < 8
    assert figures["descriptors each"] == 2
