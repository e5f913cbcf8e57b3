"""Read one PROXY preamble: a value, None for "more bytes, please", or one error.

The acceptance rules are nginx's, not the specification's (reference, section 7), with one
difference that is wanted: nginx needs the whole preamble in its first read, here it may come
in any number of pieces.
"""

from __future__ import annotations

from kongrealip.errors import PreambleError
from kongrealip.preamble import v1, v2
from kongrealip.preamble.model import Preamble

__all__ = ["DEFAULT_LIMIT", "Preamble", "parse"]

DEFAULT_LIMIT = 4096


def parse(data: bytes, limit: int = DEFAULT_LIMIT) -> tuple[Preamble, int] | None:
    """Read the preamble that ``data`` starts with.

    Returns the preamble and how many bytes it took, or None where ``data`` is a proper
    beginning and more is needed. Raises PreambleError, whose text is the reason for the log,
    where no continuation could make it one, or where it is longer than ``limit`` bytes.
    """
    if data[:12] == v2.SIGNATURE:
        return v2.parse(data, limit)
    if v2.SIGNATURE.startswith(data):
        return None
    parsed = v1.parse(data)
    if (len(data) if parsed is None else parsed[1] - 1) >= limit:
        raise PreambleError(f"preamble of more than {limit} bytes")
    return parsed
