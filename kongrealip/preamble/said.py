"""TLVs decoded: what the load balancer said beyond the addresses.

The specification's types (HAProxy, proxy-protocol.txt, section 2.2) and those of the clouds. Nothing
in here raises: a value that is not of its form is None, and its bytes are there all the same.
"""

from __future__ import annotations

from typing import NamedTuple

from kongrealip.preamble.tlv import entries, first_tlvs

ALPN, AUTHORITY, UNIQUE_ID, SSL_TYPE, NETNS = 0x01, 0x02, 0x05, 0x20, 0x30
SSL_VERSION, SSL_CN, SSL_CIPHER, SSL_SIGNATURE, SSL_KEY = 0x21, 0x22, 0x23, 0x24, 0x25
#: Amazon, Google and Azure have one each of the types that are free to use.
AWS, GOOGLE, AZURE = 0xEA, 0xE0, 0xEE

# Bits of the SSL TLV's first byte.
_OVER_TLS, _SHOWN_NOW, _SHOWN_IN_SESSION = 0x01, 0x02, 0x04
_SSL_FIXED = 5
# AWS and Azure put a sub-type in front: the one that each of them has defined.
_VPC_ENDPOINT, _LINK = b"\x01", b"\x01"
_CONNECTION_BYTES, _LINK_BYTES = 8, 4


def _text(value: bytes | None) -> str | None:
    """UTF-8; what is not is shown in escapes, for it must neither raise nor get lost."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


class SSL(NamedTuple):
    """The SSL TLV: the balancer's own TLS with the client.

    ``client`` are its flags, ``verify`` is 0 where a certificate was verified. The five texts are
    None where they were not sent.
    """

    client: int
    verify: int
    version: str | None
    cn: str | None
    cipher: str | None
    signature_algorithm: str | None
    key_algorithm: str | None

    @property
    def over_tls(self) -> bool:
        """Whether the client came over TLS."""
        return bool(self.client & _OVER_TLS)

    @property
    def client_verified(self) -> bool:
        """Whether the client came over TLS, showed a certificate *and* it was verified.

        Not the last alone: ``verify`` is 0 as well where nobody asked for a certificate.
        """
        was_shown = bool(self.client & (_SHOWN_NOW | _SHOWN_IN_SESSION))
        return self.over_tls and was_shown and self.verify == 0


class TLVs(dict[int, bytes]):
    """The first value of each type as bytes, as in ``tlvs[0xEB]``, and the known ones typed."""

    @property
    def alpn(self) -> str | None:
        """The protocol that the client and the balancer agreed on, such as ``h2``."""
        return _text(self.get(ALPN))

    @property
    def authority(self) -> str | None:
        """The name that the client asked for: SNI."""
        return _text(self.get(AUTHORITY))

    @property
    def unique_id(self) -> bytes | None:
        """The balancer's own name for the connection."""
        return self.get(UNIQUE_ID)

    @property
    def netns(self) -> str | None:
        """The network namespace."""
        return _text(self.get(NETNS))

    @property
    def ssl(self) -> SSL | None:
        """The SSL TLV, or None where there is none or it is too short."""
        value = self.get(SSL_TYPE)
        if value is None or len(value) < _SSL_FIXED:
            return None
        texts: dict[int, bytes] = {}
        for kind, _, inner in entries(value, _SSL_FIXED):
            texts.setdefault(kind, inner)
        kinds = (SSL_VERSION, SSL_CN, SSL_CIPHER, SSL_SIGNATURE, SSL_KEY)
        verify = int.from_bytes(value[1:_SSL_FIXED], "big")
        return SSL(value[0], verify, *(_text(texts.get(kind)) for kind in kinds))

    @property
    def aws_vpc_endpoint_id(self) -> str | None:
        """Behind AWS PrivateLink: who connects, such as ``vpce-08d2bf15fac5001c9``."""
        return _text(self._behind(AWS, _VPC_ENDPOINT))

    @property
    def google_psc_connection_id(self) -> int | None:
        """Behind Google's Private Service Connect: the connection's number."""
        value = self.get(GOOGLE)
        return None if value is None or len(value) != _CONNECTION_BYTES else int.from_bytes(value, "big")

    @property
    def azure_link_id(self) -> int | None:
        """Behind Azure Private Link: the endpoint's LINKID, which is little-endian."""
        value = self._behind(AZURE, _LINK)
        return None if value is None or len(value) != _LINK_BYTES else int.from_bytes(value, "little")

    def _behind(self, kind: int, subtype: bytes) -> bytes | None:
        value = self.get(kind)
        return value[1:] if value is not None and value[:1] == subtype else None


def tlvs_of(area: bytes) -> TLVs:
    """Decode the area behind the addresses; what stands before a damage counts."""
    return TLVs(first_tlvs(area))
