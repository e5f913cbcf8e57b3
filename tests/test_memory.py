"""What the rules remember from request to request: it is used, it has an end, and nothing long is kept."""

from __future__ import annotations

import sys

import pytest

from kongrealip.address import Address
from kongrealip.realip import ForwardedRules, KongTrust, Request, Resolution, Rules, TrustedNetworks, resolve
from kongrealip.realip import belief as belief_module
from kongrealip.realip import networks as networks_module
from kongrealip.realip.belief import Said

BALANCER = Address("10.0.0.1", 1)
ROOM = 3
#: The module, whose name is the function's in its package.
walk = vars(sys.modules[resolve.__module__])


def said(rules: ForwardedRules, host: bytes, *more: tuple[bytes, bytes]) -> Said:
    resolution = Resolution(BALANCER, BALANCER, True, "peer", None)
    return rules.said_of(resolution, Request([(b"host", host), *more], "http", b"/", 80, None))


def test_what_headers_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(belief_module, "_MOST_KNOWN", ROOM)
    rules = ForwardedRules(KongTrust(["10.0.0.0/8"]))
    for number in range(10):
        host = b"host%d" % number
        found = said(rules, host)
        assert found.host == host.decode()
        assert said(rules, host) is found
        assert 1 <= len(rules._known) <= ROOM
    # Lines without a say make no other request of it.
    assert said(rules, b"host9", (b"accept", b"x")) is found


