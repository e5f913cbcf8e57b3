"""The golden vectors: what the real nginx and Kong answered."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "vectors"

Vector = dict[str, Any]


@cache
def load(name: str) -> list[Vector]:
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def topic(name: str, *topics: str) -> list[Vector]:
    return [vector for vector in load(name) if vector["topic"] in topics]


def segments(vector: Vector, key: str = "segments") -> list[bytes]:
    return [base64.b64decode(segment) for segment in vector.get(key, [])]


def expectations(vector: Vector) -> list[dict[str, Any]]:
    """What was answered to each request of the connection, in order."""
    return [vector["expect"], *vector.get("expect_more", [])]


def requests(data: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    """The header lines of each request in ``data``, as nginx takes them.

    For the vectors in which nginx's HTTP parser differs from uvicorn's: they count with the
    values that nginx extracted (reference, section 6, "Header lines"). Knows no bodies.
    """
    while data.strip(b"\r\n"):
        headers: list[tuple[bytes, bytes]] = []
        _, _, data = data.lstrip(b"\r\n").partition(b"\n")
        while True:
            line, _, data = data.partition(b"\n")
            line = line.rstrip(b"\r")
            if not line:
                break
            name, _, value = line.partition(b":")
            if all(byte in _NAME_BYTES for byte in name):
                headers.append((name.lower(), value.strip(b" ")))
        yield headers


_NAME_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
