"""What ``kongrealip proxy`` is asked for beyond ``Settings``.

The pool of connections has Kong's own variables. Where to and how long to wait belongs to a service
in Kong and not to its configuration, so that is ours.
"""

from collections.abc import Mapping
from typing import NamedTuple

from kongrealip.config.kongconf import parse_file
from kongrealip.config.relay import Upstream, parse_upstream
from kongrealip.config.settings import Settings, read
from kongrealip.config.source import OURS, Source
from kongrealip.realip.networks import UNIX

_PORT = ":80"
_NO_MORE_THAN = 100_000_000


class ProxySettings(NamedTuple):
    """All that the operator decided for a proxy alone, checked. ``load_proxy`` makes them.

    ``given`` maps each key that was set to the name it was set by, such as ``--upstream``.
    """

    #: Empty where none was given.
    upstreams: tuple[Upstream, ...] = ()
    #: Whether the upstream gets the client's Host, or its own name.
    preserve_host: bool = False
    #: Seconds. The second is between two moments at which something moves, in either direction.
    connect_timeout: float = 5.0
    read_timeout: float = 60.0
    #: Idle connections to one upstream.
    upstream_keepalive_pool_size: int = 512
    #: Requests on one connection, and seconds that it may be idle; 0 is without end, for both.
    upstream_keepalive_max_requests: int = 10000
    upstream_keepalive_idle_timeout: int = 60
    given: Mapping[str, str] = {}


def load_proxy(
    environ: Mapping[str, str], conf: str | None = None, options: Mapping[str, str] = {}
) -> tuple[Settings, ProxySettings]:
    """Read the environment and the text of a kong.conf; SettingsError names every problem of both.

    ``options`` are the command line's words by key (``upstream``, ``preserve_host``). They win.
    """
    source = Source(environ, parse_file(conf or ""), options=options)
    settings = read(source)
    proxy = _read(source)
    source.check()
    return settings, proxy


def _read(source: Source) -> ProxySettings:
    defaults = ProxySettings()
    return ProxySettings(
        upstreams=_upstreams(source),
        preserve_host=source.switch("preserve_host", "off", OURS),
        connect_timeout=source.seconds("connect_timeout", OURS) or defaults.connect_timeout,
        read_timeout=source.seconds("read_timeout", OURS) or defaults.read_timeout,
        upstream_keepalive_pool_size=_number(source, "upstream_keepalive_pool_size", defaults),
        upstream_keepalive_max_requests=_number(source, "upstream_keepalive_max_requests", defaults),
        upstream_keepalive_idle_timeout=_number(source, "upstream_keepalive_idle_timeout", defaults),
        given=source.given,
    )


def _number(source: Source, key: str, defaults: ProxySettings) -> int:
    number = source.number(key, 0, _NO_MORE_THAN, "a number")
    return int(getattr(defaults, key)) if number is None else number


def _upstreams(source: Source) -> tuple[Upstream, ...]:
    upstreams = source.parsed("upstream", parse_url, OURS)
    if "upstream" in source.given:
        source.given["upstreams"] = source.given["upstream"]
    return upstreams


def parse_url(entry: str) -> Upstream:
    """Read one entry, ``http://host[:port]`` or ``unix:/path``; ValueError names fault and fix."""
    if entry.startswith(UNIX):
        return parse_upstream(entry)
    scheme, separator, rest = entry.partition("://")
    if separator and scheme.lower() == "https":
        raise ValueError(
            "there is no TLS to an upstream of the proxy, write http://, or kongrealip relay with"
            " --upstream-tls on between them"
        )
    rest = rest.removesuffix("/")
    if not separator or scheme.lower() != "http" or any(sign in rest for sign in "/?#@"):
        raise ValueError("write http://HOST:PORT, http://[IPv6]:PORT or unix:/path, and nothing else")
    has_port = ":" in rest.rpartition("]")[2]
    try:
        return parse_upstream(rest if has_port else rest + _PORT)
    except ValueError as error:
        raise ValueError(f"behind http://: {error}") from error
