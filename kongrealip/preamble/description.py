"""A preamble as plain data, for JSON."""

from __future__ import annotations

from typing import Any

from kongrealip.preamble.model import Preamble

# What TLVs say in a word or a number.
_SAID = ("alpn", "authority", "netns", "aws_vpc_endpoint_id", "google_psc_connection_id", "azure_link_id")


def describe_preamble(preamble: Preamble) -> dict[str, Any]:
    """A preamble as JSON: its TLVs from hexadecimal type to hexadecimal value, and those that are known."""
    fields = preamble._asdict()
    del fields["tlv_area"]
    tlvs = preamble.tlvs
    fields["tlvs"] = {f"{kind:02x}": value.hex() for kind, value in tlvs.items()}
    said = {name: value for name in _SAID if (value := getattr(tlvs, name)) is not None}
    if tlvs.unique_id is not None:
        said["unique_id"] = tlvs.unique_id.hex()
    if tlvs.ssl is not None:
        ssl = tlvs.ssl
        said["ssl"] = {**ssl._asdict(), "over_tls": ssl.over_tls, "client_verified": ssl.client_verified}
    fields["said"] = said
    return fields
