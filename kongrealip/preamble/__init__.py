"""What did the load balancer say? The PROXY protocol, versions 1 and 2. No sockets in here."""

from __future__ import annotations

from kongrealip.preamble.header import DEFAULT_LIMIT, REASONS, Preamble, parse
from kongrealip.preamble.tlv import first_tlvs

__all__ = ["DEFAULT_LIMIT", "REASONS", "Preamble", "first_tlvs", "parse"]
