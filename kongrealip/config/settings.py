"""KONG_* variables, kong.conf and KONGREALIP_* variables -> frozen Settings.

Precedence for each key: environment, then file, then default; a variable that is set but empty
counts as set (reference, section 1.4). Every problem is reported, not the first one.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kongrealip.config import kongconf
from kongrealip.config.listen import HTTP_FLAGS, STREAM_FLAGS, Listen
from kongrealip.config.names import unread_names
from kongrealip.config.source import OURS, Source
from kongrealip.preamble import DEFAULT_LIMIT
from kongrealip.realip.belief import AUTO, OFF, TRUSTED, ForwardedRules
from kongrealip.realip.networks import KongTrust, TrustedNetworks
from kongrealip.realip.numbers import number, port_number
from kongrealip.realip.received import MOST_LINES
from kongrealip.realip.resolve import Rules

DEFAULT_HEADER = "X-Real-IP"
DEFAULT_PROXY_LISTEN = "0.0.0.0:8000 reuseport backlog=16384, 0.0.0.0:8443 http2 ssl reuseport backlog=16384"
LOG_LEVELS = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")
CIPHER_SUITES = ("modern", "intermediate", "old", "fips", "custom")
SSL_PROTOCOLS = ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
#: The longest version 2 preamble there can be: 16 bytes and a 16-bit length.
PREAMBLE_MAX_BYTES = 65551
#: The longest version 1 line of the specification.
_PREAMBLE_MIN_BYTES = 107
_CLIENT_HEADER_TIMEOUT = 60.0
#: Whose X-Forwarded-Proto and its kin are believed.
FORWARDED_HEADERS = (TRUSTED, OFF, AUTO)
#: Kong's own bounds.
_MOST_LINES_OF_KONG = 1000
#: How the access log may look.
ACCESS_LOG_FORMATS = ("kong", "json")
_NO_MORE_THAN = 10_000_000


class PortMap(NamedTuple):
    """``80:8000``: what a client connects to, and the listener behind it.

    Kong looks a listener up by the *text* of the second half, so ``80:08000`` has no effect.
    """

    host_port: float
    kong_port: float
    kong_port_text: str

    def __str__(self) -> str:
        return f"{self.host_port:g}:{self.kong_port_text}"


class Settings(NamedTuple):
    """All that the operator decided, checked. ``Settings.load`` makes them.

    ``given`` maps each key that was set to the name it was set by, such as
    ``KONG_TRUSTED_IPS``; ``warnings`` holds one line for each thing that is legal and odd.
    """

    trusted_ips: tuple[str, ...] = ()
    #: The header in force, after the ``nginx_proxy_*`` spelling had its say.
    real_ip_header: str = DEFAULT_HEADER
    real_ip_recursive: bool = False
    #: The default is DEFAULT_PROXY_LISTEN, read beforehand: reading costs more than the rest.
    proxy_listen: tuple[Listen, ...] = (
        Listen("0.0.0.0", 8000, ("reuseport", "backlog=16384")),  # noqa: S104 - Kong's own default
        Listen("0.0.0.0", 8443, ("ssl", "http2", "reuseport", "backlog=16384")),  # noqa: S104
    )
    stream_listen: tuple[Listen, ...] = ()
    port_maps: tuple[PortMap, ...] = ()
    #: Lines of a request among which Kong looks for what it tells an upstream.
    lua_max_req_headers: int = MOST_LINES
    #: Each entry a path, or the PEM text itself (base64 has been resolved).
    ssl_cert: tuple[str, ...] = ()
    ssl_cert_key: tuple[str, ...] = ()
    ssl_protocols: tuple[str, ...] = ("TLSv1.2", "TLSv1.3")
    ssl_cipher_suite: str = "intermediate"
    ssl_ciphers: str | None = None
    #: None is ``auto``, the number of cores.
    nginx_worker_processes: int | None = None
    #: Connections that one process holds at most; None is ``auto``, what its descriptors allow.
    nginx_events_worker_connections: int | None = None
    log_level: str = "notice"
    #: A path, or ``off``.
    proxy_access_log: str = "/dev/stdout"
    proxy_error_log: str = "/dev/stderr"
    #: Off by default, unlike Kong's: two services on a host would meet at its port.
    status_listen: tuple[Listen, ...] = ()
    #: Seconds that a connection has for its preamble and its TLS handshake together.
    client_header_timeout: float = _CLIENT_HEADER_TIMEOUT
    preamble_max_bytes: int = DEFAULT_LIMIT
    #: Peers that may come to a ``proxy_protocol`` listener without a preamble.
    proxy_protocol_optional_from: tuple[str, ...] = ()
    #: Refuse what nginx lets pass and the specification forbids.
    proxy_protocol_strict: bool = False
    #: Connections in their preamble or handshake that one process holds at most; None is half
    #: of ``nginx_events_worker_connections``.
    half_open_connections: int | None = None
    access_log_format: str = "kong"
    forwarded_headers: str = TRUSTED
    #: Take https from a trusted peer's preamble: its SSL TLV, or port 443 as the destination.
    scheme_from_preamble: bool = False
    #: Put X-Forwarded-Host into the header ``host``, and X-Forwarded-Prefix into ``root_path``.
    replace_host: bool = False
    replace_root_path: bool = False
    given: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, environ: Mapping[str, str], conf: str | None = None) -> "Settings":
        """Read the environment and the text of a kong.conf; SettingsError names every problem."""
        return _load(Source(environ, kongconf.parse_file(conf or "")))

    def replaced(self, **arguments: str | Iterable[str] | bool | None) -> "Settings":
        """Another Settings in which arguments win; None leaves the value as it is.

        Keys are names of fields. A switch may be a bool, a list any iterable. Raises
        SettingsError where a value cannot be used.
        """
        texts = {key: _argument(value) for key, value in arguments.items() if value is not None}
        changed = _load(Source({}, {}, texts, "the argument"))
        return self._replace(**{key: getattr(changed, key) for key in texts})

    def rules(self) -> Rules:
        """What :mod:`kongrealip.realip` decides by."""
        return Rules(TrustedNetworks(self.trusted_ips), self.real_ip_header, self.real_ip_recursive)

    def forwarded_rules(self) -> ForwardedRules:
        """What :mod:`kongrealip.realip.forwarded` decides by."""
        maps = {entry.kong_port_text: entry.host_port for entry in self.port_maps}
        return ForwardedRules(
            KongTrust(self.trusted_ips),
            self.forwarded_headers,
            self.scheme_from_preamble,
            maps,
            self.lua_max_req_headers,
        )


def _argument(value: str | Iterable[str] | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else ",".join(value)


def _load(source: Source) -> "Settings":
    settings = read(source)
    source.check()
    return settings


def read(source: Source) -> "Settings":
    """Read every key; the problems are left with the source."""
    settings = Settings(
        trusted_ips=source.networks("trusted_ips"),
        real_ip_header=_real_ip(source, "real_ip_header", DEFAULT_HEADER),
        real_ip_recursive=_real_ip_recursive(source),
        proxy_listen=source.listens("proxy_listen", DEFAULT_PROXY_LISTEN, HTTP_FLAGS),
        stream_listen=source.listens("stream_listen", "off", STREAM_FLAGS),
        port_maps=_port_maps(source),
        lua_max_req_headers=_lua_max_req_headers(source),
        ssl_cert=source.pem_list("ssl_cert"),
        ssl_cert_key=source.pem_list("ssl_cert_key"),
        ssl_protocols=_ssl_protocols(source),
        ssl_cipher_suite=source.choice("ssl_cipher_suite", CIPHER_SUITES, "intermediate"),
        ssl_ciphers=source.text("ssl_ciphers"),
        nginx_worker_processes=source.number_or_auto(
            ("nginx_main_worker_processes", "nginx_worker_processes"), 100_000
        ),
        nginx_events_worker_connections=source.number_or_auto(
            ("nginx_events_worker_connections",), _NO_MORE_THAN
        ),
        log_level=source.choice("log_level", LOG_LEVELS, "notice"),
        proxy_access_log=source.log_path("proxy_access_log", "/dev/stdout"),
        proxy_error_log=source.log_path("proxy_error_log", "/dev/stderr"),
        status_listen=source.listens("status_listen", "off", HTTP_FLAGS),
        client_header_timeout=_client_header_timeout(source),
        preamble_max_bytes=_preamble_max_bytes(source),
        proxy_protocol_optional_from=source.networks("proxy_protocol_optional_from", OURS),
        proxy_protocol_strict=source.switch("proxy_protocol_strict", "off", OURS),
        half_open_connections=source.number("half_open_connections", 1, _NO_MORE_THAN, "a number", OURS),
        access_log_format=source.choice("access_log_format", ACCESS_LOG_FORMATS, "kong", OURS),
        forwarded_headers=source.choice("forwarded_headers", FORWARDED_HEADERS, TRUSTED, OURS),
        scheme_from_preamble=source.switch("scheme_from_preamble", "off", OURS),
        replace_host=source.switch("replace_host", "off", OURS),
        replace_root_path=source.switch("replace_root_path", "off", OURS),
        given=source.given,
        warnings=tuple(unread_names(source.environ, source.file)),
    )
    _check_pairs(source, settings)
    return settings


def _real_ip(source: Source, key: str, default: str) -> str:
    """Kong's own spelling is overruled by that of the directive."""
    return source.nginx_text(key, default, f"nginx_proxy_{key}", key)


def _real_ip_recursive(source: Source) -> bool:
    word = _real_ip(source, "real_ip_recursive", "off")
    if word.lower() not in ("on", "off"):
        source.problem("real_ip_recursive", f"{word!r}: nginx takes on or off, write one of them")
    return word.lower() == "on"


def _port_maps(source: Source) -> tuple[PortMap, ...]:
    maps = []
    for position, entry in enumerate(kongconf.array(source.text("port_maps") or ""), 1):
        host_text, _, kong_text = entry.partition(":")
        host_port, kong_port = port_number(host_text), port_number(kong_text)
        if host_port is None or kong_port is None:
            hint = "write <port outside>:<port of the listener>, both within 1 to 65535, as in 80:8000"
            source.problem("port_maps", f"entry {position} {entry!r}: {hint}")
        else:
            maps.append(PortMap(host_port, kong_port, kong_text))
    return tuple(maps)


def _lua_max_req_headers(source: Source) -> int:
    """Number text, as Kong reads it: ``0x64`` and ``1e2`` are 100."""
    text = source.text("lua_max_req_headers")
    if not text:
        return MOST_LINES
    value = number(text)
    if value is not None and 1 <= value <= _MOST_LINES_OF_KONG and value == int(value):
        return int(value)
    hint = f"write a whole number from 1 to {_MOST_LINES_OF_KONG}"
    source.problem("lua_max_req_headers", f"{text!r}: {hint}")
    return MOST_LINES


