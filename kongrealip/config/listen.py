"""``KONG_PROXY_LISTEN`` and its kin: "0.0.0.0:8443 ssl proxy_protocol" -> Listen.

Two laws apply one after the other (reference, section 2): Kong's grammar, which is odd but
exact, and then what nginx refuses to start with. Each entry that fails gets a line of its own.
"""

import re
from typing import NamedTuple

from kongrealip.config.kongconf import array, nginx_seconds, strip
from kongrealip.realip.numbers import BLANKS

_KEEPALIVE = r"so_keepalive=[A-Za-z0-9]*:[A-Za-z0-9]*:[0-9]*"
_COMMON = (
    "bind", "reuseport", r"backlog=[0-9]+", "ipv6only=on", "ipv6only=off",
    "so_keepalive=on", "so_keepalive=off", _KEEPALIVE,
)  # fmt: skip
#: In the order in which Kong looks for them and writes them.
HTTP_FLAGS = ("ssl", "http2", "proxy_protocol", "deferred", *_COMMON)
STREAM_FLAGS = ("udp", "ssl", "proxy_protocol", *_COMMON)

_SHOWN = "backlog=N, ipv6only=on|off, so_keepalive=on|off|idle:interval:count"
_FLAG_HELP = {
    HTTP_FLAGS: f"ssl, http2, proxy_protocol, deferred, bind, reuseport, {_SHOWN}",
    STREAM_FLAGS: f"udp, ssl, proxy_protocol, bind, reuseport, {_SHOWN}",
}
_BLANK = f"[{BLANKS}]"
# Patterns as texts, compiled when they are first used: an import of the middleware should be cheap.
_IPV4 = r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3}):([0-9]+)"
_IPV6 = r"\[([0-9A-Fa-f:]*)\]:([0-9]+)"
_NAME = r"(?s:(.+)):([0-9]+)"
_GROUP = r"[0-9A-Fa-f]{1,4}"


class Keepalive(NamedTuple):
    """``so_keepalive``: seconds, seconds, a count; None leaves the system's value."""

    idle: int | None = None
    interval: int | None = None
    probes: int | None = None


class Listen(NamedTuple):
    """One listener. ``host`` is an address, an IPv6 address in brackets, a name or ``*``."""

    host: str
    port: int
    flags: tuple[str, ...] = ()

    @property
    def ssl(self) -> bool:
        return "ssl" in self.flags

    @property
    def proxy_protocol(self) -> bool:
        return "proxy_protocol" in self.flags

    @property
    def http2(self) -> bool:
        return "http2" in self.flags

    @property
    def reuseport(self) -> bool:
        return "reuseport" in self.flags

    @property
    def backlog(self) -> int | None:
        """The length of the accept queue, or None for the default."""
        return next((int(f[8:]) for f in self.flags if f.startswith("backlog=")), None)

    @property
    def keepalive(self) -> Keepalive | bool | None:
        """True and False switch it; None leaves the system's default."""
        values = [flag[13:] for flag in self.flags if flag.startswith("so_keepalive=")]
        # nginx takes the flags from left to right, and the last one counts.
        return keepalive(values[-1]) if values else None

    @property
    def is_unix(self) -> bool:
        return self.host.startswith("unix:")

    @property
    def address(self) -> str:
        """Without the flags: ``0.0.0.0:8000`` or ``unix:/run/app.sock``."""
        return self.host if self.is_unix else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        """As Kong renders it, ``http2`` included."""
        return " ".join((self.address, *self.flags))


def keepalive(value: str) -> Keepalive | bool:
    """Read the value of ``so_keepalive``; ValueError where nginx refuses it."""
    if value in ("on", "off"):
        return value == "on"
    idle_text, interval_text, count_text = value.split(":")
    idle, interval = (nginx_seconds(text) if text else None for text in (idle_text, interval_text))
    count = int(count_text[:9]) if count_text else None
    given = [value for value in (idle, interval, count) if value is not None]
    if 0 in given or len(given) != sum(map(bool, (idle_text, interval_text, count_text))) or not given:
        raise ValueError("so_keepalive needs idle:interval:count, as in 30m:10s:5, none of them 0")
    return Keepalive(idle, interval, count)


def parse_listens(text: str, flags: tuple[str, ...]) -> tuple[list[Listen], list[str]]:
    """Read a listen list as the listeners it opens and the problems it has, one line each."""
    entries = array(text)
    if not entries:
        return [], ["is empty, write off to open no listener"]
    if entries[0] == "off":
        return [], []
    listens: list[Listen] = []
    problems = []
    for position, entry in enumerate(entries, 1):
        try:
            listen = parse_listen(entry, flags)
            _check_for_nginx(listen, listens)
        except ValueError as error:
            problems.append(f"entry {position} {entry!r}: {error}")
        else:
            listens.append(listen)
    return listens, problems


