"""Settings -> findings: what is legal, and probably not what the operator wants.

Each has a code that stays, an example request that shows it, and a fix. docs/check.md tells of them
one by one.
"""

from __future__ import annotations

from kongrealip.config.findings_header import header_findings
from kongrealip.config.findings_listen import listen_findings, shared_findings
from kongrealip.config.findings_model import ERROR, HINT, SEVERITIES, WARNING, Example, Finding, doors
from kongrealip.config.findings_trust import trust_findings
from kongrealip.config.settings import Settings
from kongrealip.errors import SettingsError

__all__ = [
    "ERROR", "HINT", "SEVERITIES", "WARNING", "Example", "Finding", "findings_of", "invalid_findings",
]  # fmt: skip


def findings_of(settings: Settings) -> list[Finding]:
    """Every finding about one configuration, each once, the names that are not read first."""
    ways = doors(settings)
    found = [_of_warning(warning) for warning in settings.warnings]
    for door in ways:
        found += [*trust_findings(door), *header_findings(door), *listen_findings(door)]
    found += shared_findings(settings, ways)
    # HTTP and the relay share what they trust.
    return list({(finding.code, finding.variable, finding.problem): finding for finding in found}.values())


def invalid_findings(error: SettingsError) -> list[Finding]:
    """A configuration that cannot be used at all, as findings: that is what a check is asked for."""
    example = Example("nothing starts, and the exit code is 3")
    found = []
    for problem in error.problems:
        name, _, rest = problem.partition(": ")
        found.append(Finding("invalid", name, rest, example, "put it right as the line says"))
    return found


def _of_warning(warning: str) -> Finding:
    """A line of :mod:`kongrealip.config.names`: what it is about, the fault, and the fix."""
    name, _, rest = warning.partition(" is not ")
    fault, _, fix = rest.partition(", ")
    code = "not-read-here"
    if fix.startswith("did you mean "):
        code, fix = "misspelt-name", f"write {fix.removeprefix('did you mean ').rstrip('?')}"
    return Finding(
        code, name, f"is not {fault}", Example("every request is decided as if it were not there"), fix
    )
