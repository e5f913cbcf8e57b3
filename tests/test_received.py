"""Values as they come: what is taken off them, what is read as a port or a path, and what goes on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from kongrealip.address import Address
from kongrealip.realip import Forwarded, ForwardedRules, KongTrust, Request, Resolution
from kongrealip.realip.paths import normalised
from kongrealip.realip.received import MOST_LINES, named_in_connection, names_nothing
from tests.test_forwarded import BALANCER, LINES, STRANGER, view

PATH, UNDERSCORED, HALF = b"x-forwarded-path", b"x_forwarded_path", b"x-forwarded_path"
#: With it the lookup takes its long way.
OTHER = (b"x_forwarded_proto", b"https")


@pytest.mark.parametrize("others", [(), (OTHER,)], ids=["alone", "among others"])
@pytest.mark.parametrize("name", [PATH, UNDERSCORED, HALF])
def test_blanks_at_the_end_are_taken_off_and_nothing_else(
    name: bytes, others: tuple[tuple[bytes, bytes], ...]
) -> None:
    """As nginx does, for servers that leave them: no tab, no letter, and no blank in front."""
    for byte in range(256):
        if byte == ord(" "):
            continue
        value = b" /p" + bytes((byte,))
        forwarded = view(BALANCER, *others, (name, value + b"  "))
        assert forwarded.path == value.decode("latin-1")
        if name != HALF:
            assert forwarded.upstream_headers["X-Forwarded-Path"] == value.decode("latin-1")


def test_blanks_behind_what_is_appended_to() -> None:
    for byte in range(256):
        if byte == ord(" "):
            continue
        value = b" 6" + bytes((byte,))
        sent = view(STRANGER, (b"x-forwarded-for", value + b"  ")).upstream_headers["X-Forwarded-For"]
        assert sent == f"{value.decode('latin-1')}, {STRANGER.ip}"


@given(LINES)
def test_lines_and_texts_for_an_upstream_are_the_same(lines: list[tuple[bytes, bytes]]) -> None:
    """Also where the server could not tell the peer, and what is empty is not sent."""
    for peer in (BALANCER, STRANGER, Address("", None)):
        forwarded = view(peer, *lines)
        sent = {name.decode(): value.decode("latin-1") for name, value in forwarded.upstream_lines}
        assert sent == {name.lower(): text for name, text in forwarded.upstream_headers.items()}
        assert all(sent.values())
        assert ("x-real-ip" in sent) == (peer.ip != "")


def test_a_path_that_was_received_empty_is_not_sent() -> None:
    assert "X-Forwarded-Path" not in view(BALANCER, (PATH, b"")).upstream_headers


@pytest.mark.parametrize(
    ("text", "port"),
    [
        (b"1", 1), (b"0", None), (b"65535", 65535), (b"65536", None), (b"065535", 65535), (b"00000001", 1),
        (b"0xffff", 65535), (b"0x10000", None), (b"65535.0", 65535), (b"65535.5", None), (b"0.5", None), (b"1.0", 1),
        (b"\t443\r", 443), (b"\xa0443", None), (b"\x1f443", None), (b"X443", None), (b"443X", None),
        (b"0x1p9999", None), (b"-0x1p9999", None), (b"0b" + b"1" * 2000, None), (b"-443", None), (b"+443", 443),
        (b"inf", None), (b"-inf", None), (b"nan", None), (b"0B11", 3), (b"0X1P3", 8), (b"1E2", 100),
    ],
)  # fmt: skip
def test_a_port_as_lua_reads_numbers(text: bytes, port: int | None) -> None:
    """Where it is none the listener's port counts; a whole number is one, in JSON and in links too."""
    found = view(BALANCER, (b"x-forwarded-port", text)).port
    assert json.dumps(found) == json.dumps(port or 8000)


