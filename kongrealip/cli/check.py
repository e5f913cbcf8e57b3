"""``kongrealip check``: findings, as text for people and as JSON for programs.

A configuration that cannot be used is what a check is asked to find, so its problems are findings
with exit code 1 here and no failure to start, which is 3 elsewhere. Where there is nothing to
check, because a file cannot be read, the code is that of wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kongrealip.cli import options
from kongrealip.errors import SettingsError, StartError

if TYPE_CHECKING:
    from kongrealip.config import Settings
    from kongrealip.config.findings import Finding
    from kongrealip.config.manifest import Document, Manifest

FOUND, WRONG_USAGE = 1, 2
_NO_YAML = "--manifest needs PyYAML, pip install 'kongrealip[check]'"


@click.command()
@options.conf
@options.env_file
@click.option(
    "--manifest",
    "manifests",
    multiple=True,
    metavar="FILE.yaml",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Kubernetes objects, values of the chart kong/kong, or a compose file; - is standard input. May be"
    " repeated. Their containers are checked in the place of this environment, unless --conf or --env-file is"
    " given as well.",
)
@click.option("--json", "as_json", is_flag=True, help="A list of objects instead of text.")
def check(conf: str | None, env_file: str | None, manifests: tuple[str, ...], as_json: bool) -> None:
    """Find what makes addresses wrong or easy to forge.

    Exit codes: 0 nothing but hints, 1 findings, 2 wrong usage.
    """
    from kongrealip.config.findings import HINT

    try:
        found = _findings(conf, env_file, manifests)
    except StartError as error:
        _cannot_check(str(error))
    show = _show_json if as_json else _show
    show(found)
    sys.exit(FOUND if any(finding.severity != HINT for finding in found) else 0)


def _findings(conf: str | None, env_file: str | None, manifests: tuple[str, ...]) -> list[Finding]:
    from kongrealip.config.findings import findings_of, invalid_findings
    from kongrealip.config.findings_manifest import has_settings, manifest_findings

    manifest = _manifest(manifests)
    base: Settings | None = None
    found: list[Finding] = []
    if conf or env_file or not has_settings(manifest):
        try:
            base = _settings(conf, env_file)
            found = findings_of(base)
        except SettingsError as error:
            found = invalid_findings(error)
    return [*found, *manifest_findings(manifest, base)]


def _settings(conf: str | None, env_file: str | None) -> Settings:
    """With what is wrong for the relay and the proxy as well."""
    from kongrealip.cli.settings import load_every_setting

    return load_every_setting(conf, env_file, os.environ)[0]


def _manifest(paths: tuple[str, ...]) -> Manifest:
    from kongrealip.config.manifest import Manifest, read_manifest

    if not paths:
        return Manifest()
    return read_manifest([document for path in paths for document in _documents(path)], _beside)


def _documents(path: str) -> list[Document]:
    """The documents of a YAML file. Raises StartError with the line where it is none."""
    try:
        from kongrealip.config.manifest_yaml import load_documents
    except ImportError as error:
        raise StartError(_NO_YAML) from error
    try:
        if path == "-":
            return load_documents("standard input", sys.stdin.buffer.read())
        return load_documents(path, Path(path).read_bytes())
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from error


def _beside(manifest: str, path: str) -> str | None:
    """An environment file that a manifest names, or None where it cannot be read."""
    try:
        return (Path(manifest).parent / path).read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return None


def _show(found: Iterable[Finding]) -> None:
    lines = []
    for finding in found:
        lines += [
            f"{finding.severity} {finding.code}: {finding.variable}",
            f"    problem: {finding.problem}",
            f"    example: {finding.example}",
            f"    fix:     {finding.fix}",
        ]
    # What came as bytes of no encoding is shown, and cannot be printed.
    click.echo("\n".join(lines or ["no findings"]).encode("utf-8", "backslashreplace").decode())


def _show_json(found: Iterable[Finding]) -> None:
    click.echo(json.dumps([_object_of(finding) for finding in found], indent=2))


def _object_of(finding: Finding) -> dict[str, Any]:
    example = {"text": str(finding.example), **finding.example._asdict()}
    return {"severity": finding.severity, **finding._asdict(), "example": example}


def _cannot_check(line: str) -> NoReturn:
    click.echo(f"kongrealip: {line}", err=True)
    sys.exit(WRONG_USAGE)
