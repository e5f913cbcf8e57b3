"""Which of two forms an ``Accept`` header asks for (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re

# Three decimals at most, and no other spelling of a number.
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


def prefers_html(accept: str) -> bool:
    """Whether ``text/html`` is wanted more than ``application/json``, from all lines joined by commas.

    JSON where neither is: for ``*/*``, for nothing, and for what cannot be read.
    """
    ranges = dict(_range(entry) for entry in accept.lower().split(","))
    return _weight(ranges, "text", "html") > _weight(ranges, "application", "json")


def _range(entry: str) -> tuple[str, float]:
    """A media range and its weight, which is 0 where it is none."""
    media, *parameters = (part.strip() for part in entry.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            return media, float(value) if _WEIGHT.fullmatch(value) else 0
    return media, 1


def _weight(ranges: dict[str, float], kind: str, subtype: str) -> float:
    """The most specific range counts, also where it is weighted lower."""
    for media in (f"{kind}/{subtype}", f"{kind}/*", "*/*"):
        if media in ranges:
            return ranges[media]
    return 0