def parse_listen(entry: str, flags: tuple[str, ...]) -> Listen:
    """Read one entry by Kong's grammar; ValueError names what is wrong and the fix."""
    found, rest = flags_of(entry, flags)
    host, port = _address(rest, flags)
    return Listen(host, port, found)


def flags_of(entry: str, flags: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Kong's parse_option_flags: the flags found, in table order, and what is left over."""
    rest = f" {entry} "
    found = []
    for flag in flags:
        if flag.partition("=")[0] not in rest:
            # A pattern takes half a millisecond to compile, and this would be a dozen at each start.
            continue
        pattern = re.compile(f"{_BLANK}({flag}){_BLANK}")
        first = pattern.search(rest)
        if first:
            found.append(first[1])
            rest = pattern.sub(" ", rest)
    return tuple(found), strip(rest)


def _address(text: str, flags: tuple[str, ...]) -> tuple[str, int]:
    if text.count(":") > 1:
        read = _ipv6(text)
    elif re.fullmatch(r"[0-9.]+", text.replace(":", "")):
        read = _ipv4(text)
    else:
        name = re.fullmatch(_NAME, text)
        read = (name[1], int(name[2].lstrip("0")[:9] or 0)) if name else None
    if read is None:
        raise ValueError(_reason(text, flags))
    return read


def _ipv4(text: str) -> tuple[str, int] | None:
    match = re.fullmatch(_IPV4, text)
    if match is None or any(int(octet) > 255 for octet in match.groups()[:4]):
        return None
    port = _bounded_port(match[5])
    return ".".join(str(int(octet)) for octet in match.groups()[:4]), port


def _ipv6(text: str) -> tuple[str, int] | None:
    """Kong's normalize_ipv6: eight groups of four digits."""
    match = re.fullmatch(_IPV6, text)
    if match is None:
        return None
    address = match[1]
    address = "0" * address.startswith(":") + address + "0" * address.endswith(":")
    if "::" in address:
        zeros = "0:" * (8 - address.count(":"))
        address = address.replace("::", f":{zeros}", 1)
    groups = address.split(":")
    if len(groups) != 8 or not all(re.fullmatch(_GROUP, group) for group in groups):
        return None
    return f"[{':'.join(group.lower().zfill(4) for group in groups)}]", _bounded_port(match[2])


def _bounded_port(text: str) -> int:
    significant = text.lstrip("0") or "0"
    if len(significant) > 5 or int(significant) > 65535:
        raise ValueError("the port must be within 1 to 65535")
    return int(significant)


def _reason(text: str, flags: tuple[str, ...]) -> str:
    words = text.split()
    if text.startswith("unix:"):
        return "Kong has no Unix sockets here, use kongrealip serve --uds PATH"
    if len(words) > 1:
        unknown = next((word for word in words if ":" not in word), words[-1])
        return f"unknown or repeated flag {unknown!r}, the flags are {_FLAG_HELP[flags]}"
    return "not of the form <ip>:<port>, as in 0.0.0.0:8000 or [::]:8000, with the flags behind it"


def _check_for_nginx(listen: Listen, earlier: list[Listen]) -> None:
    """What passes Kong and then keeps nginx from starting."""
    if listen.host == "[]" or any(blank in listen.host for blank in BLANKS):
        raise ValueError(f"nginx cannot listen on {listen.host!r}, write an address and then the flags")
    if not 1 <= listen.port <= 65535:
        raise ValueError("nginx needs a port within 1 to 65535")
    if "udp" in listen.flags and (odd := next(filter(_is_for_tcp, listen.flags), None)):
        raise ValueError(f"nginx refuses {odd} together with udp, leave one of them out")
    if listen.backlog == 0:
        raise ValueError("nginx refuses backlog=0, leave it out for the default")
    for flag in listen.flags:
        if flag.startswith("so_keepalive="):
            keepalive(flag[13:])
    if any(_socket_address(listen) == _socket_address(other) for other in earlier):
        raise ValueError(f"nginx refuses to listen twice on {listen.host}:{listen.port}, keep one entry")


def _is_for_tcp(flag: str) -> bool:
    return flag in ("ssl", "proxy_protocol") or flag.startswith(("backlog=", "so_keepalive="))


def _socket_address(listen: Listen) -> tuple[str, int]:
    return "0.0.0.0" if listen.host == "*" else listen.host, listen.port  # noqa: S104 - compared only
