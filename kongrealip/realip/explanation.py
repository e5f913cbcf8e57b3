"""A trace in words: a sentence for each step, the reason for the result, and what could be forged.

Plain data, for a terminal, a web page or a program. Sentences hold addresses, trusted entries and names
of headers, and never a text as it was received.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kongrealip.address import Address
from kongrealip.preamble import Preamble
from kongrealip.realip.belief import ForwardedRules, Request
from kongrealip.realip.forwarded import Forwarded, with_request
from kongrealip.realip.networks import UNIX, parse_network
from kongrealip.realip.received import FOR, SAYING, UPSTREAM_NAMES, received_for
from kongrealip.realip.resolve import PEER, PROXY_PROTOCOL, Resolution, Rules
from kongrealip.realip.trace import CLIENT, NO_ADDRESS, NOT_READ, Step, trace

# Of those that have a say the two that are no word of a balancer.
_TOLD = SAYING - {b"host", b"connection"}


class Forgeable(NamedTuple):
    """A part of the input, and who else than the one it should come from could have written it.

    ``part`` is ``preamble`` or the names of headers; ``text`` is what was received, or "" for all of
    it. ``decides`` says whether anything that the application is told depends on it.
    """

    part: str
    text: str
    decides: bool
    sentence: str


class Explanation(NamedTuple):
    """``steps`` are those of the trace, each with its sentence, from the peer outwards.

    ``teller`` is the hop that named the client, or None where the client is the peer. ``reason`` is to
    follow on the client's address.
    """

    resolution: Resolution
    steps: tuple[tuple[Step, str], ...]
    teller: Step | None
    reason: str
    forgeable: tuple[Forgeable, ...]
    forwarded: Forwarded

    @property
    def client(self) -> Step:
        """The step that is the client."""
        return next(step for step, _ in self.steps if step.fate == CLIENT)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. ``decided_by`` names the entry that became the client, and why its word counted."""
        resolution, client, teller = self.resolution, self.client, self.teller
        view = self.forwarded
        return {
            "client": resolution.client._asdict(),
            "peer": resolution.peer._asdict(),
            "peer_trusted": resolution.peer_trusted,
            "source": resolution.source,
            "reason": self.reason,
            "decided_by": {
                "source": client.source,
                "line": client.line,
                "text": client.text,
                "told_by": teller and teller.ip,
                "trusted_by": teller and teller.entry,
            },
            "steps": [_step_as_dict(step, sentence) for step, sentence in self.steps],
            "forgeable": [one._asdict() for one in self.forgeable],
            "forwarded": {
                "scheme": view.scheme,
                "host": view.host,
                "port": view.port,
                "path": view.path,
                "prefix": view.prefix,
            },
            "upstream_headers": view.upstream_headers,
        }


def _step_as_dict(step: Step, sentence: str) -> dict[str, Any]:
    fields = step._asdict()
    fields["trusted_by"] = fields.pop("entry")
    return {**fields, "sentence": sentence}


def explain(
    rules: Rules,
    trusted_ips: Sequence[str],
    forwarded: ForwardedRules,
    peer: Address,
    preamble: Preamble | None,
    request: Request,
) -> Explanation:
    """Decide about one request as :func:`~kongrealip.realip.resolve.resolve` does, and say why.

    ``trusted_ips`` are the entries that ``rules`` were made of. Nothing that was received raises.
    """
    lines = [value for name, value in request.headers if name == rules.header_name]
    resolution, steps = trace(rules, trusted_ips, peer, preamble, lines)
    telling = _Telling(rules, resolution, steps, lines)
    view = with_request(resolution, forwarded, request).forwarded
    return Explanation(
        resolution,
        tuple((step, telling.sentence(step)) for step in steps),
        telling.teller,
        telling.reason(),
        (*telling.forgeable(), *_forgeable_view(forwarded, resolution, request)),
        view,
    )


