"""Where clients are taken: round robin, around those that could not be reached."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple

from kongrealip.config.relay import Upstream
from kongrealip.errors import StartError

logger = logging.getLogger("kongrealip.relay")

#: How long one that failed is left alone, as nginx's fail_timeout has it.
REST_SECONDS = 10.0


class Target(NamedTuple):
    """One address of an upstream. ``host`` is the name that its certificate has to bear."""

    name: str
    host: str
    family: int
    address: Any


def resolve_targets(upstreams: Iterable[Upstream], origin: str) -> list[Target]:
    """Look names up, once. Raises StartError, whose line begins with ``origin``."""
    targets = []
    for position, upstream in enumerate(upstreams, 1):
        if upstream.is_unix:
            path = upstream.host.removeprefix("unix:")
            targets.append(Target(str(upstream), "localhost", socket.AF_UNIX, path))
            continue
        try:
            found = socket.getaddrinfo(upstream.host, upstream.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartError(
                f"{origin}: entry {position} '{upstream}': {reason}; write <host>:<port> with a name"
                " that can be looked up, or an address"
            ) from error
        # A name may be listed twice for one address, in /etc/hosts for instance.
        addresses = dict.fromkeys((entry[0], entry[4]) for entry in found)
        targets += [Target(str(upstream), upstream.host, family, address) for family, address in addresses]
    return targets


class Upstreams:
    """Targets in turn. One that fails rests for a while, and is then tried with a client again."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = list(targets)
        self._next = 0
        self._resting: dict[Target, float] = {}

    def turn(self, now: float) -> list[Target]:
        """All of them, in the order in which to try: those that rest only when the others have failed."""
        well, tired = self._targets, []
        if self._resting:
            tired = [target for target in well if self._resting.get(target, now) > now]
            well = [target for target in well if target not in tired]
        if len(well) < 2:
            return [*well, *tired]
        first = self._next = (self._next + 1) % len(well)
        return [*well[first:], *well[:first], *tired]

    def rest(self, target: Target, now: float, reason: str) -> None:
        """It could not be reached."""
        if self._resting.get(target, now) <= now:
            logger.warning("upstream %s: %s, rests for %g s", target.name, reason, REST_SECONDS)
        self._resting[target] = now + REST_SECONDS

    def recover(self, target: Target) -> None:
        """It could be reached."""
        if self._resting and self._resting.pop(target, None) is not None:
            logger.info("upstream %s can be reached again", target.name)
