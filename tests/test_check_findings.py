"""Findings one by one: where each begins and ends, which request it shows, and what it says to write."""

from __future__ import annotations

import pytest

from kongrealip import Settings, SettingsError
from kongrealip.config.findings import Finding, invalid_findings
from kongrealip.config.findings_model import Example, doors, peer_of, trusted_peer, variable
from kongrealip.realip import TrustedNetworks
from tests.test_check import CLIENT, FLAG, L4, L7, PLAIN, RELAY, codes, env, found_in, loud

FORGED = "6.6.6.6"
BOTH = f"{RELAY}; {PLAIN}; REAL_IP_HEADER=X-Forwarded-For"


def only(code: str, text: str) -> Finding:
    (finding,) = (finding for finding in found_in(env(text)) if finding.code == code)
    return finding


def trusting(networks: str, text: str = L7) -> str:
    return text.replace("10.0.0.0/8", networks)


# --- what is not a setting --------------------------------------------------------------------


def test_a_name_that_is_not_read_is_told_with_the_one_that_is() -> None:
    misspelt = only("misspelt-name", "KONG_TRUSTED_IP=10.0.0.0/8")
    assert misspelt[:3] == ("misspelt-name", "KONG_TRUSTED_IP", "is not a name that is read")
    assert misspelt.fix == "write KONG_TRUSTED_IPS"
    (in_file,) = found_in({}, "Trusted_IPs = 10.0.0.1")
    assert (in_file.variable, in_file.fix) == ("Trusted_IPs", "write trusted_ips")
    elsewhere = only("not-read-here", f"{L7}; NGINX_PROXY_SET_REAL_IP_FROM=10.0.0.0/8")
    assert elsewhere[:3] == ("not-read-here", "KONG_NGINX_PROXY_SET_REAL_IP_FROM", "is not read here")
    assert elsewhere.fix == "list the network in trusted_ips instead"


def test_problems_are_findings_one_by_one() -> None:
    first, second = invalid_findings(SettingsError(["KONG_A: x: y", "b in kong.conf: z"]))
    assert (first.variable, first.problem) == ("KONG_A", "x: y")
    assert (second.variable, second.problem) == ("b in kong.conf", "z")
    assert first.severity == second.severity == "error"


def test_names_come_first_and_what_two_share_once() -> None:
    text = f"{trusting('0.0.0.0/0', BOTH)}; KONG_LOG_LEVE=info"
    found = [finding.code for finding in found_in(env(text))]
    assert found == ["misspelt-name", "trust-everybody"]


# --- doors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (L7, ["proxy_listen"]),
        (f"{L7}; PROXY_LISTEN=off", ["proxy_listen"]),
        (RELAY, ["stream_listen"]),
        (BOTH, ["proxy_listen", "stream_listen"]),
        (f"{RELAY}; {PLAIN}", ["proxy_listen", "stream_listen"]),
        (f"{RELAY}; REAL_IP_HEADER=X-Real-IP", ["proxy_listen", "stream_listen"]),
        (f"{BOTH}; PROXY_LISTEN=off", ["stream_listen"]),
    ],
)
def test_the_ways_in_that_are_used(text: str, keys: list[str]) -> None:
    settings = Settings.load(env(text))
    ways = doors(settings)
    assert [door.key for door in ways] == keys
    for door in ways:
        assert door.listens == getattr(settings, door.key)
        assert door.header == (settings.real_ip_header if door.is_http else "proxy_protocol")


def test_the_name_of_what_was_not_set() -> None:
    assert variable(Settings(), "trusted_ips") == "KONG_TRUSTED_IPS"
    assert variable(Settings(), "forwarded_headers") == "KONGREALIP_FORWARDED_HEADERS"
    assert variable(Settings(given={"trusted_ips": "x in y"}), "trusted_ips") == "x in y"


