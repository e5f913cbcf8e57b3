"""``kongrealip relay`` that copies everything, or splices everything, for the line between the two.

python -m benchmarks.relay_mode copied|spliced relay --listen ... --upstream ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partialmethod
from typing import Any

from kongrealip.cli.main import main
from kongrealip.relay import flow, pipes

MODES = ("copied", "spliced")


def use(mode: str) -> None:
    if mode == "copied":
        # There is no pipe to be had.
        pipes.Pipes.__init__.__defaults__ = (0,)
    else:
        flow._SMALL = 0
        flow.Flow.__init__ = partialmethod(_begin_in_bulk, flow.Flow.__init__)  # type: ignore[method-assign, assignment]


def _begin_in_bulk(flow: Any, make: Callable[..., None], *arguments: Any) -> None:
    make(flow, *arguments)
    flow.is_bulk = flow.can_splice


if __name__ == "__main__":
    use(sys.argv[1])
    main(sys.argv[2:])