def _check_pairs(source: Source, settings: Settings) -> None:
    certificates, keys = settings.ssl_cert, settings.ssl_cert_key
    if len(certificates) != len(keys):
        key = "ssl_cert" if certificates else "ssl_cert_key"
        counts = f"{len(certificates)} certificates and {len(keys)} keys"
        source.problem(key, f"{counts}, give one entry of KONG_SSL_CERT_KEY for each of KONG_SSL_CERT")
    if settings.ssl_cipher_suite == "custom" and not settings.ssl_ciphers:
        source.problem("ssl_cipher_suite", "'custom': name the ciphers in KONG_SSL_CIPHERS")


def _ssl_protocols(source: Source) -> tuple[str, ...]:
    known = {protocol.lower(): protocol for protocol in SSL_PROTOCOLS}
    words = (source.text("ssl_protocols") or "TLSv1.2 TLSv1.3").split()
    for word in words:
        if word.lower() not in known:
            source.problem("ssl_protocols", f"{word!r}: write some of {' '.join(SSL_PROTOCOLS)}")
    return tuple(known.get(word.lower(), word) for word in words)


def _client_header_timeout(source: Source) -> float:
    """Kong passes the directive on to nginx: at server level first, then at http level."""
    for key in ("nginx_proxy_client_header_timeout", "nginx_http_client_header_timeout"):
        if source.text(key) == "NONE":
            continue
        seconds = source.seconds(key)
        if seconds:
            source.given["client_header_timeout"] = source.given[key]
            return seconds
    return _CLIENT_HEADER_TIMEOUT


def _preamble_max_bytes(source: Source) -> int:
    low, high = _PREAMBLE_MIN_BYTES, PREAMBLE_MAX_BYTES
    number = source.number("preamble_max_bytes", low, high, "a number of bytes", OURS)
    return DEFAULT_LIMIT if number is None else number
