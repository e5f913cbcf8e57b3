"""Why this client? Each address on the way, and why the walk went on or stopped.

There is no second algorithm in here: the walk of :mod:`kongrealip.realip.resolve` is asked again, for one
entry of a line after the other, and what it answers is written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kongrealip.address import Address, parse_hop
from kongrealip.preamble import Preamble
from kongrealip.realip.networks import UNIX, parse_network
from kongrealip.realip.resolve import PEER, PROXY_PROTOCOL, PeerResolver, Resolution, Rules, split_line

#: What became of an entry: the walk went on behind it, it is the client, it is no address, or it was
#: never read.
PASSED, CLIENT, NO_ADDRESS, NOT_READ = "passed", "client", "no address", "not read"


class Step(NamedTuple):
    """One address, or what stands where one was expected.

    ``source`` is ``peer``, ``proxy_protocol`` or the header's name as configured; ``line`` counts
    its lines from 1, and is 0 where it is no header. ``text`` is as it was received, ``ip`` as nginx
    prints it or None. ``entry`` is the trusted entry that covers it, as configured, or None.
    """

    source: str
    line: int
    text: str
    ip: str | None
    port: int | None
    entry: str | None
    fate: str


class Trace(NamedTuple):
    """The decision, and the steps from the peer outwards; those that were not read come last."""

    resolution: Resolution
    steps: tuple[Step, ...]


def trace(
    rules: Rules, trusted_ips: Sequence[str], peer: Address, preamble: Preamble | None, lines: Sequence[bytes]
) -> Trace:
    """Decide as :func:`~kongrealip.realip.resolve.resolve` does, and tell of the way.

    ``trusted_ips`` are the entries that ``rules`` were made of.
    """
    resolution = PeerResolver(rules, peer, preamble).resolve(lines)
    steps = [*_way(rules, resolution, preamble, lines)]
    last = max(number for number, step in enumerate(steps) if step.fate == PASSED)
    steps[last] = steps[last]._replace(fate=CLIENT)
    return Trace(
        resolution,
        tuple(step._replace(entry=entry_of(trusted_ips, step.ip) if step.ip else None) for step in steps),
    )


def entry_of(trusted_ips: Sequence[str], ip: str) -> str | None:
    """The first entry that covers an address, ``unix:`` included, or None."""
    if ip == UNIX:
        return UNIX if UNIX in trusted_ips else None
    hop = parse_hop(ip)
    if hop is None:
        return None
    networks = (entry for entry in trusted_ips if entry != UNIX)
    covering = (
        entry for entry in networks for first, last in parse_network(entry) if first <= hop[1] <= last
    )
    return next(covering, None)


def _way(
    rules: Rules, resolution: Resolution, preamble: Preamble | None, lines: Sequence[bytes]
) -> Iterator[Step]:
    """Every step, with those that were reached as passed: the last of them is the client."""
    peer = resolution.peer
    yield Step(PEER, 0, peer.ip, peer.ip, peer.port, None, PASSED)
    if rules.header == PROXY_PROTOCOL:
        if preamble is not None and preamble.source_ip is not None:
            yield _of_preamble(preamble, resolution)
        return
    goes_on = resolution.peer_trusted
    numbers = range(len(lines), 0, -1) if rules.all_lines else range(1, len(lines) + 1)
    for number in numbers:
        steps, whole_line = _of_line(rules, number, lines[number - 1], goes_on)
        yield from steps
        # Of other headers the first line alone is read, and without recursion the last one.
        goes_on = whole_line and rules.all_lines and rules.recursive


def _of_preamble(preamble: Preamble, resolution: Resolution) -> Step:
    text, port = preamble.source_ip or "", preamble.source_port
    hop = parse_hop(text)
    fate = NOT_READ
    if resolution.peer_trusted:
        fate = PASSED if resolution.source == PROXY_PROTOCOL else NO_ADDRESS
    return Step(PROXY_PROTOCOL, 0, text, hop[0] if hop else None, port or None, None, fate)


def _of_line(rules: Rules, number: int, line: bytes, goes_on: bool) -> tuple[list[Step], bool]:
    """The steps of one line from its right end, and whether the walk goes on with the line before."""
    entries = [entry for entry in split_line(line.decode("latin-1").strip(" ")) if entry]
    steps = []
    for count in range(1, len(entries) + 1):
        text = entries[-count]
        hop = parse_hop(text)
        fate = NOT_READ
        if goes_on:
            reached, is_whole = rules.walk_line(text.encode("latin-1"))
            fate = PASSED if is_whole else NO_ADDRESS
            goes_on = (
                is_whole and rules.recursive and reached is not None and rules.networks.covers(reached[1])
            )
        ip, port = (hop[0], hop[2] or None) if hop else (None, None)
        steps.append(Step(rules.header, number, text, ip, port, None, fate))
    # A line without an entry ends the walk as well.
    return steps, goes_on and bool(entries)
