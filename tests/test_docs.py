"""The README says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click import Context, Group
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kongrealip.cli.main import cli
from kongrealip.config.names import READ, READ_OF_OURS
from kongrealip.pytest_plugin import StartServer
from tests.running import clean_environ

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


# All of them are in docs/reference.md, which tests/test_reference.py reads.
@pytest.mark.parametrize(
    "variable",
    [
        "KONG_TRUSTED_IPS", "KONG_REAL_IP_HEADER", "KONG_REAL_IP_RECURSIVE", "KONG_PROXY_LISTEN",
        "KONG_STREAM_LISTEN", "KONG_STATUS_LISTEN", "KONGREALIP_UPSTREAM", "KONGREALIP_FORWARDED_HEADERS",
    ],
)  # fmt: skip
def test_the_everyday_variables_are_told(variable: str) -> None:
    assert f"`{variable}`" in README


def test_no_other_variable_is_told() -> None:
    read = {f"KONG_{name.upper()}" for name in READ} | {f"KONGREALIP_{name.upper()}" for name in READ_OF_OURS}
    told = set(re.findall(r"\bKONG(?:REALIP)?_[A-Z_]+[A-Z]\b", README))
    assert told - read == {"KONG_TRUSTED_IP"}, "and this one is told as a slip of the pen"


def test_every_command_is_told() -> None:
    assert isinstance(cli, Group)
    assert [name for name in cli.list_commands(Context(cli)) if f"`kongrealip {name}" not in README] == []


def test_the_python_example_runs() -> None:
    code = next(text for language, text in BLOCKS if language == "python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)

    from starlette.testclient import TestClient

    client = TestClient(names["app"], client=("10.0.0.1", 5))  # type: ignore[arg-type]
    assert client.get("/").json() == {"client": "10.0.0.1", "because": "peer"}


def test_the_view_is_what_the_readme_says(kongrealip_server: StartServer) -> None:
    code = next(text for language, text in BLOCKS if language == "python" and "def describe" in text)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)

    def index(request: Request) -> JSONResponse:
        return JSONResponse(names["describe"](request))

    server = kongrealip_server(
        Starlette(routes=[Route("/{path:path}", index)]),
        "proxy_protocol",
        KONG_TRUSTED_IPS="127.0.0.1",
        KONG_REAL_IP_HEADER="proxy_protocol",
    )
    preamble = server.v2("203.0.113.7", 51000, {0xEA: b"\x01vpce-1", 0x20: b"\x03\0\0\0\0\x22\0\x02me"})
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example:444"}
    seen = server.get("/a//b", preamble=preamble, headers=forwarded).json()
    upstream = seen.pop("upstream")
    assert seen == {
        "url": "https://shop.example:444/a/b", "prefix": None, "vpc_endpoint": "vpce-1", "client_certificate": "me",
    }  # fmt: skip
    assert upstream["X-Real-IP"] == "203.0.113.7"
    assert server.get("/", preamble=server.v1("203.0.113.7", 5)).json()["client_certificate"] is None


def test_the_demos_output_is_the_real_one() -> None:
    shown = next(text for _, text in BLOCKS if text.startswith("who connected"))
    result = subprocess.run(
        [sys.executable, "-m", "kongrealip", "demo"],
        env=clean_environ(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    def rows(text: str) -> list[list[str]]:
        return [
            re.split(r"  +", line.strip()) for line in text.strip().splitlines() if not line.startswith("-")
        ]

    assert rows(shown) == rows(result.stdout.partition("\n\n")[2])


def test_make_targets_that_are_told() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile
