"""Options that several commands have, and what they all do with a configuration that cannot be used."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from kongrealip.errors import KongRealIPError, SettingsError

CANNOT_START = 3

conf = click.option(
    "--conf",
    type=click.Path(exists=True, dir_okay=False),
    help="A kong.conf. The environment wins over it. [default: none]",
)
env_file = click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False),
    help="NAME=value lines. The environment wins over them, and they win over kong.conf. [default: none]",
)


def cannot_start(error: KongRealIPError) -> NoReturn:
    """Say why, one line for each problem, and end with the exit code for it."""
    lines = error.problems if isinstance(error, SettingsError) else (str(error),)
    for line in lines:
        click.echo(f"kongrealip: {line}", err=True)
    sys.exit(CANNOT_START)
