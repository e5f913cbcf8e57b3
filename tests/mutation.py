"""Mutation testing with mutmut: ``python -m tests.mutation realip``, or ``preamble``, or ``config``.

mutmut works on a copy, in ``build/mutants/<area>``, where ``mutmut show NAME`` and ``mutmut run NAME`` work
afterwards. What it does not reach by itself is made reachable in the copy, by this module as a plugin of
pytest, or afterwards:

- it leaves decorated functions alone, so properties are written the long way, ``name = property(name)``;
- it starts pytest once for each mutant, with the tests that reach it by name. Thousands of recorded
  answers would then be collected a thousand times, so that many cases of a test become one loop;
- hypothesis draws the same examples each time, so that a survivor is one the next time as well;
- it puts a mutant in the place of a function that was imported before. What lives is tried once more in a
  process of its own, for functions that are called by an import;
- it mutates functions only. What is written outside of them, constants and defaults of classes, is mutated
  in the end by its operators.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent
#: What is mutated, and the tests that need no sockets and no processes.
AREAS: dict[str, tuple[list[str], list[str]]] = {
    "realip": (
        ["kongrealip/realip/*", "kongrealip/address.py"],
        [
            "tests/test_address.py",
            "tests/test_networks.py",
            "tests/test_resolve.py",
            "tests/test_resolve_vectors.py",
            "tests/test_memory.py",
            "tests/test_trace.py",
            "tests/test_received.py",
            "tests/test_forwarded.py",
            "tests/test_forwarded_vectors.py",
            "tests/test_explain.py",
            "tests/test_explanation.py",
            "tests/test_middleware.py",
            "tests/test_settings.py",
            "-k",
            "not terminal and not documents_commands and not curl_really and not help_imports",
        ],
    ),
    "preamble": (
        ["kongrealip/preamble/*"],
        [
            "tests/test_preamble.py",
            "tests/test_preamble_strict.py",
            "tests/test_preamble_writing.py",
            "tests/test_tlvs.py",
            "tests/test_decode.py",
        ],
    ),
    "config": (
        ["kongrealip/config/*"],
        [
            "tests/test_settings.py",
            "tests/test_settings_values.py",
            "tests/test_settings_faces.py",
            "tests/test_config_vectors.py",
            "tests/test_kongconf.py",
            "tests/test_relay_settings.py",
            "tests/test_upstream_settings.py",
            "tests/proxy/test_settings.py",
            "tests/test_check.py",
            "tests/test_check_findings.py",
            "tests/test_check_listeners.py",
            "tests/test_manifest.py",
            "tests/test_manifest_balancers.py",
            "tests/test_manifest_ingress.py",
            "tests/test_manifest_ours.py",
            "tests/test_manifest_reading.py",
            "tests/test_messages.py",
            "tests/test_cli_config.py",
            "tests/test_reference.py",
            "-k",
            "not real_nginx and not nginx_makes and not real_server and not overlays and not no_encoding"
            " and not does_not_pay and not yaml_is_asked_for and not the_command"
            " and not read_anew and not cannot_start and not are_shown and not whoami and not access_log",
        ],
    ),
}
_COPIED = ("kongrealip", "tests", "docs", "examples", "README.md", "pyproject.toml")
_PROPERTY = re.compile(r"( +)@property\n(\1def (\w+)\(.*\n(?:(?:\1 .*)?\n)*?)(?=\n*(?:\1\S|\S|\Z))")
_PLUGIN = ["-p", "tests.mutation", "-p", "no:cacheprovider"]
_LOOPED = 20


# -- as a plugin -------------------------------------------------------------------------------


def pytest_configure() -> None:
    hypothesis.settings.register_profile("mutants", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("mutants")
    pytest.mark.parametrize = _parametrize(pytest.mark.parametrize)  # type: ignore[assignment]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most mutants die of a recorded answer. What hypothesis draws takes longer, and comes last."""
    items.sort(key=lambda item: hasattr(getattr(item, "obj", None), "hypothesis"))