@pytest.mark.parametrize(
    ("entries", "peer"),
    [
        ("", "10.0.0.5"),
        ("unix:", "unix:"),
        ("0.0.0.0/0", "10.0.0.5"),
        ("127.0.0.1,192.168.0.0/16", "192.168.0.5"),
        ("172.16.0.0/12", "172.16.0.5"),
        ("127.0.0.0/8", "127.0.0.1"),
        ("fd00::/8", "fd00::5"),
        ("203.0.113.0/24", "203.0.113.5"),
        ("203.0.113.9/24", "203.0.113.5"),
        ("203.0.113.8/29", "203.0.113.13"),
        ("203.0.113.8/30", "203.0.113.8"),
        ("unix:,203.0.113.9", "203.0.113.9"),
        ("::ffff:1.2.3.4,203.0.113.9", "203.0.113.9"),
        ("::ffff:1.2.3.4", "10.0.0.5"),
        ("2001:db8::/32", "2001:db8::5"),
    ],
)
def test_who_sends_an_example(entries: str, peer: str) -> None:
    networks = tuple(entries.split(",")) if entries else ()
    assert trusted_peer(TrustedNetworks(networks), networks) == peer
    assert peer_of(doors(Settings(networks))[0]) == peer


def test_an_example_in_words() -> None:
    assert str(Example("it ends")) == "it ends"
    assert str(Example("it ends", "p")) == "p sends a plain request: it ends"
    assert (
        str(Example("it ends", "p", "PROXY", ("A: b", "C: d"))) == "p sends PROXY and A: b and C: d: it ends"
    )
    assert str(Example("it ends", "p", "", ("A: b",))) == "p sends A: b: it ends"


@pytest.mark.parametrize(
    ("listen", "port"),
    [("PROXY_LISTEN=a:7000, a:9000 proxy_protocol", 9000), ("PROXY_LISTEN=a:7000", 7000), ("PROXY_LISTEN=off", 8000)],
)  # fmt: skip
def test_a_preamble_is_one_to_a_listener(listen: str, port: int) -> None:
    from kongrealip.config.findings_model import preamble_text

    door = doors(Settings.load(env(f"TRUSTED_IPS=10.0.0.0/8; {listen}")))[0]
    assert preamble_text(CLIENT, door) == f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 {port}"
    assert preamble_text("2001:db8::7", door) == f"PROXY TCP6 2001:db8::7 fd00::9 51000 {port}"


# --- KONG_TRUSTED_IPS -------------------------------------------------------------------------


def test_everybody_may_be_of_either_family() -> None:
    assert only("trust-everybody", trusting("0.0.0.0/0")).example.peer == "203.0.113.66"
    assert only("trust-everybody", trusting("10.0.0.0/8,::/0")).example.peer == "2001:db8::66"
    recursive = only("trust-everybody-recursive", f"{trusting('::/0')}; REAL_IP_RECURSIVE=on").example
    assert (recursive.peer, recursive.client) == ("fd00::5", FORGED)
    assert recursive.headers == (f"X-Forwarded-For: {FORGED}, 2001:db8::66",)
    lower = f"{trusting('0.0.0.0/0')}; REAL_IP_RECURSIVE=on".replace("X-Forwarded-For", "x-forwarded-for")
    assert only("trust-everybody-recursive", lower).example.peer == "10.0.0.5"
    assert loud(env(f"{trusting('0.0.0.0/0', L4)}; REAL_IP_RECURSIVE=on")) == {"trust-everybody"}


@pytest.mark.parametrize(
    ("networks", "attackers"),
    [
        ("10.0.0.0/8,203.0.113.0/24", ["203.0.113.254"]),
        ("10.0.0.0/8,203.0.113.4/31", ["203.0.113.4"]),
        ("203.0.0.0/8,2001:db8::/64", ["203.255.255.254", "2001:db8::ffff:ffff:ffff:fffe"]),
        ("10.0.0.0/7", ["11.255.255.254"]),
        ("10.0.0.0/8,203.0.113.4/32,2001:db8::5,unix:", []),
        # Of nginx's entries this one covers nobody.
        ("10.0.0.0/8,::ffff:203.0.113.0/120", []),
    ],
)
def test_public_ranges(networks: str, attackers: list[str]) -> None:
    found = [finding for finding in found_in(env(trusting(networks))) if finding.code == "trust-public-range"]
    assert [finding.example.peer for finding in found] == attackers
    for finding in found:
        assert finding.example.client == FORGED
        assert finding.example.right == finding.example.peer