def test_no_long_headers_are_kept() -> None:
    rules = ForwardedRules(KongTrust(["10.0.0.0/8"]))
    longest = belief_module._LONGEST_KNOWN
    half = (b"x-forwarded-host", b"a" * (longest // 2))
    found = said(rules, b"b" * (longest // 2), half)
    assert said(rules, b"b" * (longest // 2), half) is found
    said(rules, b"b" * (longest // 2 + 1), half)
    assert len(rules._known) == 1


def test_more_lines_than_kong_reads_are_not_taken_for_fewer() -> None:
    """Which lines count then depends on those without a say, which are not remembered."""
    rules = ForwardedRules(KongTrust(["10.0.0.0/8"]), most_lines=3)
    told, filler = (b"x_forwarded_path", b"/p"), (b"a", b"b")
    assert said(rules, b"host", told, filler, filler).upstream_path == b"/p"
    assert said(rules, b"host", filler, told).upstream_path == b"/p"
    assert said(rules, b"host", filler, filler, told).upstream_path is None
    assert said(rules, b"host", told).upstream_path == b"/p"


def test_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks_module, "_KNOWN_PEERS", ROOM)
    trust = KongTrust(["10.0.0.0/8"])
    for number in range(10):
        for peer, trusted in ((f"10.0.0.{number}", True), (f"11.0.0.{number}", False)):
            assert trust.trusts(peer) == trusted
            assert trust.trusts(peer) == trusted
            assert trust._known[peer] == trusted
            assert len(trust._known) <= ROOM


def test_a_peer_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = KongTrust(["10.0.0.0/8"])
    assert trust.trusts("10.0.0.1")
    monkeypatch.setattr(networks_module, "_strict_address", lambda text: pytest.fail(text))
    assert trust.trusts("10.0.0.1")


def test_peers_by_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their address, for each connection has a port of its own; and each is judged once."""
    monkeypatch.setitem(walk, "_REMEMBERED_PEERS", ROOM)
    rules = rules_for_x_forwarded_for()
    for number in range(10):
        for ip, printed, trusted in (
            (f"10.0.0.{number}", f"10.0.0.{number}", True), (f"11.0.0.{number}", f"11.0.0.{number}", False),
            (f"FE80::{number + 1}%eth0", f"fe80::{number + 1}", False), ("", "", False),
        ):  # fmt: skip
            for port in (1, 2):
                assert rules.judge(Address(ip, port)) == (Address(printed, port), trusted)
            assert ip in rules._judged
            assert len(rules._judged) <= ROOM
    monkeypatch.setitem(walk, "judge_peer", pytest.fail)
    assert rules.judge(Address("", 3)) == (Address("", 3), False)


def test_a_unix_socket_is_not_remembered_with_a_port() -> None:
    for entries, trusted in ((["unix:"], True), (["10.0.0.0/8"], False)):
        rules = Rules(TrustedNetworks(entries), "X-Forwarded-For", recursive=True)
        assert rules.judge(Address("unix:", 1)) == (Address("unix:", None), trusted)


def rules_for_x_forwarded_for() -> Rules:
    return Rules(TrustedNetworks(["10.0.0.0/8"]), "X-Forwarded-For", recursive=True)


def test_proxies() -> None:
    rules = rules_for_x_forwarded_for()
    room = walk["_REMEMBERED_RESTS"]
    for number in range(room + 1):
        proxy = b"10.0.%d.%d" % divmod(number, 256)
        resolve(rules, BALANCER, None, [b"203.0.113.7," + proxy])
        assert proxy.decode() in rules._trusted_rests
        assert len(rules._trusted_rests) <= room


def test_no_long_list_of_proxies_is_kept() -> None:
    rules = rules_for_x_forwarded_for()
    longest = walk["_LONGEST_REST"]
    for length, kept in ((longest + 1, 0), (longest - 1, 1)):
        rest = b"10.0.0.1".rjust(length)
        assert resolve(rules, BALANCER, None, [b"203.0.113.7," + rest]).client.ip == "203.0.113.7"
        assert len(rules._trusted_rests) == kept


def test_what_comes_again_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = rules_for_x_forwarded_for()
    rests = (b" 10.0.0.9", b"10.0.0.9, 10.0.0.8", b"10.0.0.1".rjust(walk["_LONGEST_REST"] - 1))
    for rest in rests:
        resolve(rules, BALANCER, None, [b"203.0.113.7," + rest])
    monkeypatch.setitem(walk, "split_line", pytest.fail)
    for rest in rests:
        for client in (b"203.0.113.7", b" 203.0.113.8  "):
            ip = client.strip().decode()
            assert resolve(rules, BALANCER, None, [client + b"," + rest]).client.ip == ip


def test_what_stands_in_front_of_the_client_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it long: anybody can write it."""
    monkeypatch.setitem(walk, "split_line", pytest.fail)
    for recursive, client in ((True, "203.0.113.7"), (False, "203.0.113.7"), (False, "10.0.0.9")):
        rules = Rules(TrustedNetworks(["10.0.0.0/8"]), "X-Forwarded-For", recursive)
        line = b"6.6.6.6, " * 20 + client.encode()
        assert resolve(rules, BALANCER, None, [line]).client.ip == client


def test_what_is_remembered_is_the_whole_of_it() -> None:
    """An entry more, or a byte, and it is walked anew; and the client is read as it always is."""
    for byte in range(256):
        other = bytes((byte,))
        rules = rules_for_x_forwarded_for()
        assert resolve(rules, BALANCER, None, [b"203.0.113.7,10.0.0.9"]).client.ip == "203.0.113.7"
        for line in (
            b"6.6.6.6," + other + b"10.0.0.9", b"6.6.6.6" + other + b"10.0.0.9", b"6.6.6.6,10.0.0.9" + other,
            b"6.6.6.6" + other + b",10.0.0.9", other + b"6.6.6.6,10.0.0.9", b"6.6.6.6," + other + b",10.0.0.9",
        ):  # fmt: skip
            anew = resolve(rules_for_x_forwarded_for(), BALANCER, None, [line])
            assert resolve(rules, BALANCER, None, [line]) == anew, line


def test_only_what_is_trusted_is_remembered() -> None:
    """Or a stranger's entry would be passed over when it comes again, behind a client of his choice."""
    rules = rules_for_x_forwarded_for()
    for client in (b"6.6.6.6", b"7.7.7.7"):
        for rest, ip in ((b"1.1.1.1", "1.1.1.1"), (b"junk, 10.0.0.9", "10.0.0.9"), (b"junk", "10.0.0.1")):
            assert resolve(rules, BALANCER, None, [client + b", " + rest]).client.ip == ip
    assert rules._trusted_rests == set()
    once = Rules(TrustedNetworks(["10.0.0.0/8"]), "X-Forwarded-For", recursive=False)
    assert resolve(once, BALANCER, None, [b"203.0.113.7, 10.0.0.9"]).client.ip == "10.0.0.9"
    assert once._trusted_rests == set()
