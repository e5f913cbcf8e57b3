"""docs/parity.md leaves out nothing that was recorded, nothing that differs, and each row has its test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kongrealip.config.names import READ_OF_OURS
from tests.differences import DIFFERENCES, HTTP_DIFFERENCES
from tests.test_forwarded_vectors import BRACKETS
from tests.test_forwarded_wire import DIFFERING

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
LINKED = re.compile(r"\[(\w+)\]\(\.\./(tests/[\w/]+\.py)\)")
TABLES = {"The same": 3, "What differs on purpose": 5, "Beyond": 3}


def rows(name: str) -> list[list[str]]:
    lines = [line for line in SECTIONS[name].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def topics() -> set[str]:
    return {
        json.loads(line)["topic"]
        for path in (ROOT / "tests" / "vectors").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    }


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name in TABLES for row in rows(name)], ids=lambda value: str(value)[:60]
)
def test_each_row_has_its_tests(name: str, row: list[str]) -> None:
    assert len(row) == TABLES[name]
    tests = LINKED.findall(row[-1])
    assert tests
    for test, path in tests:
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), test


def test_every_topic_is_told() -> None:
    told = {topic for row in rows("The same") for topic in re.findall(r"`(\w+)`", row[1])}
    of_differences = {
        topic for row in rows("What differs on purpose") for topic in re.findall(r"`(\w+)`", row[3])
    }
    assert told | of_differences == topics()


def test_every_topic_with_differences_is_told_among_them() -> None:
    told = {topic for row in rows("What differs on purpose") for topic in re.findall(r"`(\w+)`", row[3])}
    differing = {name.rpartition("-")[0] for name in (*DIFFERENCES, *HTTP_DIFFERENCES, *DIFFERING, *BRACKETS)}
    assert differing <= told


def test_the_number_of_vectors() -> None:
    paths = (ROOT / "tests" / "vectors").glob("*.jsonl")
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    assert f"holds {count} recorded answers" in TEXT


def test_what_goes_beyond_has_a_name_of_its_own() -> None:
    """Each variable of ours about a decision is told; those of relay and proxy have no counterpart in Kong."""
    deciding = READ_OF_OURS[: READ_OF_OURS.index("upstream")]
    assert [key for key in deciding if f"`KONGREALIP_{key.upper()}`" not in TEXT] == []
