"""What ``kongrealip relay`` is asked for beyond ``Settings``: KONGREALIP_* and a few KONG_* variables.

What is Kong's own keeps its name and its meaning; a relay's upstream is no setting in Kong, and
so it and all that belongs to it are ours.
"""

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple

from kongrealip.address import bounded_decimal
from kongrealip.config.kongconf import array, parse_file
from kongrealip.config.listen import STREAM_FLAGS, flags_of
from kongrealip.config.settings import Settings, read
from kongrealip.config.source import OURS, Source
from kongrealip.realip.networks import UNIX
from kongrealip.realip.numbers import BLANKS

#: Which preamble is sent on.
SEND_PROXY = ("off", "v1", "v2")
CLIENT_VERIFY = ("off", "on", "optional")
_CERTIFICATE, _VERIFY = "nginx_sproxy_ssl_client_certificate", "nginx_sproxy_ssl_verify_client"
# What TLS has room for.
_LONGEST_PROTOCOL = 255
# What Linux has room for, the zero at the end aside.
_LONGEST_PATH = 107


class Upstream(NamedTuple):
    """Where to relay to. ``host`` is a name, an address without brackets, or ``unix:/path``."""

    host: str
    port: int

    @property
    def is_unix(self) -> bool:
        return self.host.startswith(UNIX)

    def __str__(self) -> str:
        """As it is written in KONGREALIP_UPSTREAM."""
        if self.is_unix:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RelaySettings(NamedTuple):
    """All that the operator decided for a relay alone, checked. ``load_relay`` makes them.

    ``given`` maps each key that was set to the name it was set by, such as ``--upstream``.
    """

    #: Empty where none was given.
    upstreams: tuple[Upstream, ...] = ()
    send_proxy: str = "off"
    #: Clients that may connect; empty is everybody.
    allow: tuple[str, ...] = ()
    upstream_tls: bool = False
    upstream_tls_verify: bool = True
    #: A path or a PEM text; None is what the system trusts.
    upstream_tls_ca: str | None = None
    #: Protocols that ``ssl`` listeners offer, the best first.
    alpn: tuple[str, ...] = ()
    #: A path: whom a client's certificate has to be from.
    client_ca: str | None = None
    client_verify: str = "off"
    #: Seconds, all three. The second is nginx's proxy_timeout.
    connect_timeout: float = 5.0
    idle_timeout: float = 600.0
    drain_timeout: float = 20.0
    given: Mapping[str, str] = {}


def load_relay(
    environ: Mapping[str, str],
    conf: str | None = None,
    options: Mapping[str, str] = {},
    only_to_look: bool = False,
) -> tuple[Settings, RelaySettings]:
    """Read the environment and the text of a kong.conf; SettingsError names every problem of both.

    ``options`` are the command line's words by key (``upstream``, ``send_proxy``,
    ``stream_listen`` for --listen). They win. With ``only_to_look`` nothing is going to be
    relayed, and what could not be is no problem.
    """
    source = Source(environ, parse_file(conf or ""), options=options)
    settings = read(source)
    if not only_to_look:
        _check_stream_listen(source)
    relay = _read(source)
    source.check()
    return settings, relay


def _read(source: Source) -> RelaySettings:
    defaults = RelaySettings()
    relay = RelaySettings(
        upstreams=_upstreams(source),
        send_proxy=source.choice("send_proxy", SEND_PROXY, defaults.send_proxy, OURS),
        allow=_allow(source),
        upstream_tls=source.switch("upstream_tls", "off", OURS),
        upstream_tls_verify=source.switch("upstream_tls_verify", "on", OURS),
        upstream_tls_ca=source.pem("upstream_tls_ca", OURS),
        alpn=_alpn(source),
        client_ca=source.nginx_text("client_ca", "", _CERTIFICATE) or None,
        client_verify=_client_verify(source),
        connect_timeout=source.seconds("connect_timeout", OURS) or defaults.connect_timeout,
        idle_timeout=source.seconds("idle_timeout", OURS) or defaults.idle_timeout,
        drain_timeout=source.seconds("drain_timeout", OURS) or defaults.drain_timeout,
        given=source.given,
    )
    if relay.client_verify != "off" and relay.client_ca is None:
        hint = f"name the file of the authorities in KONG_{_CERTIFICATE.upper()}"
        source.problem("client_verify", f"{relay.client_verify!r}: {hint}")
    return relay


