"""The benchmarks without a network do what they say: everybody does the work, and figures are put right."""

from __future__ import annotations

import json
import math
import re
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import comparison, footprint, middleware, preamble, suite
from benchmarks.comparison import OURS, Case, Sample, Spread, Verdict
from benchmarks.middleware_peers import PEERS
from benchmarks.servers import NGINX, UVICORN

ROOT = Path(__file__).parent.parent
GUNICORN, HYPERCORN, IPWARE = "gunicorn policy", "hypercorn ProxyFix", "python-ipware"


def check(case: Case) -> None:
    """Well-formed: every side in every round, with finite ratios, and nothing said of who is not there."""
    assert OURS in case.sides
    assert {len(samples) for samples in case.sides.values()} == {len(case.sides[OURS])}
    assert {*case.bars, *case.notes} <= set(case.sides) - {OURS}
    for side in case.sides:
        assert all(math.isfinite(number) for number in (*case.spread(side), *case.ratio(side)))


# Who finds the client is told, and so is who does not.


def test_middlewares(monkeypatch: pytest.MonkeyPatch) -> None:
    many = middleware.many_networks
    # To make a hundred thousand takes longer than to use them.
    monkeypatch.setattr(middleware, "many_networks", lambda count: many(min(count, 2000)))
    cases = {case.name: case for case in middleware.cases(0.01)}
    for name, case in cases.items():
        check(case)
        wrong = {side for side, note in case.notes.items() if "answers" in note}
        if name == "untrusted peer":
            # They believe anybody who connects.
            assert wrong == {HYPERCORN, IPWARE}
        else:
            # It takes no client from a header.
            assert wrong <= {GUNICORN}
            assert wrong or name in ("no header", "100,000 networks beside 10, new clients")
    assert cases["no header"].sides.keys() == {OURS, *PEERS}
    # To count hops takes no networks.
    assert cases["100,000 networks, new clients"].sides.keys() == {OURS, *PEERS} - {HYPERCORN, IPWARE}
    assert sum(bool(case.bars) for case in cases.values()) == 12


def test_new_clients_are_new_behind_the_same_proxies() -> None:
    lines = middleware.new_clients(hops=4, forged=2)
    first, second = next(lines), next(lines)
    assert first[0] != second[0]
    assert first[1] == f"198.18.0.0, 198.18.0.1, {first[0]}, 10.1.2.0, 10.2.0.0, 10.2.0.1"
    assert second[1] == f"198.18.0.0, 198.18.0.1, {second[0]}, 10.1.2.1, 10.2.0.0, 10.2.0.1"


def test_proxies_that_are_new_as_well() -> None:
    lines = middleware.new_clients(hops=20, new_proxies=True)
    proxies = [one for _ in range(5000) for one in str(next(lines)[1]).split(", ")[1:]]
    assert len(set(proxies)) == len(proxies) == 19 * 5000


def test_preambles() -> None:
    """Before they are timed all have named the client, and found five TLVs where they decode them."""
    cases = {case.name: case for case in preamble.cases(0.01)}
    assert len(cases) == len(preamble.ROWS)
    for case in cases.values():
        check(case)
        everybody = "decoded" not in case.name
        assert set(case.sides) == {name for name, one in preamble.READERS.items() if everybody or one.tlvs}


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (preamble.READERS[OURS]._replace(client=lambda _: ("::1", 1)), r"somebody finds \('::1', 1\) in v2"),
        (preamble.READERS[OURS]._replace(tlvs=lambda _: {}), "somebody does not find five TLVs"),
    ],
)
def test_who_reads_something_else(broken: preamble.Reader, text: str) -> None:
    row = next(row for row in preamble.ROWS if row.with_tlvs)
    with pytest.raises(SystemExit, match=text):
        preamble.check(row, "somebody", broken)


