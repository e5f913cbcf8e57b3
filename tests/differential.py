"""Random configurations and connections, answered by the real nginx and by this package alike.

    python -m tests.differential --count 2000 --seed 1 [--case 1234]

Stops at the first difference, prints it, and ends with exit code 1. ``--case`` runs one case of
the seed again. What nginx and this package see differently on purpose (docs/parity.md) is not tried.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.differential_cases import CASES_PER_CONFIG, Case, Config, make_case, make_config
from tests.differential_client import CLOSED, ERROR, Answers, ask
from tests.differential_peers import Target, nginx, ours, server_block
from tests.nginx import binary

_CONFIGS_PER_BATCH = 80
_IN_FLIGHT = 64
_OPEN_FILES = 4096

KEPT = "address kept"
REPLACED = "address replaced"
_OUTCOMES = (KEPT, REPLACED, CLOSED, ERROR)


class Difference(NamedTuple):
    case: Case
    nginx: Answers
    ours: Answers


class Batch(NamedTuple):
    """Some configurations, to be open at the same time, and the cases to run on them."""

    seed: int
    configs: list[Config]
    numbers: range


def batches(seed: int, numbers: range) -> Iterator[Batch]:
    size = CASES_PER_CONFIG * _CONFIGS_PER_BATCH
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        configs = range(part[0] // CASES_PER_CONFIG, part[-1] // CASES_PER_CONFIG + 1)
        yield Batch(seed, [make_config(seed, number) for number in configs], part)


def run(batch: Batch, outcomes: Counter[str]) -> Difference | None:
    """Run all cases, or up to the first difference."""
    with nginx(batch.configs) as theirs, ours(batch.configs) as mine:
        targets = dict(
            zip((config.number for config in batch.configs), zip(theirs, mine, strict=True), strict=True)
        )
        # Not on uvloop: when a server resets a connection while it is being opened, uvloop closes
        # the descriptor twice, and the second time it may be one of our server's.
        return asyncio.run(_run(batch, targets, outcomes))


async def _run(
    batch: Batch, targets: dict[int, tuple[Target, Target]], outcomes: Counter[str]
) -> Difference | None:
    # Shared by the workers, each of which takes the next case when it is done with one.
    numbers = iter(batch.numbers)
    configs = {config.number: config for config in batch.configs}
    differences: list[Difference] = []

    async def work() -> None:
        for number in numbers:
            config = configs[number // CASES_PER_CONFIG]
            case = make_case(batch.seed, number, config)
            try:
                theirs, mine = await asyncio.gather(*(ask(target, case) for target in targets[config.number]))
            except Exception as error:
                error.add_note(f"in case {number} of seed {batch.seed}")
                raise
            outcomes[_outcome(theirs)] += 1
            if theirs != mine:
                differences.append(Difference(case, theirs, mine))
            if differences:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(work())
    return min(differences, default=None)


def _outcome(answers: Answers) -> str:
    first = answers[0]
    if isinstance(first, str):
        return first
    return KEPT if first["remote_addr"] == first["realip_remote_addr"] else REPLACED


def rare(outcomes: Counter[str]) -> list[str]:
    """Outcomes that next to no case had. A test in which nothing is served finds no differences."""
    return [outcome for outcome in _OUTCOMES if outcomes[outcome] < outcomes.total() // 50]


def describe(seed: int, difference: Difference) -> str:
    case = difference.case
    lines = [
        f"case {case.number} differs. To try it again:",
        f"  python -m tests.differential --seed {seed} --case {case.number}",
        f"configuration: {server_block(case.config, case.config.host).strip()}",
        f"connects from: {case.source or 'a Unix socket'}",
        *(f"sends: {segment!r}" for segment in case.segments),
        *(f"sends inside TLS: {segment!r}" for segment in case.tls_segments),
    ]
    for name, answers in (("nginx", difference.nginx), ("ours", difference.ours)):
        lines += [f"{name}: {answer}" for answer in answers]
    return "\n".join(lines)


def nginx_version() -> str:
    shown = subprocess.run([binary(), "-v"], capture_output=True, text=True, timeout=10, check=True)
    return shown.stderr.strip().rpartition("/")[2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many cases to try")
    parser.add_argument("--seed", type=int, default=1, help="what the cases follow from")
    parser.add_argument("--case", type=int, help="the number of the only case to try")
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))
    # Thousands of refusals, each with a warning, are what this is about.
    logging.disable(logging.WARNING)
    numbers = range(options.count) if options.case is None else range(options.case, options.case + 1)
    outcomes: Counter[str] = Counter()
    for batch in batches(options.seed, numbers):
        difference = run(batch, outcomes)
        if difference is not None:
            print(describe(options.seed, difference))
            return 1
    if len(numbers) >= CASES_PER_CONFIG * _CONFIGS_PER_BATCH and rare(outcomes):
        print(f"the cases have lost their aim, hardly any of them ends with: {', '.join(rare(outcomes))}")
        return 1
    print(f"{len(numbers)} cases, 0 differences (seed {options.seed}, nginx {nginx_version()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
