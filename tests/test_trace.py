"""The trace ends where resolve does, on every public vector, and names the entry that decided."""

from __future__ import annotations

import pytest

from kongrealip.address import Address, parse_hop
from kongrealip.realip import Rules, TrustedNetworks, resolve
from kongrealip.realip.networks import UNIX
from kongrealip.realip.trace import CLIENT, NO_ADDRESS, NOT_READ, PASSED, Step, entry_of, trace
from tests import golden
from tests.test_resolve_vectors import SERVED, by_id, peer_of, rules_of, split_preamble

TRUSTED = ["10.0.0.0/8", "192.168.0.0/16", "::/0", "unix:"]
PEER = Address("10.0.0.5", 40000)


def steps_of(
    *lines: str, header: str = "X-Forwarded-For", recursive: bool = True, peer: Address = PEER
) -> list[Step]:
    rules = Rules(TrustedNetworks(TRUSTED), header, recursive)
    return list(trace(rules, TRUSTED, peer, None, [line.encode() for line in lines]).steps)


def shown(steps: list[Step]) -> list[tuple[str, int, str, str | None]]:
    return [(step.text, step.line, step.fate, step.entry) for step in steps]


@pytest.mark.parametrize("vector", SERVED, ids=by_id)
def test_it_ends_at_the_same_client(vector: golden.Vector) -> None:
    preamble, data = split_preamble(vector)
    rules, trusted = rules_of(vector), vector["config"]["trusted_ips"]
    headers = next(golden.requests(data))
    lines = [value for name, value in headers if name == rules.header_name]
    found = trace(rules, trusted, peer_of(vector), preamble, lines)
    assert found.resolution == resolve(rules, peer_of(vector), preamble, lines)
    (client,) = (step for step in found.steps if step.fate == CLIENT)
    assert (client.ip, client.port) == found.resolution.client
    assert client.source == found.resolution.source
    for step in found.steps:
        if step.ip is not None:
            assert (step.entry is not None) == is_trusted(rules, step.ip)
        if step.fate == PASSED:
            assert step.entry is not None
    fates = [step.fate for step in found.steps]
    assert fates == sorted(fates, key=[PASSED, CLIENT, NO_ADDRESS, NOT_READ].index)


def is_trusted(rules: Rules, ip: str) -> bool:
    hop = parse_hop(ip)
    return rules.networks.unix if ip == UNIX else hop is not None and rules.networks.covers(hop[1])


def test_the_walk() -> None:
    assert shown(steps_of("6.6.6.6, 203.0.113.7", "10.1.1.1,192.168.0.1")) == [
        ("10.0.0.5", 0, PASSED, "10.0.0.0/8"),
        ("192.168.0.1", 2, PASSED, "192.168.0.0/16"),
        ("10.1.1.1", 2, PASSED, "10.0.0.0/8"),
        ("203.0.113.7", 1, CLIENT, None),
        ("6.6.6.6", 1, NOT_READ, None),
    ]


def test_what_is_no_address_is_shown_as_it_was_received() -> None:
    rules = Rules(TrustedNetworks(TRUSTED), "X-Forwarded-For", recursive=True)
    for byte in range(256):
        if byte not in b" ,":
            entry = bytes((byte, ord("-"), byte))
            steps = trace(rules, TRUSTED, PEER, None, [b"  " + entry + b" ,10.1.1.1 "]).steps
            assert [step.text for step in steps] == ["10.0.0.5", "10.1.1.1", entry.decode("latin-1")]


def test_junk_ends_it() -> None:
    assert shown(steps_of("1.1.1.1, junk, 10.1.1.1")) == [
        ("10.0.0.5", 0, PASSED, "10.0.0.0/8"),
        ("10.1.1.1", 1, CLIENT, "10.0.0.0/8"),
        ("junk", 1, NO_ADDRESS, None),
        ("1.1.1.1", 1, NOT_READ, None),
    ]


def test_without_recursion_one_entry_is_read() -> None:
    assert [step.fate for step in steps_of("10.2.2.2", "1.1.1.1, 10.1.1.1", recursive=False)] == [
        PASSED, CLIENT, NOT_READ, NOT_READ,
    ]  # fmt: skip


def test_of_another_header_the_first_line_is_read() -> None:
    assert shown(steps_of("10.1.1.1", "1.1.1.1", header="X-Real-IP"))[1:] == [
        ("10.1.1.1", 1, CLIENT, "10.0.0.0/8"),
        ("1.1.1.1", 2, NOT_READ, None),
    ]


def test_a_peer_that_is_not_trusted() -> None:
    assert [step.fate for step in steps_of("1.1.1.1", peer=Address("8.8.8.8", 1))] == [CLIENT, NOT_READ]


def test_which_entry_covers() -> None:
    assert entry_of(TRUSTED, "::ffff:10.0.0.1") == "10.0.0.0/8"
    assert entry_of(TRUSTED, "2001:db8::1") == "::/0"
    assert entry_of(TRUSTED, "unix:") == "unix:"
    assert entry_of(["10.0.0.0/8"], "unix:") is None
    assert entry_of(TRUSTED, "8.8.8.8") is None
    assert entry_of(TRUSTED, "") is None