def _check_stream_listen(source: Source) -> None:
    """``udp`` is right in Kong, so that it is read without complaint where nothing is relayed."""
    for position, entry in enumerate(array(source.text("stream_listen") or ""), 1):
        if "udp" in flags_of(entry, STREAM_FLAGS)[0]:
            hint = "the relay passes on TCP alone, leave udp or the entry out"
            source.problem("stream_listen", f"entry {position} {entry!r}: {hint}")


def _allow(source: Source) -> tuple[str, ...]:
    """Empty where nothing was given, and never where that was something else that is empty."""
    networks = source.networks("allow", OURS)
    if "allow" in source.given and not networks:
        source.problem("allow", "is empty, write networks, or leave it out to let everybody in")
    return networks


def _upstreams(source: Source) -> tuple[Upstream, ...]:
    upstreams = source.parsed("upstream", parse_upstream, OURS)
    if "upstream" in source.given:
        source.given["upstreams"] = source.given["upstream"]
    return upstreams


def parse_upstream(entry: str) -> Upstream:
    """Read one entry; ValueError names what is wrong and the fix."""
    if entry.startswith(UNIX):
        return _unix_upstream(entry)
    host, colon, port_text = entry.rpartition(":")
    in_brackets = host[:1] == "[" and host[-1:] == "]"
    if in_brackets:
        host = host[1:-1]
    elif ":" in host and "/" not in host:
        raise ValueError("write an IPv6 address in brackets, as in [2001:db8::1]:9000")
    if not (colon and port_text.isdigit() and _is_host(host, in_brackets)):
        raise ValueError("write HOST:PORT, [IPv6]:PORT or unix:/path, and nothing else")
    port = bounded_decimal(port_text, 65535)
    if not port:
        raise ValueError("the port must be within 1 to 65535")
    return Upstream(host, port)


def _is_host(text: str, in_brackets: bool) -> bool:
    """A name as the system's resolver may know it, an IPv4 address, or, in brackets, an IPv6 one."""
    try:
        if in_brackets:
            ipaddress.IPv6Address(text)
        elif text.replace(".", "").isdigit():
            # What has digits alone is no name, and "10.1" is 10.0.0.1 to some resolvers.
            ipaddress.IPv4Address(text)
    except ipaddress.AddressValueError:
        return False
    return bool(text) and not any(character in BLANKS + "/@[]" for character in text)


def _unix_upstream(entry: str) -> Upstream:
    path = entry.removeprefix(UNIX)
    if not path.startswith("/"):
        raise ValueError("write the path from the root on, as in unix:/run/app.sock")
    if len(path.encode("utf-8", "surrogateescape")) > _LONGEST_PATH:
        raise ValueError(f"the path of a Unix socket has at most {_LONGEST_PATH} bytes, use a shorter one")
    return Upstream(entry, 0)


def _alpn(source: Source) -> tuple[str, ...]:
    names = array(source.text("alpn", OURS) or "")
    for position, name in enumerate(names, 1):
        # Blanks could be in one, and mean that a comma was forgotten.
        if len(name) > _LONGEST_PROTOCOL or not all("!" <= character <= "~" for character in name):
            hint = f"write up to {_LONGEST_PROTOCOL} ASCII characters without blanks, as in h2, http/1.1"
            source.problem("alpn", f"entry {position} {name!r}: {hint}")
    return tuple(names)


def _client_verify(source: Source) -> str:
    """nginx's words, which it takes in either case."""
    word = source.nginx_text("client_verify", "off", _VERIFY).lower()
    if word == "optional_no_ca":
        hint = "nobody behind the relay could check the certificate, write optional or off"
        source.problem("client_verify", f"{word!r}: {hint}")
        # One line is enough for it.
        return "off"
    if word not in CLIENT_VERIFY:
        source.problem("client_verify", f"{word!r}: write one of {', '.join(CLIENT_VERIFY)}")
        return "off"
    return word
