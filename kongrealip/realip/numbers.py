"""Number text, as LuaJIT's ``tonumber`` reads it: in ports of headers and settings (reference, 1.2)."""

from __future__ import annotations

import math
import re

#: What Kong strips, with Lua's ``%s`` in the C locale: not U+00A0 and its kin.
BLANKS = " \t\n\v\f\r"

# Text, compiled when it is first used: an import of the middleware should be cheap.
_NUMBER = (
    r"(?P<sign>[+-]?)(?:"
    r"(?P<hex>0[xX](?:[0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?)"
    r"|0[bB](?P<bin>[01]+)"
    r"|(?P<dec>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN]))"
)


def number(text: str) -> float | None:
    """Read number text, or None."""
    match = re.fullmatch(_NUMBER, text.strip(BLANKS))
    if match is None:
        return None
    try:
        if match["hex"]:
            value = float.fromhex(match["hex"])
        elif match["bin"]:
            value = float(int(match["bin"], 2))
        else:
            value = float(match["dec"] or match["word"])
    except OverflowError:
        value = math.inf
    return -value if match["sign"] == "-" else value


def port_number(text: str) -> float | None:
    """Read number text that lies within 1 to 65535; fractions pass, as in Kong."""
    value = number(text)
    return value if value is not None and 1 <= value <= 65535 else None
