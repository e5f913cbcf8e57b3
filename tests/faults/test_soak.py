"""A few seconds of the soak. What memory does is not to be seen in so short a time: benchmarks/soak.py."""

from __future__ import annotations

import io

import pytest

from benchmarks.soak import soak
from tests.lab import LOOPS


@pytest.mark.parametrize("loop", LOOPS)
def test_mixed_traffic_gets_its_right_clients_and_leaves_nothing_behind(loop: str) -> None:
    result = soak(loop, seconds=4, rate=150, quiet_points=1, file=io.StringIO())
    assert result.tally.shown == []
    assert set(result.faults.values()) == {0}, result.faults
    assert result.tally.answered > 300