def test_a_mapped_port_is_a_whole_number_where_it_can_be() -> None:
    assert json.dumps(view(STRANGER, port_maps={"8000": 80.0}).port) == "80"


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        (b"/a/b/c/../d", b"/a/b/d"), (b"/a/../../b", b"/b"), (b"/a/b/..", b"/a/"), (b"/a/b/.", b"/a/b/"),
        (b"/a//", b"/a/"), (b"/a/./b/", b"/a/b/"), (b"/..", b"/"), (b"/./", b"/"), (b"/a/...", b"/a/..."),
        (b"shop.example:443", b"shop.example:443"), (b"a/../b", b"a/../b"), (b"*", b"*"), (b"", b""),
        (b"/%2e%2E/a", b"/a"), (b"/%2fa%2", b"/%2Fa%2"),
    ],
)  # fmt: skip
def test_a_path_without_dots(path: bytes, seen: bytes) -> None:
    """What begins with no slash is no path: CONNECT has an authority there, and OPTIONS a star."""
    assert normalised(path) == seen


@pytest.mark.parametrize(
    ("headers", "nothing"),
    [
        ([], True),
        ([(b"accept", b"x-real-ip")], True),
        ([(b"connection", b"keep-alive"), (b"accept", b"x")], True),
        ([(b"connection", b"x-real-ip")], False),
        ([(b"connection", b"close"), (b"connection", b"X_Real_IP ,\tclose")], False),
    ],
)
def test_whether_connection_names_anything(headers: list[tuple[bytes, bytes]], nothing: bool) -> None:
    """Most requests stop here, before anything is split."""
    assert names_nothing(headers) == nothing
    assert (named_in_connection(headers) & {b"x-real-ip"} == frozenset()) == nothing


def test_the_first_lines_alone_have_a_say_for_an_upstream() -> None:
    """Kong's limit, to the line: the host is the first."""
    filler = [(b"a", b"b")] * (MOST_LINES - 2)
    for line in ((b"x-forwarded-path", b"/p"), (b"x_forwarded_path", b"/p")):
        for lines, sent in (([*filler, line], "/p"), ([*filler, filler[0], line], "/a/../b%2fc")):
            forwarded = view(BALANCER, *lines)
            assert forwarded.upstream_headers["X-Forwarded-Path"] == sent
            assert forwarded.path == "/p"
    for line in ((b"x-forwarded-for", b"6"), (b"x_forwarded_for", b"6")):
        for lines, sent in (([*filler, line], "6, 8.8.8.8"), ([*filler, filler[0], line], "8.8.8.8")):
            assert view(STRANGER, *lines).upstream_headers["X-Forwarded-For"] == sent


@pytest.mark.parametrize(
    ("prefix", "sent"),
    [(None, None), ("/", None), ("", None), ("/api", b"/api"), ("/\udcff\xe9", b"/\xff\xc3\xa9")],
)
def test_the_prefix_of_routing(prefix: str | None, sent: bytes | None) -> None:
    """Text as ASGI has it: what is no UTF-8 goes on byte by byte."""
    resolution = Resolution(STRANGER, STRANGER, False, "peer", None)
    request = Request([], "http", b"/", None, prefix)
    forwarded = Forwarded(ForwardedRules(KongTrust()), resolution, request)
    assert dict(forwarded.upstream_lines).get(b"x-forwarded-prefix") == sent


@pytest.mark.parametrize(
    ("lines", "host"),
    [
        ([], b""), ([b"Shop.Example  "], b"shop.example"), ([b"shop.example:8080  "], b"shop.example"),
        ([b"shop.example."], b"shop.example"), ([b"shop.example..:80"], b"shop.example."), ([b"shop\t"], b"shop\t"),
        ([b"[2001:DB8::1]:80"], b"[2001:db8::1]"), ([b"[2001:DB8::1]"], b"[2001:db8::1]"), ([b"[::1"], b"[::1"),
        ([b"first", b"second"], b"first"), ([b"a:1:2"], b"a"), ([b"[::1]:80]"], b"[::1]"), ([b" SHOPX "], b" shopx"),
    ],
)  # fmt: skip
def test_the_requests_own_host(lines: list[bytes], host: bytes) -> None:
    headers = [(b"accept", b"x"), *((b"host", line) for line in lines)]
    assert Request(headers, "http", b"/", None, None).host == host
