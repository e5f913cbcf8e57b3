"""Preambles from slightly broken to absurd, in random pieces, by the million.

    python -m tests.faults.fuzz_preambles [--count 1000000] [--seed 1] [--first 0] [--limit 4096]

Half of them are mutated from those that the real nginx was asked about, half are made up. Stops
at the first fault, prints it with its input, and ends with exit code 1; ``--first NUMBER --count
1`` with the same seed runs that case again. Without ``--limit`` each has one of several.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from multiprocessing import Pool
from typing import NamedTuple

from kongrealip.errors import PreambleError
from kongrealip.preamble import DEFAULT_LIMIT, REASONS, Preamble, first_tlvs, parse
from kongrealip.preamble.tlv import crc32c
from tests import golden

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
Answer = tuple[Preamble, int] | str | None
# Which of these it is can be told only where enough of it has come.
_FOREIGN = ("http", "tls", "not_proxy")
_LIMITS = (DEFAULT_LIMIT, DEFAULT_LIMIT, 107, 300)
_BATCH = 5000


class Fault(Exception):  # noqa: N818 - it is one
    """Something that must always hold did not."""


class Case(NamedTuple):
    """Bytes, where they are cut when they arrive, and other bytes to put behind them."""

    data: bytes
    limit: int = DEFAULT_LIMIT
    cuts: tuple[int, ...] = ()
    tail: bytes = b"GET / HTTP/1.1\r\n\r\n"


def answer(data: bytes, limit: int, strict: bool) -> Answer:
    """What the parser says: the preamble and its end, None for more, or why it refuses."""
    try:
        return parse(data, limit, strict)
    except PreambleError as error:
        if error.reason not in REASONS:
            raise Fault(f"{error.reason!r} is no known reason") from error
        return error.reason


def check(case: Case) -> tuple[Answer, Answer]:
    """The lenient and the strict answer; Fault where they are not what they must be."""
    lenient, strict = _check_alone(case, strict=False), _check_alone(case, strict=True)
    _require(strict == lenient or isinstance(strict, str), "strictness changes what is accepted")
    _require(not isinstance(lenient, str) or isinstance(strict, str), "strictness accepts more")
    return lenient, strict


def _check_alone(case: Case, strict: bool) -> Answer:
    data, limit = case.data, case.limit
    # The listener never looks at more bytes than the limit.
    whole = answer(data[:limit], limit, strict)
    _require(_same(in_pieces(case, strict), whole), "the pieces matter")
    if isinstance(whole, tuple):
        _check_accepted(case, strict, whole)
    elif whole is None:
        _require(len(data) < limit, "more is asked for than the limit allows")
    else:
        _require(
            _same(answer((data + case.tail)[:limit], limit, strict), whole), "a tail changes the refusal"
        )
        _require(isinstance(answer(data, limit, strict), str), "bytes over the limit are accepted")
    return whole


def _check_accepted(case: Case, strict: bool, accepted: tuple[Preamble, int]) -> None:
    (preamble, end), limit = accepted, case.limit
    _require(0 < end <= min(len(case.data), limit), "the end is past the data")
    for tail in (b"", case.tail, case.data[:end]):
        _require(answer(case.data[:end] + tail, limit, strict) == accepted, "the bytes behind it matter")
    _require(answer(case.data[: end - 1], limit, strict) is None, "fewer bytes are enough")
    ports = preamble.source_port, preamble.destination_port
    _require(all(port is None or 0 <= port <= 65535 for port in ports), "a port out of range")
    _require(case.data[:end].endswith(preamble.tlv_area), "the TLVs do not end with it")
    first_tlvs(preamble.tlv_area)


def in_pieces(case: Case, strict: bool) -> Answer:
    """As the listener reads: what it has taken from the socket, and what it peeks at."""
    held = b""
    edges = sorted({0, *case.cuts, len(case.data)})
    for start, stop in pairwise(edges):
        peeked = case.data[start:stop][: case.limit - len(held)]
        found = answer(held + peeked, case.limit, strict)
        if isinstance(found, tuple):
            _require(found[1] > len(held), "more was taken than belongs to it")
        if found is not None:
            return found
        held += peeked
    return None


def _same(one: Answer, other: Answer) -> bool:
    return one == other or (one in _FOREIGN and other in _FOREIGN)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Fault(otherwise)


def make(seed: int, number: int, limit: int | None = None) -> Case:
    """The case of that number, always the same."""
    rng = random.Random(seed << 40 | number)
    data = _mutated(rng) if number % 2 else _invented(rng)
    return Case(data, limit or rng.choice(_LIMITS), _cuts(rng, len(data)), rng.randbytes(rng.randint(0, 30)))


def _cuts(rng: random.Random, size: int) -> tuple[int, ...]:
    if size < 150 and rng.random() < 0.1:
        return tuple(range(size))
    return tuple(rng.randint(0, size) for _ in range(rng.randint(0, 5)))


@cache
def _originals() -> tuple[list[bytes], list[bytes]]:
    """The preambles of the public vectors with some of what follows, the short and the long ones."""
    found = set()
    for vector in golden.load("realip"):
        if vector["config"]["proxy_protocol"]:
            data = b"".join(golden.segments(vector))
            whole = answer(data, 1 << 17, strict=False)
            found.add(data[: (whole[1] if isinstance(whole, tuple) else 300) + 20])
    ordered = sorted(found)
    return [data for data in ordered if len(data) <= 400], [data for data in ordered if len(data) > 400]


def _original(rng: random.Random) -> bytes:
    short, long = _originals()
    return rng.choice(long if rng.random() < 0.03 else short)


def _mutated(rng: random.Random) -> bytes:
    data = bytearray(_original(rng))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        rng.choice(_MUTATIONS)(rng, data)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_head(rng: random.Random, data: bytearray) -> None:
    """Version and command, family and transport, length."""
    if len(data) >= 16:
        data[rng.randrange(12, 16)] ^= 1 << rng.randrange(8)


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.choice(
        (rng.randbytes(1), rng.randbytes(3), b"0", b".", b":", b" ", b"\r", b"\n", b"\r\n")
    )


def _delete(rng: random.Random, data: bytearray) -> None:
    at = rng.randint(0, len(data))
    del data[at : at + rng.choice((1, 1, 1, 2, 7))]


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randint(0, len(data)) :]


def _splice(rng: random.Random, data: bytearray) -> None:
    other = _original(rng)
    data[rng.randint(0, len(data)) :] = other[rng.randint(0, len(other)) :]


def _change_length(rng: random.Random, data: bytearray) -> None:
    if len(data) >= 16:
        fitting = len(data) - 16
        length = rng.choice((0, 11, 12, 36, 216, fitting, fitting - 1, fitting + 1, rng.getrandbits(16)))
        data[14:16] = (length & 0xFFFF).to_bytes(2, "big")


_MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip, _flip, _flip_head, _insert, _insert, _delete, _truncate, _splice, _change_length,
)  # fmt: skip


def _invented(rng: random.Random) -> bytes:
    return rng.choice((_noise, _signed_noise, _line, _words, _header, _header))(rng)


def _noise(rng: random.Random) -> bytes:
    opening = rng.choice((b"", b"", b"\r\n", b"\x16\x03\x01", b"GET ", b"P", b"PROX", SIGNATURE[:-1]))
    return opening + rng.randbytes(rng.randint(0, 60))


def _signed_noise(rng: random.Random) -> bytes:
    return SIGNATURE + rng.randbytes(rng.randint(0, 60))


def _line(rng: random.Random) -> bytes:
    """Nearly a line of version 1."""
    family = rng.choice((b"TCP4", b"TCP4", b"TCP6", b"TCP6", b"UNKNOWN", b"UDP4"))
    addresses = (_address(rng, family) for _ in range(2))
    ports = (str(rng.getrandbits(rng.choice((4, 16, 17)))).encode() for _ in range(2))
    words = [b"PROXY", family, *addresses, *ports]
    if rng.random() < 0.2:
        words[rng.randrange(6)] = rng.choice((b"", b"00", b"UNKNOWN", rng.randbytes(4), b"1" * 80))
    return b" ".join(words) + rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"")) + _tail(rng)


def _address(rng: random.Random, family: bytes) -> bytes:
    roll = rng.random()
    if roll < 0.05:
        return bytes(rng.choices(b"0123456789abcdefABCDEF:.", k=rng.randint(0, 45)))
    if (family == b"TCP4") == (roll < 0.9):
        return b".".join(str(rng.randrange(rng.choice((10, 256, 260)))).encode() for _ in range(4))
    groups = [b"%x" % rng.getrandbits(rng.choice((4, 16))) for _ in range(rng.choice((8, 8, 7, 3)))]
    if len(groups) < 8:
        groups[rng.randrange(len(groups))] = b""
    return b":".join(groups)


def _words(rng: random.Random) -> bytes:
    soup = (
        b"TCP4 ",
        b"TCP6 ",
        b"UNKNOWN",
        b" ",
        b"1.2.3.4 ",
        b"::1 ",
        b"0",
        b"65535",
        b"\r\n",
        b"\r",
        b"\xff",
    )
    return b"PROXY " + b"".join(rng.choices(soup, k=rng.randint(0, 12)))


def _header(rng: random.Random) -> bytes:
    """Nearly a header of version 2, every other one with a checksum, mostly right."""
    family = rng.choice((0x11, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x00, rng.getrandbits(8)))
    command = rng.choice((0x21, 0x21, 0x21, 0x21, 0x20, 0x20 | rng.getrandbits(4), rng.getrandbits(8)))
    body = rng.randbytes({1: 12, 2: 36, 3: 216}.get(family >> 4, 0))
    body += b"".join(_tlv(rng) for _ in range(rng.randint(0, 4)))
    checksum = len(body) + 19
    if rng.random() < 0.5:
        body += b"\x03\x00\x04" + bytes(4)
    data = bytearray(SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body)
    if len(data) > checksum:
        data[checksum:] = crc32c(bytes(data)).to_bytes(4, "big")
    if rng.random() < 0.3:
        rng.choice(_MUTATIONS)(rng, data)
    return bytes(data) + _tail(rng)


def _tlv(rng: random.Random) -> bytes:
    kind = rng.choice((0x01, 0x02, 0x04, 0x05, 0x20, 0x30, 0xEA, rng.getrandbits(8)))
    value = rng.randbytes(rng.choice((0, 1, 5, 16, 128, 129)))
    if kind == 0x20 and rng.random() < 0.8:
        value = rng.randbytes(5) + b"\x21\x00\x07TLSv1.3"
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def _tail(rng: random.Random) -> bytes:
    return rng.choice((b"", b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", rng.randbytes(9)))


class Batch(NamedTuple):
    seed: int
    numbers: range
    limit: int | None


def run(batch: Batch) -> Counter[tuple[str, str]] | str:
    """How often each of the two parsers gave which answer; or the first fault, as text."""
    counts: Counter[tuple[str, str]] = Counter()
    for number in batch.numbers:
        case = make(batch.seed, number, batch.limit)
        try:
            lenient, strict = check(case)
        except Exception as error:
            what = str(error) if isinstance(error, Fault) else f"exception {error!r}"
            return (
                f"fault: {what}\nseed {batch.seed}, number {number}, limit {case.limit}, cuts {case.cuts}\n"
                f"input {case.data.hex()}\ntail {case.tail.hex()}"
            )
        counts["lenient", _word(lenient)] += 1
        counts["strict", _word(strict)] += 1
    return counts


def _word(given: Answer) -> str:
    return given if isinstance(given, str) else "incomplete" if given is None else "accepted"


def run_all(batches: Iterable[Batch]) -> Counter[tuple[str, str]] | str:
    """On all cores."""
    total: Counter[tuple[str, str]] = Counter()
    with Pool(len(os.sched_getaffinity(0))) as pool:
        for result in pool.imap_unordered(run, batches):
            if isinstance(result, str):
                return result
            total += result
    return total


def _told(total: Counter[tuple[str, str]]) -> str:
    parts = []
    for parser in ("lenient", "strict"):
        words = sorted((word for name, word in total if name == parser), key=_ORDER.index)
        parts.append(f"{parser}: " + ", ".join(f"{word} {total[parser, word]}" for word in words))
    return "; ".join(parts)


_ORDER = ("accepted", "incomplete", *REASONS)


def main() -> int:
    parser = argparse.ArgumentParser(description="Preambles from slightly broken to absurd.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--limit", type=int, help="longest preamble, for all cases")
    given = parser.parse_args()
    last = given.first + given.count
    starts = range(given.first, last, _BATCH)
    begun = time.monotonic()
    result = run_all(
        Batch(given.seed, range(start, min(start + _BATCH, last)), given.limit) for start in starts
    )
    if isinstance(result, str):
        print(result)
        return 1
    seconds = time.monotonic() - begun
    print(f"{given.count} preambles, seed {given.seed}, {seconds:.0f} s; {_told(result)}; exceptions 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
