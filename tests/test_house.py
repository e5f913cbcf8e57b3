"""The house: imports run one way, the core touches no socket, nothing grows too large."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "kongrealip"
# A room may import itself and what stands before it. The two doors do not know each other.
ORDER = [
    "errors", "address", "preamble", "realip", "config", "middleware", "server", "relay", "proxy", "cli",
    "pytest_plugin",
]  # fmt: skip
APART = {"middleware": {"server"}, "server": {"middleware"}}
PURE = ("errors", "address", "preamble", "realip", "config")
FORBIDDEN_IN_PURE = {"asyncio", "socket", "ssl", "os"}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of all imports, wherever they stand in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def rooms_imported(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported(path))
    return {name[1] for name in parts if name[0] == "kongrealip" and len(name) > 1}


IN_ROOMS = [path for path in FILES if room(path) in ORDER]


@pytest.mark.parametrize("path", IN_ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    # serve() on the face of the server's room puts the middleware in front; nothing behind it does.
    apart = set() if path == ROOT / "server" / "__init__.py" else APART.get(room(path), set())
    assert rooms_imported(path) <= set(ORDER[: ORDER.index(room(path)) + 1]) - apart


def test_every_room_is_known() -> None:
    assert {room(path) for path in FILES} == {*ORDER, "__init__", "__main__"}


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in PURE], ids=lambda path: path.name)
def test_the_core_touches_nothing_outside(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN_IN_PURE


def test_three_files_know_uvicorn() -> None:
    knowing = {path.name for path in FILES if any(name.split(".")[0] == "uvicorn" for name in imported(path))}
    assert knowing <= {"asgi.py", "protocols.py", "http2.py"}
    assert not any(name.startswith("uvicorn") for name in imported(ROOT / "middleware" / "asgi.py"))


def test_one_room_prints() -> None:
    printing = [
        path
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo")
        if room(path) != "cli"
    ]
    assert printing == []


def function_lengths() -> list[int]:
    """Lines of each function without its docstring."""
    lengths = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1:2] if ast.get_docstring(node) else node.body[:1]
                start = first[0].lineno if first else (node.end_lineno or 0)
                lengths.append((node.end_lineno or 0) - start + 2)
    return sorted(lengths)


def test_sizes() -> None:
    lengths = function_lengths()
    assert lengths[len(lengths) // 2] <= 8, "median"
    assert lengths[int(len(lengths) * 0.95)] < 40, "95th percentile"
    assert max(len(path.read_text().splitlines()) for path in FILES) <= 350


def test_importing_the_middleware_brings_neither_asyncio_nor_ssl() -> None:
    code = (
        "import sys, kongrealip.middleware.asgi;"
        "print(*sorted({'asyncio', 'ssl', 'socket', 'starlette', 'uvicorn', 'click', 'logging', 'inspect'}"
        " & set(sys.modules)))"
    )
    # An empty environment: coverage would follow into the process, and bring modules of its own.
    result = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_importing_the_middleware_compiles_no_annotations() -> None:
    """Where annotations are postponed, each field of a NamedTuple is compiled: a tenth of what an import costs."""
    code = (
        "import sys, kongrealip;"
        "print(*[module.__file__ for name, module in sys.modules.items() if name.startswith('kongrealip')])"
    )
    result = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    texts = {path: Path(path).read_text(encoding="utf-8") for path in result.stdout.split()}
    assert not [
        path
        for path, text in texts.items()
        if "(NamedTuple):" in text and "from __future__ import annotations" in text
    ]