def test_footprints(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = (OURS, UVICORN, footprint.HYPERCORN, NGINX)
    monkeypatch.setattr(footprint, "SERVERS", sides)
    imports, *servers = footprint.cases(0.01)
    check(imports)
    assert imports.limit == footprint.MOST_FOR_IMPORT
    assert [case.kind for case in servers] == ["time", "memory", "memory"]
    for case in servers:
        check(case)
        assert tuple(case.sides) == sides
        assert all(number > 0 for samples in case.sides.values() for sample in samples for number in sample)


# How figures are put.


def made(**more: object) -> Case:
    ours = [Sample(1, 2), Sample(10, 20), Sample(3, 9)]
    theirs = [Sample(2, 2), Sample(40, 10), Sample(4, 3)]
    return Case("area", "case", "call", {OURS: ours, "uvicorn": theirs}, **more)  # type: ignore[arg-type]


def test_ratios_are_taken_within_a_round() -> None:
    # That of the medians would be 3 / 4.
    assert made().ratio("uvicorn") == Spread(0.375, 0.5, 0.625)
    assert made().ratio("uvicorn", 1) == Spread(1.5, 2, 2.5)
    assert made().spread("uvicorn") == Spread(3, 4, 22)
    assert comparison.spread([7]) == Spread(7, 7, 7)


def test_bars() -> None:
    case = made(bars={"uvicorn": 0.5}, wall_bars={"uvicorn": 1.9}, limit=2.5)
    assert list(case.verdicts()) == [
        Verdict("CPU to uvicorn", "0.500", "0.5", True),
        Verdict("wall to uvicorn", "2.000", "1.9", False),
        Verdict("CPU", "3 s", "2.5 s", False),
    ]
    ours, theirs = comparison.row(case, OURS), comparison.row(case, "uvicorn")
    assert ours == [OURS, "3 s", "9 s", "bar 2.5 s MISSED", "", ""]
    assert theirs[3:5] == ["0.500 (0.375-0.625), bar 0.5", "2.000 (1.500-2.500), bar 1.9 MISSED"]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("time", 1.5e-7, "150 ns"),
        ("time", 0.000_999, "999 µs"),
        ("time", 0.012_34, "12.3 ms"),
        ("time", 9.999e-7, "1000 ns"),
        ("time", 1234.5, "1234 s"),
        ("time", -2e-8, "-20 ns"),
        ("memory", 24_300_000, "24.3 MB"),
    ],
)
def test_units(kind: str, value: float, text: str) -> None:
    assert comparison.KINDS[kind].text(value) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.0, "1.000"), (0.020_01, "0.020"), (0.000_044_3, "4.4e-05")])
def test_small_ratios_say_something(ratio: float, text: str) -> None:
    assert comparison.figure(ratio) == text


def test_everybody_is_as_often_first_as_last() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], Sample]:
        def sample() -> Sample:
            order.append(name)
            return Sample(len(order), 0)

        return sample

    measured = comparison.measure({name: side(name) for name in "abc"}, 12)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)][1:]
    assert {name: len(samples) for name, samples in measured.items()} == dict.fromkeys("abc", 12)
    # The first round is not told.
    assert measured["b"][0].cpu == order.index("b", 3) + 1
    for place in (0, 1, 2):
        assert sorted(one[place] for one in rounds) == sorted("abc" * 4)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    case = made(bars={"uvicorn": 0.5}, notes={"uvicorn": "bare"})
    comparison.write(tmp_path / "samples.json", [case])
    assert comparison.read(tmp_path / "samples.json") == [case]


# The whole.


def test_the_suite_writes_what_it_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    assert suite.main(["--effort", "0.01", "--only", "preamble", "--output", str(folder)]) == 0
    told = capfd.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert len(results["areas"]["preamble"]) == len(preamble.ROWS)
    assert re.search(r"uvicorn \d+\.\d+", results["versions"])
    assert results["system"].startswith("Linux ")
    tables = (folder / "results.md").read_text()
    picture = (folder / "preamble.svg").read_text()
    shown = {text for element in ET.fromstring(picture).iter() if (text := (element.text or "").strip())}
    for row in preamble.ROWS:
        assert f"preamble: {row.name} (one preamble, 2 rounds)" in told
        assert f"**{row.name}** (one preamble, 2 rounds)" in tables
        assert row.name in shown
    assert {OURS, "proxy-protocol", "gunicorn asgi", "aiosmtpd"} <= shown
    assert "| preamble | v1 | CPU to gunicorn asgi |" in tables
    assert re.search(r"\d+ of 8 bars are met", told)


def test_an_area_that_fails_takes_nothing_from_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    only = "nothing_of_this_name,preamble"
    assert suite.main(["--effort", "0.01", "--only", only, "--output", str(tmp_path)]) == 1
    assert "FAILED: nothing_of_this_name" in capfd.readouterr().out
    assert list(json.loads((tmp_path / "results.json").read_text())["areas"]) == ["preamble"]


def test_every_area_has_its_picture_in_the_document() -> None:
    document = (ROOT / "docs/benchmarks.md").read_text()
    assert tuple(re.findall(r"images/benchmarks/(\w+)\.svg", document)) == suite.AREAS


def test_the_extra_installs_what_the_tests_have() -> None:
    """The same releases, or the tests would look at others than are measured."""

    def by_name(requirements: list[str]) -> dict[str, str]:
        found = (re.fullmatch(r"([\w-]+)(?:\[\w+\])?([^\w#].*)?", one) for one in requirements)
        return {one[1]: one[2] for one in found if one}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = by_name(project["optional-dependencies"]["bench"])
    tested = by_name((ROOT / "requirements-dev.txt").read_text().splitlines())
    assert wanted == {name: tested.get(name) for name in wanted}
    assert set(suite.PACKAGES) <= {"kongrealip", *by_name(project["dependencies"]), *wanted, "uvloop"}
