"""A path as ``kong.request.get_path`` gives it (reference, section 9.1)."""

from __future__ import annotations

import re

# Those that stay encoded: they would mean something else.
_RESERVED = frozenset(b"!*'();:@&=+$,/?%#[]")
_ENCODED = rb"%([0-9A-Fa-f]{2})"


def normalised(path: bytes) -> bytes:
    """``kong.request.get_path``: decoded but for what is reserved, without dots and double slashes."""
    if b"%" in path:
        path = re.sub(_ENCODED, _decoded, path)
    if path[:1] != b"/" or (b"." not in path and b"//" not in path):
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    # What ends in a slash or in dots is a folder.
    end = b"/" if kept and segments[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(kept) + end


def _decoded(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return match[0].upper() if byte in _RESERVED else bytes((byte,))
