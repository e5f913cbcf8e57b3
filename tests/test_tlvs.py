"""What the balancer said, decoded. The bytes are those of the clouds' and the specification's own examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongrealip.preamble import Preamble, parse
from kongrealip.preamble.description import describe_preamble
from kongrealip.preamble.said import SSL, TLVs
from kongrealip.preamble.tlv import entries
from kongrealip.preamble.writing import tlv

V2_HEAD = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
ADDRESSES = bytes([203, 0, 113, 7, 198, 51, 100, 9]) + (51000).to_bytes(2) + (443).to_bytes(2)
TEXTS = (
    "alpn",
    "authority",
    "unique_id",
    "netns",
    "ssl",
    "aws_vpc_endpoint_id",
    "google_psc_connection_id",
    "azure_link_id",
)


def said(*tlvs: bytes) -> TLVs:
    """Through a whole preamble."""
    body = ADDRESSES + b"".join(tlvs)
    parsed = parse(V2_HEAD + len(body).to_bytes(2) + body, limit=70000)
    assert parsed is not None
    return parsed[0].tlvs


def ssl_tlv(client: int, verify: int, **texts: bytes) -> bytes:
    kinds = {"version": 0x21, "cn": 0x22, "cipher": 0x23, "signature": 0x24, "key": 0x25}
    inner = b"".join(tlv(kinds[name], value) for name, value in texts.items())
    return tlv(0x20, bytes([client]) + verify.to_bytes(4) + inner)


def test_what_the_specification_has() -> None:
    tlvs = said(
        tlv(1, b"h2"), tlv(2, "bücher.example".encode()), tlv(5, b"\x00\xff"), tlv(0x30, b"blue"), tlv(0xEB, b"x"),
        ssl_tlv(0x07, 0, version=b"TLSv1.3", cn="Jörg".encode(), cipher=b"TLS_AES_128_GCM_SHA256", signature=b"SHA256", key=b"RSA2048"),
    )  # fmt: skip
    assert (tlvs.alpn, tlvs.authority, tlvs.unique_id, tlvs.netns) == (
        "h2",
        "bücher.example",
        b"\x00\xff",
        "blue",
    )
    assert tlvs.ssl == SSL(7, 0, "TLSv1.3", "Jörg", "TLS_AES_128_GCM_SHA256", "SHA256", "RSA2048")
    assert tlvs.ssl.over_tls
    assert tlvs.ssl.client_verified
    assert tlvs[0xEB] == b"x", "what has no name"


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [
        (0x01, 0, False),  # nobody asked for a certificate
        (0x03, 0, True),
        (0x05, 0, True),
        (0x07, 0, True),
        (0x03, 10, False),  # one that has expired
        (0x03, 1 << 24, False),  # whatever the number is
        (0x00, 0, False),
        (0x02, 0, False),  # without TLS there is none
        (0x08, 0, False),  # a bit that is not known
    ],
)
def test_a_client_is_verified_who_showed_a_certificate(client: int, verify: int, verified: bool) -> None:
    ssl = said(ssl_tlv(client, verify, cn=b"admin")).ssl
    assert ssl is not None
    assert (ssl.client_verified, ssl.over_tls, ssl.cn) == (verified, bool(client & 1), "admin")


def test_the_clouds() -> None:
    assert said(tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9")).aws_vpc_endpoint_id == "vpce-08d2bf15fac5001c9"
    assert said(tlv(0xE0, bytes.fromhex("00000001b2f3c4d5"))).google_psc_connection_id == 0x1B2F3C4D5
    assert said(tlv(0xEE, b"\x01" + (0x01020304).to_bytes(4, "little"))).azure_link_id == 0x01020304


def test_as_json() -> None:
    """What whoami and explain answer is read by programs."""
    area = b"".join(
        (tlv(1, b"h2"), tlv(2, b"shop.example"), tlv(0x30, b"blue"), tlv(5, b"\x00\xff"),
         ssl_tlv(0x05, 0x01020304, version=b"TLSv1.3", cn=b"admin"), tlv(0xEA, b"\x01vpce-0"),
         tlv(0xE0, bytes(7) + b"\x05"), tlv(0xEE, b"\x01\x06\0\0\0"))
    )  # fmt: skip
    found = describe_preamble(Preamble(2, "PROXY", "203.0.113.7", 51000, "198.51.100.9", 443, area))
    assert found == {
        "version": 2, "command": "PROXY", "source_ip": "203.0.113.7", "source_port": 51000,
        "destination_ip": "198.51.100.9", "destination_port": 443,
        "tlvs": {
            "01": "6832", "02": "73686f702e6578616d706c65", "30": "626c7565", "05": "00ff",
            "20": "0501020304" "210007544c5376312e33" "22000561646d696e", "ea": "01767063652d30",
            "e0": "0000000000000005", "ee": "0106000000",
        },
        "said": {
            "alpn": "h2",
            "authority": "shop.example",
            "netns": "blue",
            "unique_id": "00ff",
            "ssl": {
                "client": 5, "verify": 0x01020304, "version": "TLSv1.3", "cn": "admin", "cipher": None,
                "signature_algorithm": None, "key_algorithm": None, "over_tls": True, "client_verified": False,
            },
            "aws_vpc_endpoint_id": "vpce-0",
            "google_psc_connection_id": 5,
            "azure_link_id": 6,
        },
    }  # fmt: skip
    assert describe_preamble(Preamble(1, "PROXY")) == {
        "version": 1, "command": "PROXY", "source_ip": None, "source_port": None,
        "destination_ip": None, "destination_port": None, "tlvs": {}, "said": {},
    }  # fmt: skip


def test_what_is_not_of_its_form_is_not_there() -> None:
    tlvs = said(
        tlv(0xEA, b"\x02vpce"), tlv(0xE0, b"\x00" * 7), tlv(0xEE, b"\x01\x00\x00"), tlv(0x20, b"\x01\x00")
    )
    assert [getattr(tlvs, name) for name in TEXTS] == [None] * len(TEXTS)
    assert tlvs[0xEA] == b"\x02vpce"
    assert said(tlv(0xEA, b"")).aws_vpc_endpoint_id is None
    assert said().ssl is None


def test_the_first_of_each_type_counts_and_damage_ends_the_walk() -> None:
    tlvs = said(tlv(1, b"h2"), tlv(1, b"http/1.1"), tlv(2, b"a"), b"\x05\x00\xff")
    assert tlvs == {1: b"h2", 2: b"a"}


def test_text_that_is_none_is_shown_in_escapes() -> None:
    assert said(tlv(2, b"a\xff")).authority == "a\\xff"


@given(st.binary(max_size=300))
def test_nothing_raises(area: bytes) -> None:
    tlvs = Preamble(2, "PROXY", tlv_area=area).tlvs
    for name in TEXTS:
        getattr(tlvs, name)
    assert set(tlvs) == {kind for kind, _, _ in entries(area)}


@given(st.binary(max_size=40))
def test_a_broken_ssl_tlv_never_makes_a_verified_client(rest: bytes) -> None:
    for client in (0x00, 0x01):
        ssl = Preamble(2, "PROXY", tlv_area=tlv(0x20, bytes([client]) + rest)).tlvs.ssl
        assert ssl is None or not ssl.client_verified