# Networks of balancers that are known, though their addresses are public or shared.
KNOWN = """
10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 fc00::/7 fe80::/10
35.191.0.0/16 130.211.0.0/22 2600:2d00:1:b029::/64 2600:2d00:1:1::/64
173.245.48.0/20 103.21.244.0/22 103.22.200.0/22 103.31.4.0/22 141.101.64.0/18 108.162.192.0/18 190.93.240.0/20
188.114.96.0/20 197.234.240.0/22 198.41.128.0/17 162.158.0.0/15 104.16.0.0/13 104.24.0.0/14 172.64.0.0/13
131.0.72.0/22 2400:cb00::/32 2606:4700::/32 2803:f800::/32 2405:b500::/32 2405:8100::/32 2a06:98c0::/29
2c0f:f248::/32
""".split()


@pytest.mark.parametrize("network", KNOWN)
def test_networks_of_balancers_are_known(network: str) -> None:
    """Private ones, Google's front ends, and Cloudflare's as it publishes them."""
    assert codes(env(trusting(network))) == set()


def test_a_network_may_be_written_by_any_of_its_addresses() -> None:
    assert codes(env(trusting("10.0.0.1/8"))) == set()


def test_the_private_range_is_missing() -> None:
    assert only("no-private-range", trusting("203.0.113.9")).example == Example(
        f"the client is 10.0.0.5, and should be {CLIENT}", "10.0.0.5", "", (f"X-Forwarded-For: {CLIENT}",),
        "10.0.0.5", CLIENT,
    )  # fmt: skip
    for networks in ("203.0.113.9,unix:", "203.0.113.9,10.1.2.3", "", "0.0.0.0/0"):
        assert "no-private-range" not in codes(env(trusting(networks)))
    of_preambles = only("no-private-range", trusting("203.0.113.9", L4)).example
    assert (of_preambles.preamble, of_preambles.headers) == (f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 8000", ())


@pytest.mark.parametrize(
    ("entry", "peer", "ipv4"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.5", "10.0.0.0/8"),
        ("::ffff:10.0.0.8/126", "10.0.0.11", "10.0.0.8/30"),
        ("::ffff:10.0.0.8", "10.0.0.8", "10.0.0.8/32"),
    ],
)
def test_entries_that_cover_nobody(entry: str, peer: str, ipv4: str) -> None:
    found = only("trust-without-effect", trusting(f"192.168.0.0/16,{entry},unix:"))
    assert (found.example.peer, found.example.client, found.example.right) == (peer, peer, CLIENT)
    assert found.fix == f"write {ipv4}"
    # Kong believes by this one, and nginx by the other.
    assert codes(env(trusting(f"{entry},{ipv4}"))) == set()
    third = only("trust-without-effect", trusting(f"{entry},{ipv4},::ffff:192.0.2.1"))
    assert third.fix == "write 192.0.2.1/32"


def test_what_nobody_who_is_trusted_makes_useless() -> None:
    both = only("nobody-trusted", f"REAL_IP_HEADER=X-A; REAL_IP_RECURSIVE=on; {PLAIN}")
    assert "KONG_REAL_IP_HEADER and KONG_REAL_IP_RECURSIVE has no effect" in both.problem
    assert both.example.headers == (f"X-A: {CLIENT}",)
    one = only("nobody-trusted", f"REAL_IP_HEADER=X-A; REAL_IP_RECURSIVE=off; {PLAIN}")
    assert "so KONG_REAL_IP_HEADER has no effect" in one.problem
    recursive = only("nobody-trusted", "REAL_IP_RECURSIVE=on")
    assert "so KONG_REAL_IP_RECURSIVE has no effect" in recursive.problem
    assert codes(env("STREAM_LISTEN=a:1; REAL_IP_RECURSIVE=on")) == set(), "a relay reads no header"
    unread = only("nobody-trusted", f"REAL_IP_HEADER=proxy_protocol; {PLAIN}")
    assert (unread.example.preamble, unread.example.headers) == ("", ())
    flagged = only("preamble-unused", f"{FLAG}; REAL_IP_HEADER=X-A")
    assert flagged.problem.startswith("KONG_PROXY_LISTEN demands preambles")
    assert flagged.example.preamble == f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 8000"
    relay = only("preamble-unused", "STREAM_LISTEN=0.0.0.0:9000 proxy_protocol")
    assert relay.problem.startswith("KONG_STREAM_LISTEN demands preambles")
    assert relay.example.preamble.endswith(" 9000")


def test_unix_sockets_alone() -> None:
    assert "and 0.0.0.0:8000 is none" in only("unix-alone", trusting("unix:")).problem
    assert only("unix-alone", trusting("unix:,unix:")).example.client == "10.0.0.5"
    unread = trusting("unix:", L4).replace(" proxy_protocol", "")
    assert loud(env(unread)) == {"source-without-flag"}, "no preamble is read"


MAPPED = L7.replace("0.0.0.0:8000", "0.0.0.0:9000, [::1]:8000 ipv6only=off")


def test_ipv4_peers_of_an_ipv6_listener() -> None:
    found = only("mapped-peers", MAPPED)
    assert found.variable == "KONG_PROXY_LISTEN"
    assert found.example[:4] == (
        "its header names the client, and the scheme stays http", "::ffff:10.0.0.5", "", ("X-Forwarded-Proto: https",),
    )  # fmt: skip
    assert (
        ":8000 with ipv6only=off has IPv4 peers as ::ffff:10.0.0.5: their X-Forwarded-For counts"
        in found.problem
    )
    assert found.fix == "listen on 0.0.0.0:8000 and, with ipv6only=on, on [::]:8000"
    for fine in (
        MAPPED.replace("ipv6only=off", "ipv6only=on"),
        f"{MAPPED}; KONGREALIP_FORWARDED_HEADERS=off",
        trusting("10.0.0.0/8,::ffff:10.0.0.0/104", MAPPED),
        trusting("fd00::/8", MAPPED),
        MAPPED.replace("X-Forwarded-For", "proxy_protocol"),
    ):
        assert "mapped-peers" not in codes(env(fine))


# --- KONG_REAL_IP_HEADER ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "fix"),
    [
        ("X-Forwaded-For", "write X-Forwarded-For"),
        ("X_Real_IP", "write X-Real-IP"),
        ("TRUE_CLIENT_IP", "write true-client-ip"),
        ("CF-Connecting-I", "write cf-connecting-ip"),
        ("X-Odd", "write X-Forwarded-For or X-Real-IP"),
        # Alike, and not so much that it was meant.
        ("X-Peer-IP", "write X-Forwarded-For or X-Real-IP"),
    ],
)
def test_the_header_that_may_have_been_meant(header: str, fix: str) -> None:
    found = only("header-unknown", L7.replace("X-Forwarded-For", header))
    assert found.fix == f"{fix}, or have the balancer overwrite {header} in each request"
    assert found.example.headers == (f"{header}: {FORGED}", f"X-Forwarded-For: {CLIENT}")
    assert (found.example.client, found.example.right) == (FORGED, CLIENT)