class _Telling:
    def __init__(
        self, rules: Rules, resolution: Resolution, steps: Sequence[Step], lines: Sequence[bytes]
    ) -> None:
        self.rules = rules
        self.resolution = resolution
        self.steps = steps
        self.lines = lines
        place = [step.fate for step in steps].index(CLIENT)
        self.client = steps[place]
        self.teller = steps[place - 1] if place else None
        self.next = steps[place + 1] if place + 1 < len(steps) else None

    def sentence(self, step: Step) -> str:
        if step.fate == CLIENT:
            return f"{_trust(step)}{self.why_here()}: this is the client"
        if step.fate == NO_ADDRESS:
            return f"no address, so the walk stops at {self.client.ip}"
        if step.fate == NOT_READ:
            return "never read"
        what = "the walk goes on"
        if step.source == PEER:
            header = self.rules.header
            what = "the preamble is read" if header == PROXY_PROTOCOL else f"{header} is read"
        return f"{_trust(step)}, so {what}"

    def reason(self) -> str:
        end = f"{_trust(self.client)}{self.why_here()}"
        if self.teller is None:
            return f"it is the peer, {end}"
        return f"{self.teller.ip}, trusted by {self.teller.entry}, named it; itself it is {end}"

    def why_here(self) -> str:
        """Why the walk went no further than the client, to follow on whether that is trusted."""
        is_peer = self.client.source == PEER
        if is_peer and self.client.entry is None:
            return ", so nothing that it says is believed"
        if self.next is not None and self.next.fate == NO_ADDRESS:
            return ", but what comes next is no address"
        if self.rules.header == PROXY_PROTOCOL:
            return self._why_no_preamble() if is_peer else ", and a preamble names one address"
        if is_peer:
            header = self.rules.header
            return f", but {header} is empty" if self.lines else f", but there is no {header}"
        if not self.rules.recursive:
            return ", and without recursion one entry is read"
        if self.client.entry is None:
            return ", so the walk ends here"
        return self._why_no_more()

    def _why_no_preamble(self) -> str:
        if self.resolution.preamble is None:
            return ", but no preamble came with the connection"
        return ", but the preamble names nobody"

    def _why_no_more(self) -> str:
        if self.rules.all_lines and self.client.line > 1:
            return ", but the line before is empty"
        if self.next is not None:
            return f", but of {self.rules.header} the first line alone is read"
        return ", and nothing is left to read"

    def forgeable(self) -> Iterator[Forgeable]:
        if not self.resolution.peer_trusted:
            yield from self._not_believed()
            return
        if self.teller is not None:
            yield Forgeable(self._part(self.client), "", True, self._who_may_write())
            yield from self._by_the_client()
        yield from self._around_the_end()

    def _not_believed(self) -> Iterator[Forgeable]:
        for part in dict.fromkeys(self._part(step) for step in self.steps[1:]):
            yield Forgeable(part, "", False, "the peer may have written anything, and is not believed")

    def _who_may_write(self) -> str:
        networks, entry = self.rules.networks, self.steps[0].entry or ""
        who = "whoever may connect to the socket" if entry == UNIX else _who(entry)
        if networks.covers_all_ipv4() or networks.covers_all_ipv6():
            who = "everybody is trusted, so anybody"
        return f"{who} can write all of it, and choose the client"

    def _by_the_client(self) -> Iterator[Forgeable]:
        """What else the client's place hangs on."""
        client, header = self.client, self.rules.header
        if client.source == PROXY_PROTOCOL:
            return
        if not self.rules.all_lines:
            yield Forgeable(
                header,
                client.text,
                True,
                "a peer that passes it on, and does not set it, lets clients choose",
            )
        elif client.entry is not None and self.rules.recursive:
            yield Forgeable(
                header,
                client.text,
                True,
                f"the client is trusted itself, by {client.entry}: it could have named anybody else",
            )

    def _around_the_end(self) -> Iterator[Forgeable]:
        for step in self.steps:
            if step.fate == NO_ADDRESS:
                sentence = f"whoever wrote this hides behind {self.client.ip}, which is trusted"
                yield Forgeable(self._part(step), step.text, True, sentence)
        # As they stand in the header: the walk goes the other way.
        unread = [step for step in reversed(self.steps) if step.fate == NOT_READ]
        if unread:
            texts = ", ".join(step.text for step in sorted(unread, key=lambda step: step.line))
            yield Forgeable(self.rules.header, texts, False, "anybody can write it, for it is never read")

    def _part(self, step: Step) -> str:
        return "preamble" if step.source == PROXY_PROTOCOL else step.source


def _trust(step: Step) -> str:
    return f"trusted by {step.entry}" if step.entry else "not trusted"


def _who(entry: str) -> str:
    addresses = sum(last - first + 1 for first, last in parse_network(entry))
    return entry if addresses == 1 else f"whoever connects from {entry} ({addresses} addresses)"


def _forgeable_view(
    forwarded: ForwardedRules, resolution: Resolution, request: Request
) -> Iterator[Forgeable]:
    """Beyond the client: scheme, host and the rest, and what a service behind is sent."""
    told = sorted({_as_written(name) for name, _ in request.headers if name in _TOLD})
    if told:
        decides = forwarded.believes(resolution)
        sentence = _who_tells(resolution) if decides else "not believed from this peer"
        yield Forgeable(", ".join(told), "", decides, sentence)
    received = received_for(request.headers, forwarded.most_lines)
    if received:
        sentence = "goes on to an upstream, with the peer behind it, whoever wrote it"
        yield Forgeable(UPSTREAM_NAMES[FOR], received.decode("latin-1"), False, sentence)


def _who_tells(resolution: Resolution) -> str:
    if resolution.preamble is not None:
        return (
            "a balancer below HTTP passes on what the client wrote, and it is believed:"
            " set KONGREALIP_FORWARDED_HEADERS=auto"
        )
    return f"believed: where {resolution.peer.ip} does not set it, what the client wrote counts"


def _as_written(name: bytes) -> str:
    return UPSTREAM_NAMES.get(name) or name.decode("ascii")
