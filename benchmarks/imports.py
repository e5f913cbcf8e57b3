"""What importing the middleware costs: CPU milliseconds more than a bare interpreter.

python -m benchmarks.imports [--rounds 25]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

PRINT_CPU = "; import time; print(time.process_time() * 1000)"


def milliseconds(statement: str) -> float:
    code = statement + PRINT_CPU
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    pairs = [(milliseconds("pass"), milliseconds("import kongrealip")) for _ in range(rounds)]
    more = statistics.median(b - a for a, b in pairs)
    bare = statistics.median(a for a, _ in pairs)
    print(f"import kongrealip: {more:.1f} ms of CPU more than a bare interpreter's {bare:.1f} (bar 20)")


if __name__ == "__main__":
    main()