SENT = """X-Real-IP X-Client-IP X-Cluster-Client-IP X-Original-Forwarded-For X-Envoy-External-Address True-Client-IP
CF-Connecting-IP CF-Connecting-IPv6 Fastly-Client-IP Fly-Client-IP X-Azure-ClientIP X-Azure-SocketIP X-AppEngine-User-IP
DO-Connecting-IP Incap-Client-IP X-Sucuri-ClientIP X-Vercel-Forwarded-For X-NF-Client-Connection-IP Ali-CDN-Real-IP
CDN-Src-IP""".split()


@pytest.mark.parametrize("header", SENT)
def test_headers_of_balancers_are_known(header: str) -> None:
    assert codes(env(L7.replace("X-Forwarded-For", header))) == set()


@pytest.mark.parametrize("header", ["x-forwarded-for", "Forwarded", "X-Odd", "Proxy-Protocol"])
def test_a_header_is_read_of_somebody_who_is_trusted(header: str) -> None:
    text = L7.replace("X-Forwarded-For", header)
    assert loud(env(trusting("", text))) == {"nobody-trusted"}
    assert loud(env(trusting("::ffff:1.2.3.4", text))) == {"trust-without-effect"}
    assert len(loud(env(trusting("unix:,10.0.0.0/8", text)))) == 1


@pytest.mark.parametrize(
    ("flag", "preamble"), [(FLAG, f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 8000"), (PLAIN, "")]
)
def test_a_header_in_the_place_of_a_preamble(flag: str, preamble: str) -> None:
    found = only("header-for-preamble", f"TRUSTED_IPS=10.0.0.0/8; REAL_IP_HEADER=Proxy-Protocol; {flag}")
    assert (found.example.preamble, found.example.headers) == (preamble, (f"Proxy-Protocol: {FORGED}",))
    assert found.fix == "write proxy_protocol, exactly so"
