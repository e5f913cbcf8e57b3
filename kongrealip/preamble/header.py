"""Read one PROXY preamble: a value, None for "more bytes, please", or one error.

The acceptance rules are nginx's, not the specification's (reference, section 7), with one
difference that is wanted: nginx needs the whole preamble in its first read, here it may come
in any number of pieces. Where it is asked for, what the specification forbids is refused as well.
"""

from __future__ import annotations

from kongrealip.errors import PreambleError
from kongrealip.preamble.model import Preamble
from kongrealip.preamble.strict import LONGEST_LINE, check_v1, check_v2
from kongrealip.preamble.v1 import parse as parse_v1
from kongrealip.preamble.v2 import SIGNATURE
from kongrealip.preamble.v2 import parse as parse_v2

__all__ = ["DEFAULT_LIMIT", "REASONS", "Preamble", "parse"]

DEFAULT_LIMIT = 4096
# Every ``PreambleError.reason`` that parse() gives.
REASONS = (
    "http", "tls", "not_proxy", "malformed", "port", "version", "length", "too_long",
    # These with strict=True only.
    "command", "family", "transport", "tlv", "checksum", "address", "leading_zero",
)  # fmt: skip


def parse(data: bytes, limit: int = DEFAULT_LIMIT, strict: bool = False) -> tuple[Preamble, int] | None:
    """Read the preamble that ``data`` starts with.

    Returns the preamble and how many bytes it took, or None where ``data`` is a proper
    beginning and more is needed. Raises PreambleError, whose text is the reason for the log,
    where no continuation could make it one, or where it is longer than ``limit`` bytes. With
    ``strict`` more is refused, see :mod:`kongrealip.preamble.strict`; what is accepted is the same.
    """
    if data[:12] == SIGNATURE:
        parsed = parse_v2(data, limit)
        if strict:
            check_v2(data)
        return parsed
    if len(data) < 12 and SIGNATURE.startswith(data):
        return None
    if strict:
        # What stands behind may not matter, neither for the answer nor for the reason.
        data, limit = data[:LONGEST_LINE], min(limit, LONGEST_LINE)
    parsed = parse_v1(data)
    if (len(data) if parsed is None else parsed[1] - 1) >= limit:
        raise PreambleError(f"preamble of more than {limit} bytes", "too_long")
    if strict and parsed is not None:
        check_v1(data[: parsed[1] - 2])
    return parsed
