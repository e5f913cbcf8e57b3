"""The Dockerfile, as far as it can be tested without an engine: its words, its wheel, its health check."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kongrealip import Settings
from kongrealip.cli.main import cli
from tests.running import LOOPBACK, clean_environ, free_port, serving

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "kongrealip").rglob("*.py"))


def stages() -> list[list[tuple[str, str]]]:
    """Instructions and their arguments, for each FROM."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: list[list[tuple[str, str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            found.append([])
        if instruction:
            found[-1].append((instruction, arguments.strip()))
    return found


BUILD, FINAL = stages()


def all_of(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [arguments for found, arguments in stage if found == instruction]


def one_of(stage: list[tuple[str, str]], instruction: str) -> str:
    (arguments,) = all_of(stage, instruction)
    return arguments


def variables() -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(one_of(FINAL, "ENV")))


def copied() -> list[tuple[list[str], str]]:
    """Sources in the context and their destination, for each COPY of the first stage."""
    words = [shlex.split(arguments) for arguments in all_of(BUILD, "COPY")]
    return [(sources, destination) for *sources, destination in words]


# What is sent to the engine


def is_sent(path: str) -> bool:
    """By the rules of .dockerignore: the last line counts that fits a path or a folder above it."""
    sent = True
    above = ["/".join(path.split("/")[:length]) for length in range(1, path.count("/") + 2)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.removeprefix("!"))
            pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, name) for name in above):
                sent = line.startswith("!")
    return sent


def test_what_is_copied_is_there_and_is_sent() -> None:
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert is_sent(source), source
    assert all(map(is_sent, [*MODULES, "kongrealip/py.typed"]))


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "app.env", ".env", "key.pem", "tests/running.py", "Dockerfile",
     "kongrealip/__pycache__/errors.cpython-313.pyc", "kongrealip/server/__pycache__"],
)  # fmt: skip
def test_nothing_else_is_sent(path: str) -> None:
    assert not is_sent(path)


# The stages


def test_both_are_the_same_slim_python_that_this_project_names() -> None:
    image, _, name = one_of(BUILD, "FROM").partition(" AS ")
    assert (one_of(FINAL, "FROM"), name) == (image, "build")
    version = re.fullmatch(r"python:(3\.\d+)-slim", image)
    assert version
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


def test_the_second_takes_the_wheel_from_the_first() -> None:
    (wheel_folder,) = re.findall(r"--wheel-dir (\S+)", one_of(BUILD, "RUN"))
    assert one_of(FINAL, "COPY") == f"--from=build {wheel_folder} {wheel_folder}"
    assert f"{wheel_folder}/*.whl" in one_of(FINAL, "RUN")


def test_the_image_is_not_root_and_has_no_tools_to_build_with() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one_of(FINAL, "USER")), "numbers, so that they can be checked"
    instructions = [instruction for instruction, _ in FINAL]
    assert "RUN" not in instructions[instructions.index("USER") :]
    assert not re.search(r"\b(apt-get|apk|gcc|hatch|build-essential)\b", str(FINAL))
    assert "--only-binary=:all:" in one_of(FINAL, "RUN")


def test_what_it_is_started_with() -> None:
    (entry,) = json.loads(one_of(FINAL, "ENTRYPOINT"))
    assert entry in PROJECT["scripts"]
    name, *args = json.loads(one_of(FINAL, "CMD"))
    assert cli.commands[name].make_context(name, args).params["app"] is None
    assert one_of(FINAL, "STOPSIGNAL") == "SIGTERM"


def test_its_environment_and_its_ports() -> None:
    assert variables()["PYTHONUNBUFFERED"] == "1"
    settings = Settings.load(variables())
    assert [listen.address for listen in settings.status_listen] == ["127.0.0.1:8100"]
    assert one_of(FINAL, "EXPOSE").split() == [str(listen.port) for listen in settings.proxy_listen]


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the first stage's own command, from nothing but what it copies."""
    context, folder = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("dist")
    for sources, destination in copied():
        for source in map(ROOT.joinpath, sources):
            if source.is_dir():
                shutil.copytree(source, context / destination, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, context / destination)
    words = [str(folder) if word == "/dist" else word for word in shlex.split(one_of(BUILD, "RUN"))]
    pip(*words[1:], folder=context)
    (built,) = folder.iterdir()
    return built


def pip(*args: str, folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *args],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_the_wheel_has_every_module_and_the_mark_of_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {*MODULES, "kongrealip/py.typed", "kongrealip/cli/page.css"}


def test_the_wheel_is_installed_with_its_extras_and_runs(wheel: Path, tmp_path: Path) -> None:
    *_, last = shlex.split(one_of(FINAL, "RUN"))
    extras = last.partition("[")[2].removesuffix("]").split(",")
    assert extras == ["websockets", "selfsigned", "metrics"]
    told = pip(
        "install", "--no-deps", "--target", str(tmp_path), f"{wheel}[{','.join(extras)}]", folder=tmp_path
    )
    assert "does not provide the extra" not in told
    environ = {**clean_environ(), "PYTHONPATH": str(tmp_path)}
    code = "import kongrealip.cli.main as m; print(m.__file__); m.main(['--version'])"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    path, version = result.stdout.splitlines()
    assert Path(path).is_relative_to(tmp_path)
    assert version.startswith(f"kongrealip {wheel.name.split('-')[1]}, ")


# The health check


def health(status_listen: str, environ: dict[str, str] | None = None) -> int:
    """What the health check's own command says of a container with this variable."""
    _, _, command = one_of(FINAL, "HEALTHCHECK").partition("CMD ")
    program, *args = json.loads(command)
    assert program == "python"
    return subprocess.run(
        [sys.executable, *args],
        env={"KONG_STATUS_LISTEN": status_listen, **(environ or {})}, capture_output=True, timeout=30, check=False,
    ).returncode  # fmt: skip


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_healthy(workers: tuple[str, ...]) -> None:
    port = free_port()
    environ = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{free_port()}", "KONG_STATUS_LISTEN": f"{LOOPBACK}:{port}"}
    with serving(environ, *workers) as server:
        server.wait_for_stderr("Application startup complete")
        for listen in (f"{LOOPBACK}:{port}", f"0.0.0.0:{port} backlog=5, [::]:1", f"*:{port},[::1]:1"):
            assert health(listen) == 0
        nowhere = f"http://{LOOPBACK}:{free_port()}"
        assert health(f"{LOOPBACK}:{port}", {"http_proxy": nowhere, "HTTP_PROXY": nowhere}) == 0
        server.terminate()
        assert server.wait() == 0
        assert health(f"{LOOPBACK}:{port}") == 1


def test_nobody_is_there() -> None:
    assert health(f"{LOOPBACK}:{free_port()}") == 1
    assert health("off") == 1


class NotReady(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(503 if self.path == "/status/ready" else 404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base calls it
        pass


@contextmanager
def not_ready() -> Iterator[int]:
    with HTTPServer((LOOPBACK, 0), NotReady) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_not_ready() -> None:
    with not_ready() as port:
        assert health(f"{LOOPBACK}:{port}") == 1


def test_no_answer() -> None:
    """As while the workers import the application: the port is open already."""
    with socket.create_server((LOOPBACK, 0)) as silent:
        assert health(f"{LOOPBACK}:{silent.getsockname()[1]}") == 1
