"""KONG_* variables, kong.conf and KONGREALIP_* variables -> frozen Settings.

Precedence for each key: environment, then file, then default; a variable that is set but empty
counts as set (reference, section 1.4). Every problem is reported, not the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kongrealip.config import kongconf
from kongrealip.config.listen import HTTP_FLAGS, STREAM_FLAGS, Listen, parse_listens
from kongrealip.config.names import unread_names
from kongrealip.errors import SettingsError
from kongrealip.preamble import DEFAULT_LIMIT
from kongrealip.realip.networks import UNIX, TrustedNetworks, parse_network
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


class PortMap(NamedTuple):
    """``80:8000``: what a client connects to, and the listener behind it.

    Kong looks a listener up by the *text* of the second half, so ``80:08000`` has no effect.
    """

    host_port: float
    kong_port: float
    kong_port_text: str


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
    #: Each entry a path, or the PEM text itself (base64 has been resolved).
    ssl_cert: tuple[str, ...] = ()
    ssl_cert_key: tuple[str, ...] = ()
    ssl_protocols: tuple[str, ...] = ("TLSv1.2", "TLSv1.3")
    ssl_cipher_suite: str = "intermediate"
    ssl_ciphers: str | None = None
    #: None is ``auto``, the number of cores.
    nginx_worker_processes: int | None = None
    log_level: str = "notice"
    #: Seconds that a connection has for its whole preamble.
    client_header_timeout: float = _CLIENT_HEADER_TIMEOUT
    preamble_max_bytes: int = DEFAULT_LIMIT
    given: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, environ: Mapping[str, str], conf: str | None = None) -> Settings:
        """Read the environment and the text of a kong.conf; SettingsError names every problem."""
        return _Loader(environ, kongconf.parse_file(conf or "")).load()

    def replaced(
        self,
        trusted_ips: str | Iterable[str] | None = None,
        real_ip_header: str | None = None,
        real_ip_recursive: bool | str | None = None,
    ) -> Settings:
        """Another Settings in which arguments win; None leaves the value as it is."""
        arguments: dict[str, str] = {}
        if trusted_ips is not None:
            arguments["trusted_ips"] = trusted_ips if isinstance(trusted_ips, str) else ",".join(trusted_ips)
        if real_ip_header is not None:
            arguments["real_ip_header"] = real_ip_header
        if isinstance(real_ip_recursive, bool):
            arguments["real_ip_recursive"] = "on" if real_ip_recursive else "off"
        elif real_ip_recursive is not None:
            arguments["real_ip_recursive"] = real_ip_recursive
        changed = _Loader({}, arguments, origin="the argument {}").load()
        return self._replace(**{key: getattr(changed, key) for key in arguments})

    def rules(self) -> Rules:
        """What :mod:`kongrealip.realip` decides by."""
        return Rules(TrustedNetworks(self.trusted_ips), self.real_ip_header, self.real_ip_recursive)


class _Loader:
    """One pass over all keys, collecting problems on the way."""

    def __init__(
        self, environ: Mapping[str, str], file: Mapping[str, str], origin: str = "{} in kong.conf"
    ) -> None:
        self._environ = environ
        self._file = file
        self._origin = origin
        self._problems: list[str] = []
        self._given: dict[str, str] = {}

    def load(self) -> Settings:
        settings = Settings(
            trusted_ips=self._trusted_ips(),
            real_ip_header=self._real_ip_header(),
            real_ip_recursive=self._real_ip_recursive(),
            proxy_listen=self._listens("proxy_listen", DEFAULT_PROXY_LISTEN, HTTP_FLAGS),
            stream_listen=self._listens("stream_listen", "off", STREAM_FLAGS),
            port_maps=self._port_maps(),
            ssl_cert=self._certificates("ssl_cert"),
            ssl_cert_key=self._certificates("ssl_cert_key"),
            ssl_protocols=self._ssl_protocols(),
            ssl_cipher_suite=self._choice("ssl_cipher_suite", "intermediate", CIPHER_SUITES),
            ssl_ciphers=self._text("ssl_ciphers"),
            nginx_worker_processes=self._worker_processes(),
            log_level=self._choice("log_level", "notice", LOG_LEVELS),
            client_header_timeout=self._client_header_timeout(),
            preamble_max_bytes=self._preamble_max_bytes(),
            given=self._given,
            warnings=tuple(unread_names(self._environ, self._file)),
        )
        self._check_pairs(
            settings.ssl_cert, settings.ssl_cert_key, settings.ssl_cipher_suite, settings.ssl_ciphers
        )
        if self._problems:
            raise SettingsError(self._problems)
        return settings

    def _text(self, key: str, prefix: str = "KONG_") -> str | None:
        """The stripped text that was given for a key: "" where it was set and empty."""
        name = prefix + key.upper()
        if name in self._environ:
            text = self._environ[name]
        elif key in self._file and prefix == "KONG_":
            text, name = self._file[key], self._origin.format(key)
        else:
            return None
        self._given[key] = name
        return kongconf.strip(text)

    def _problem(self, key: str, text: str) -> None:
        self._problems.append(f"{self._given[key]}: {text}")

    def _trusted_ips(self) -> tuple[str, ...]:
        entries = kongconf.array(self._text("trusted_ips") or "")
        for position, entry in enumerate(entries, 1):
            try:
                if entry != UNIX:
                    parse_network(entry)
            except ValueError as error:
                self._problem("trusted_ips", f"entry {position} {entry!r}: {error}")
        return tuple(entries)

    def _nginx_text(self, key: str, default: str) -> str:
        """The argument of a directive that has a ``nginx_proxy_*`` spelling, which wins."""
        for spelling in (f"nginx_proxy_{key}", key):
            text = self._text(spelling)
            if text is None:
                continue
            self._given[key] = self._given[spelling]
            if text in ("", "NONE"):
                return default
            try:
                return kongconf.nginx_word(text)
            except ValueError as error:
                self._problem(key, f"{text!r}: {error}, so it would not start; write one plain word")
                return default
        return default

    def _real_ip_header(self) -> str:
        return self._nginx_text("real_ip_header", DEFAULT_HEADER)

    def _real_ip_recursive(self) -> bool:
        word = self._nginx_text("real_ip_recursive", "off")
        if word.lower() not in ("on", "off"):
            self._problem("real_ip_recursive", f"{word!r}: nginx takes on or off, write one of them")
        return word.lower() == "on"

    def _listens(self, key: str, default: str, flags: tuple[str, ...]) -> tuple[Listen, ...]:
        text = self._text(key)
        listens, problems = parse_listens(default if text is None else text, flags)
        for problem in problems:
            self._problem(key, problem)
        return tuple(listens)

    def _port_maps(self) -> tuple[PortMap, ...]:
        maps = []
        for position, entry in enumerate(kongconf.array(self._text("port_maps") or ""), 1):
            host_text, _, kong_text = entry.partition(":")
            host_port, kong_port = kongconf.port_number(host_text), kongconf.port_number(kong_text)
            if host_port is None or kong_port is None:
                hint = "write <port outside>:<port of the listener>, both within 1 to 65535, as in 80:8000"
                self._problem("port_maps", f"entry {position} {entry!r}: {hint}")
            else:
                maps.append(PortMap(host_port, kong_port, kong_text))
        return tuple(maps)

    def _certificates(self, key: str) -> tuple[str, ...]:
        return tuple(map(_pem_or_path, kongconf.array(self._text(key) or "")))

    def _check_pairs(
        self, certificates: tuple[str, ...], keys: tuple[str, ...], suite: str, ciphers: str | None
    ) -> None:
        if len(certificates) != len(keys):
            key = "ssl_cert" if certificates else "ssl_cert_key"
            counts = f"{len(certificates)} certificates and {len(keys)} keys"
            self._problem(key, f"{counts}, give one entry of KONG_SSL_CERT_KEY for each of KONG_SSL_CERT")
        if suite == "custom" and not ciphers:
            self._problem("ssl_cipher_suite", "'custom': name the ciphers in KONG_SSL_CIPHERS")

    def _ssl_protocols(self) -> tuple[str, ...]:
        known = {protocol.lower(): protocol for protocol in SSL_PROTOCOLS}
        words = (self._text("ssl_protocols") or "TLSv1.2 TLSv1.3").split()
        for word in words:
            if word.lower() not in known:
                self._problem("ssl_protocols", f"{word!r}: write some of {' '.join(SSL_PROTOCOLS)}")
        return tuple(known.get(word.lower(), word) for word in words)

    def _choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        text = self._text(key) or default
        if text not in choices:
            self._problem(key, f"{text!r}: write one of {', '.join(choices)}")
        return text

    def _worker_processes(self) -> int | None:
        text = self._text("nginx_worker_processes") or "auto"
        if text == "auto":
            return None
        if text.isascii() and text.isdigit() and 0 < int(text[:9]) < 100000:
            return int(text)
        self._problem("nginx_worker_processes", f"{text!r}: write auto or a number of at least 1")
        return None

    def _client_header_timeout(self) -> float:
        """Kong passes the directive on to nginx: at server level first, then at http level."""
        for key in ("nginx_proxy_client_header_timeout", "nginx_http_client_header_timeout"):
            text = self._text(key) or "NONE"
            if text == "NONE":
                continue
            seconds = kongconf.nginx_time(text)
            if seconds:
                self._given["client_header_timeout"] = self._given[key]
                return seconds
            self._problem(key, f"{text!r}: write a time above 0 as nginx does, as in 60s or 500ms")
        return _CLIENT_HEADER_TIMEOUT

    def _preamble_max_bytes(self) -> int:
        text = self._text("preamble_max_bytes", prefix="KONGREALIP_")
        if not text:
            return DEFAULT_LIMIT
        low, high = _PREAMBLE_MIN_BYTES, PREAMBLE_MAX_BYTES
        if text.isascii() and text.isdigit() and low <= int(text[:9]) <= high:
            return int(text)
        self._problem("preamble_max_bytes", f"{text!r}: write a number of bytes from {low} to {high}")
        return DEFAULT_LIMIT


def _pem_or_path(entry: str) -> str:
    """Resolve base64, the third form that Kong takes, so that a PEM text or a path remains."""
    if "-----BEGIN" in entry:
        return entry
    import base64
    import binascii

    try:
        decoded = base64.b64decode("".join(entry.split()), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return entry
    return decoded if "-----BEGIN" in decoded else entry