def _parametrize(parametrize: Callable[..., Any]) -> Callable[..., Any]:
    def marked(names: str | Sequence[str], cases: Any, **more: Any) -> Callable[[Any], Any]:
        listed = list(cases)

        def decorate(test: Any) -> Any:
            if len(listed) <= _LOOPED or inspect.iscoroutinefunction(test):
                return parametrize(names, listed, **more)(test)
            split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
            return _loop(test, split, listed)

        return decorate

    return marked


def _loop(test: Any, names: list[str], cases: list[Any]) -> Any:
    @functools.wraps(test)
    def all_cases(**fixtures: Any) -> None:
        for case in cases:
            values = case if len(names) > 1 else (case,)
            test(**dict(zip(names, values, strict=True)), **fixtures)

    signature = inspect.signature(test)
    others = [value for name, value in signature.parameters.items() if name not in names]
    all_cases.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    return all_cases


# -- as a program ------------------------------------------------------------------------------


def copy(area: str) -> Path:
    """A tree in which mutmut can be started."""
    folder = ROOT / "build" / "mutants" / area
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in _COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    for path in _mutated(area, folder):
        text = path.read_text(encoding="utf-8")
        path.write_text(_PROPERTY.sub(r"\2\1\3 = property(\3)\n", text), encoding="utf-8")
    settings = {
        "source_paths": ["kongrealip"],
        "only_mutate": AREAS[area][0],
        "also_copy": _COPIED[2:],
        "pytest_add_cli_args": _PLUGIN,
        "pytest_add_cli_args_test_selection": AREAS[area][1],
        # A mutant may take this many seconds and the time of its tests, four times.
        "timeout_constant": ["4"],
        "timeout_multiplier": ["4"],
    }
    lines = [f"{key} =\n" + "".join(f"    {value}\n" for value in values) for key, values in settings.items()]
    (folder / "setup.cfg").write_text("[mutmut]\n" + "".join(lines), encoding="utf-8")
    return folder


def _mutated(area: str, folder: Path) -> list[Path]:
    found = [path for pattern in AREAS[area][0] for path in folder.glob(pattern)]
    return sorted(path for path in found if path.suffix == ".py")


def survivors(folder: Path) -> list[str]:
    """The names that mutmut's run left: mutants that live, and those that no test reached."""
    command = [sys.executable, "-m", "mutmut", "results"]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = [line.strip().partition(": ") for line in shown.splitlines()]
    return [name for name, _, fate in lines if fate in ("survived", "no tests")]


def again(area: str, folder: Path) -> None:
    """Try those in processes of their own, with all tests of the area."""
    for name in survivors(folder):
        lives = _passes(area, folder / "mutants", MUTANT_UNDER_TEST=name)
        print(name, "survived" if lives else "killed in a process of its own", flush=True)


def outside_of_functions(area: str, folder: Path) -> None:
    """Try the mutants that mutmut's run leaves out, and print those that live."""
    # Not for the plugin.
    import libcst as cst
    from mutmut.mutation.file_mutation import create_mutations, deep_replace

    os.chdir(folder)
    count = 0
    for path in _mutated(area, folder):
        # Those have names to pass on, and no values.
        if path.name == "__init__.py":
            continue
        text = path.read_text(encoding="utf-8")
        module, mutations, *_ = create_mutations(str(path), text)
        for mutation in mutations:
            if isinstance(mutation.contained_by_top_level_function, cst.FunctionDef):
                continue
            mutant = deep_replace(module, mutation.original_node, mutation.mutated_node)
            assert isinstance(mutant, cst.Module)
            path.write_text(mutant.code, encoding="utf-8")
            count += 1
            if _passes(area, folder):
                lines = unified_diff(
                    text.splitlines(), mutant.code.splitlines(), path.name, "", n=0, lineterm=""
                )
                print(*lines, sep="\n", flush=True)
        path.write_text(text, encoding="utf-8")
    print(count, "mutants outside of functions")


def _passes(area: str, folder: Path, **environ: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-xqq", *_PLUGIN, *AREAS[area][1]]
    try:
        result = subprocess.run(
            command, cwd=folder, env={**os.environ, **environ}, capture_output=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0


def main() -> None:
    (area,) = sys.argv[1:]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    folder = copy(area)
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "1"], cwd=folder, check=True)
    again(area, folder)
    outside_of_functions(area, folder)


if __name__ == "__main__":
    main()
