"""Every block of the documents is run, or stands in a list with the reason; every link leads somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from kongrealip.cli.main import cli
from kongrealip.config import Settings
from kongrealip.config.kongconf import parse_environment
from kongrealip.config.names import READ, READ_OF_OURS
from tests.running import clean_environ, free_port, running
from tests.test_house import ORDER

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


EACH_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=named)

# Blocks that other tests run, by document and language.
RUN_ELSEWHERE = {
    ("README.md", "python"): "test_docs.py::test_the_python_example_runs",
    ("docs/check.md", ""): "test_check.py::test_the_block_that_is_told_is_the_real_one",
    ("docs/check.md", "sh"): "test_check.py::test_what_is_told_of_a_code_is_so",
    ("docs/check.md", "yaml"): "test_manifest.py::test_what_is_told_of_a_code_is_so",
    ("docs/django.md", "python"): "test_examples_wsgi.py::test_django_in_three_steps",
    ("docs/django.md", "sh"): "test_examples_wsgi.py::test_django_in_three_steps",
    ("docs/embedding.md", "python"): "test_pytest_plugin.py::test_the_guides_tests_run_as_they_stand",
    ("docs/explain.md", ""): "test_explain.py::test_the_documents_commands",
    ("docs/fastapi.md", "python"): "test_fastapi.py::test_the_guide_runs",
    ("docs/flask.md", "python"): "test_examples_wsgi.py::test_flask_in_three_steps",
    ("docs/flask.md", "sh"): "test_examples_wsgi.py::test_flask_in_three_steps",
    ("docs/kubernetes.md", "yaml"): "test_kubernetes.py::test_yours_on_top_of_an_overlay",
    ("docs/logging.md", "python"): "test_current.py::test_the_guide_runs",
    ("docs/opentelemetry.md", "python"): "test_opentelemetry.py::test_the_guide_runs",
    ("docs/servers.md", "python"): "test_examples_wsgi.py::test_flask_under_servers_that_mix_spellings_up",
    ("docs/whoami.md", ""): "test_page.py::test_the_documents_commands",
}
# Blocks that are not run as they stand, by their first words, and why not.
NOT_RUN = {
    "python3 -m venv": "installs from the package index",
    "make demo": "test_docs.py runs the same program, kongrealip demo",
    "make lab": "test_lab.py runs it where the balancers are installed",
    "make test": "is this",
    "kubectl kustomize": "needs a cluster; test_kubernetes.py renders it",
}
# Blocks that show something and are no commands, by their first words.
SHOWN = {
    "PROXY preamble, or\n": "a drawing of the README",
    "who connected": "test_docs.py compares it with the demo",
    "====": "the end of a run of the tests",
    "203.0.113.7 - - [": "a line of the access log, which test_access_log.py pins",
    "2026-11-25 20:10:02": "lines of a log, which test_current.py pins",
}
_PORTS = r"(?<![\d.])(8000|8001|8100|8443|9000)\b"


class Block(NamedTuple):
    """``before`` is the text in front of it, without other blocks."""

    language: str
    text: str
    before: str


@cache
def blocks(path: Path) -> list[Block]:
    parts = re.split(r"^ *```(\w*)\n(.*?)^ *```$", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [Block(parts[n + 1], _dedented(parts[n + 2]), parts[n]) for n in range(0, len(parts) - 1, 3)]


def _dedented(text: str) -> str:
    indent = min((len(line) - len(line.lstrip()) for line in text.splitlines() if line.strip()), default=0)
    return "".join(line[indent:] for line in text.splitlines(keepends=True))


def is_environment(block: Block) -> bool:
    lines = block.text.splitlines()
    return all(
        re.fullmatch(r"KONG(REALIP)?_[A-Z_]+=.*", line) and " kongrealip " not in line for line in lines
    )


def is_served(block: Block) -> bool:
    return re.search(r"^(KONG\S+=|kongrealip |uvicorn )", block.text) is not None and not is_environment(
        block
    )


def account(path: Path, block: Block) -> str | None:
    """What becomes of a block, or None where nobody has said."""
    if block.language in ("console", "mermaid"):
        return block.language
    if (named(path), block.language) in RUN_ELSEWHERE:
        return "run elsewhere"
    for lists in (NOT_RUN, SHOWN):
        if any(block.text.strip().startswith(words.strip()) for words in lists):
            return "listed"
    if block.language == "python" and _file_of(block):
        return "python"
    if is_environment(block):
        return "environment"
    return "served" if is_served(block) else None


def _file_of(block: Block) -> str | None:
    """The file that the text in front of a block says that it is."""
    found = re.search(r"`(\w+\.py)`:\n*$", block.before)
    return found and found[1]


@EACH_DOCUMENT
def test_every_block_is_accounted_for(path: Path) -> None:
    assert [block.text for block in blocks(path) if account(path, block) is None] == []


def test_no_entry_is_without_a_block() -> None:
    every = [(named(path), block) for path in DOCUMENTS for block in blocks(path)]
    assert set(RUN_ELSEWHERE) <= {(name, block.language) for name, block in every}
    starts = [block.text.strip() for _, block in every]
    for words in (*NOT_RUN, *SHOWN):
        assert any(text.startswith(words.strip()) for text in starts), words


@pytest.mark.parametrize("told", sorted(set(RUN_ELSEWHERE.values())))
def test_the_tests_that_run_the_others_are_there(told: str) -> None:
    name, _, test = told.partition("::")
    assert f"def {test}(" in (ROOT / "tests" / name).read_text(encoding="utf-8")


# -- commands ----------------------------------------------------------------------------------


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command behind ``$``, over as many lines as bash wants of it, and the lines shown for it."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        lines = part.splitlines()
        end = next(number for number in range(1, len(lines) + 1) if _is_whole(lines[:number]))
        yield "\n".join(lines[:end]), lines[end:]


def _is_whole(lines: list[str]) -> bool:
    return not lines[-1].endswith("\\") and _bash_reads("\n".join(lines)) == ""


def _bash_reads(script: str) -> str:
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10)
    return result.stderr


@EACH_DOCUMENT
def test_bash_can_read_what_is_no_program_of_python(path: Path) -> None:
    for block in blocks(path):
        if block.language == "console":
            script = "\n".join(command for command, _ in commands(block.text))
        elif account(path, block) == "served" or any(map(block.text.startswith, NOT_RUN)):
            script = block.text
        else:
            continue
        assert _bash_reads(script) == "", script


_WAITING = """
for try in {{1..200}}; do (exec 9<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.05; done
"""


def _script(steps: list[tuple[str, list[str]]]) -> str:
    """One session of bash, with a mark behind what each command wrote."""
    lines = ["exec 2>&1"]
    for command, _ in steps:
        lines.append(command)
        if command.endswith("&"):
            ports = re.findall(r"127\.0\.0\.1:(\d+)|--port (\d+)", command)
            lines += [_WAITING.format(port=one or other) for one, other in ports]
        lines.append("echo '@@@'")
    return "\n".join(lines)


def _session(script: str, folder: Path) -> str:
    environ = {**clean_environ(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        return process.communicate(timeout=90)[0]
    finally:
        # What a document leaves running ends with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _own_ports(text: str) -> str:
    ports = {port: str(free_port()) for port in sorted(set(re.findall(_PORTS, text)))}
    return re.sub(_PORTS, lambda found: ports[found[1]], text)


def differing(wrote: list[str], shown: list[str]) -> str | None:
    """The first shown line that was not written; ``...`` stands for any lines."""
    place, exactly = 0, True
    for line in shown:
        if line == "...":
            exactly = False
            continue
        try:
            found = wrote.index(line, place)
        except ValueError:
            return line
        if exactly and found != place:
            return wrote[place]
        place, exactly = found + 1, True
    return wrote[place] if exactly and place < len(wrote) else None


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if any(block.language == "console" for block in blocks(path))],
    ids=named,
)
def test_the_commands_write_what_is_shown(path: Path, tmp_path: Path) -> None:
    for block in blocks(path):
        if block.language == "python" and (name := _file_of(block)):
            (tmp_path / name).write_text(block.text)
    shells = [block.text for block in blocks(path) if block.language == "console"]
    steps = list(commands(_own_ports("".join(shells))))
    wrote = [part.strip("\n").splitlines() for part in _session(_script(steps), tmp_path).split("@@@\n")]
    for (command, shown), lines in zip(steps, wrote[:-1], strict=True):
        assert differing(lines, shown) is None, (command, lines)


def test_a_difference_is_found() -> None:
    assert differing(["a", "b"], ["a", "b"]) is None
    assert differing(["a", "b", "c"], ["...", "b", "..."]) is None
    assert differing(["a", "b"], ["a"]) == "b"
    assert differing(["a", "b"], ["b"]) == "a"
    assert differing(["a"], ["a", "b"]) == "b"


def served() -> list[tuple[str, int]]:
    return [
        (named(path), number)
        for path in DOCUMENTS
        for number, block in enumerate(blocks(path))
        if account(path, block) == "served"
    ]


@pytest.mark.parametrize(("name", "number"), served())
def test_what_serves_starts_and_ends_as_told(name: str, number: int, tmp_path: Path) -> None:
    path = ROOT / name
    programs = [block.text for block in blocks(path) if block.language == "python"]
    (tmp_path / "main.py").write_text(programs[0] if programs else "")
    (tmp_path / "app.env").write_text("GREETING=hello\n")
    command = _own_ports(blocks(path)[number].text.replace("0.0.0.0:", "127.0.0.1:").strip())
    command = command.replace("/etc/app.env", "app.env")
    variables, ports = {}, [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+) ?[a-z\",]", command)]
    if "uvicorn" in command:
        ports = [free_port()]
        command += f" --port {ports[0]}"
    elif "_LISTEN" not in command:
        ports = [free_port()]
        variables = {"KONG_PROXY_LISTEN": f"127.0.0.1:{ports[0]}"}
    environ = {**clean_environ(), **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    line = re.sub(r"(\b(?:kongrealip|uvicorn) )", r"exec \1", command, count=1)
    with running([shutil.which("bash") or "bash", "-c", line], environ, ports, tmp_path) as program:
        # uvicorn ends by the signal that it was sent.
        assert program.stop() in (0, -signal.SIGTERM)


@EACH_DOCUMENT
def test_environments_can_be_read(path: Path) -> None:
    for block in blocks(path):
        if account(path, block) == "environment":
            Settings.load(parse_environment(block.text))


# -- names -------------------------------------------------------------------------------------

NAMES = {f"KONG_{name.upper()}" for name in READ} | {f"KONGREALIP_{name.upper()}" for name in READ_OF_OURS}
# Names in environs and log lines, which look like modules.
NO_MODULES = {"kongrealip.original", "kongrealip.source", "kongrealip.peer_trusted"}
# What documents speak of because it is not read.
NOT_READ = {"KONG_TRUSTED_IP", "KONG_NGINX_PROXY_SET_REAL_IP_FROM", "KONG_PORT"}


@EACH_DOCUMENT
def test_no_variable_is_told_that_is_not_read(path: Path) -> None:
    told = set(re.findall(r"\bKONG(?:REALIP)?_[A-Z_]*[A-Z]\b(?!\*)", path.read_text(encoding="utf-8")))
    assert told - NAMES - NOT_READ == set()


def options_of(name: str) -> set[str]:
    assert isinstance(cli, click.Group)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    parameters = command.params
    return {option for one in parameters for option in [*one.opts, *one.secondary_opts]} | {"--help"}


@EACH_DOCUMENT
def test_no_option_is_told_that_is_not_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    code = [block.text.replace("\\\n", " ") for block in blocks(path)] + re.findall(r"`([^`\n]+)`", text)
    for piece in code:
        for name, rest in re.findall(r"(?<!install )(?<!from )\bkongrealip ([a-z]+)\b([^|\n]*)", piece):
            told = set(re.findall(r"(?<=\s)--[a-z][a-z-]+", re.sub(r"'[^']*'|\"[^\"]*\"", "", rest)))
            assert told <= options_of(name), (name, told - options_of(name))


@EACH_DOCUMENT
def test_modules_and_files_that_are_told_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\bkongrealip(?:\.[a-z_]+)*\.[A-Za-z_]+\b", text):
        if name in NO_MODULES:
            continue
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            assert hasattr(importlib.import_module(module), attribute), name
    for target in re.findall(r"`make (\w+)", text):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), target
    for name in re.findall(r"`((?:kongrealip|tests|examples|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


# -- links -------------------------------------------------------------------------------------

LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def text_of(path: Path) -> str:
    """The document without its code."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`(?!\])", "", text) if path.suffix == ".md" else text


@cache
def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.M):
        name = re.sub(r"[^\w\- ]", "", LINK.sub(r"\1", heading).lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{count}" if count else name)
    return names


@EACH_DOCUMENT
def test_every_link_leads_somewhere(path: Path) -> None:
    for _, target in LINK.findall(text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(there), target


@EACH_DOCUMENT
def test_every_test_that_is_linked_is_there(path: Path) -> None:
    for name, target in LINK.findall(path.read_text(encoding="utf-8")):
        if target.endswith(".py") and "tests/" in target:
            there = (path.parent / target).resolve()
            assert there.exists(), target
            if name.startswith("test_"):
                assert name in functions(there), (name, target)


@cache
def functions(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)
    }


def test_the_rooms_are_told_in_their_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == ORDER


def test_the_first_page_of_docs_has_every_other() -> None:
    told = {target for _, target in LINK.findall((ROOT / "docs/README.md").read_text(encoding="utf-8"))}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= told
