"""``kongrealip config``: every setting in force and its origin, no secrets, and what is wrong in one line."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kongrealip import Settings
from kongrealip.cli.main import cli
from kongrealip.config.names import READ, READ_OF_OURS
from kongrealip.config.proxy import ProxySettings
from kongrealip.config.relay import RelaySettings
from kongrealip.server.tls import self_signed
from tests.test_cli import run

FIELDS = (*Settings._fields, *RelaySettings._fields, *ProxySettings._fields)
KEYS = [key for key in dict.fromkeys(FIELDS) if key not in ("given", "warnings")]

# A variable, a value for it, and how the setting then reads.
CASES = [
    ("KONG_TRUSTED_IPS", "10.0.0.0/8,unix:", "trusted_ips = 10.0.0.0/8, unix:"),
    ("KONG_REAL_IP_HEADER", "X-Client", "real_ip_header = X-Client"),
    ("KONG_NGINX_PROXY_REAL_IP_HEADER", "X-Client", "real_ip_header = X-Client"),
    ("KONG_REAL_IP_RECURSIVE", "on", "real_ip_recursive = on"),
    ("KONG_NGINX_PROXY_REAL_IP_RECURSIVE", "on", "real_ip_recursive = on"),
    ("KONG_PROXY_LISTEN", "[::1]:80 http2 ssl", "proxy_listen = [0000:0000:0000:0000:0000:0000:0000:0001]:80 ssl http2"),
    ("KONG_PROXY_LISTEN", "off", "proxy_listen = off"),
    ("KONG_STREAM_LISTEN", "0.0.0.0:9000 udp", "stream_listen = 0.0.0.0:9000 udp"),
    ("KONG_STATUS_LISTEN", "127.0.0.1:8100", "status_listen = 127.0.0.1:8100"),
    ("KONG_PORT_MAPS", "80:8000, 443:8443", "port_maps = 80:8000, 443:8443"),
    ("KONG_SSL_PROTOCOLS", "tlsv1.3", "ssl_protocols = TLSv1.3"),
    ("KONG_SSL_CIPHER_SUITE", "modern", "ssl_cipher_suite = modern"),
    ("KONG_SSL_CIPHERS", "ECDHE+AESGCM", "ssl_ciphers = ECDHE+AESGCM"),
    ("KONG_NGINX_WORKER_PROCESSES", "4", "nginx_worker_processes = 4"),
    ("KONG_NGINX_WORKER_PROCESSES", "auto", "nginx_worker_processes = auto"),
    ("KONG_NGINX_MAIN_WORKER_PROCESSES", "4", "nginx_worker_processes = 4"),
    ("KONG_NGINX_EVENTS_WORKER_CONNECTIONS", "99", "nginx_events_worker_connections = 99"),
    ("KONG_LOG_LEVEL", "debug", "log_level = debug"),
    ("KONG_PROXY_ACCESS_LOG", "off", "proxy_access_log = off"),
    ("KONG_PROXY_ERROR_LOG", "/var/log/x", "proxy_error_log = /var/log/x"),
    ("KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT", "1m", "client_header_timeout = 60.0"),
    ("KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT", "500ms", "client_header_timeout = 0.5"),
    ("KONGREALIP_PREAMBLE_MAX_BYTES", "65551", "preamble_max_bytes = 65551"),
    ("KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM", "10.0.0.0/8", "proxy_protocol_optional_from = 10.0.0.0/8"),
    ("KONGREALIP_PROXY_PROTOCOL_STRICT", "on", "proxy_protocol_strict = on"),
    ("KONGREALIP_HALF_OPEN_CONNECTIONS", "10", "half_open_connections = 10"),
    ("KONGREALIP_ACCESS_LOG_FORMAT", "json", "access_log_format = json"),
    ("KONGREALIP_FORWARDED_HEADERS", "auto", "forwarded_headers = auto"),
    ("KONGREALIP_SCHEME_FROM_PREAMBLE", "on", "scheme_from_preamble = on"),
    ("KONGREALIP_REPLACE_HOST", "on", "replace_host = on"),
    ("KONGREALIP_REPLACE_ROOT_PATH", "on", "replace_root_path = on"),
    ("KONG_LUA_MAX_REQ_HEADERS", "1000", "lua_max_req_headers = 1000"),
    ("KONGREALIP_PRESERVE_HOST", "on", "preserve_host = on"),
    ("KONGREALIP_READ_TIMEOUT", "2m", "read_timeout = 120.0"),
    ("KONG_UPSTREAM_KEEPALIVE_POOL_SIZE", "0", "upstream_keepalive_pool_size = 0"),
    ("KONG_UPSTREAM_KEEPALIVE_MAX_REQUESTS", "7", "upstream_keepalive_max_requests = 7"),
    ("KONG_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT", "5", "upstream_keepalive_idle_timeout = 5"),
    ("KONGREALIP_UPSTREAM", "db:5432,[::1]:80,unix:/s", "upstreams = db:5432, [::1]:80, unix:/s"),
    ("KONGREALIP_SEND_PROXY", "v2", "send_proxy = v2"),
    ("KONGREALIP_ALLOW", "10.0.0.0/8,unix:", "allow = 10.0.0.0/8, unix:"),
    ("KONGREALIP_UPSTREAM_TLS", "on", "upstream_tls = on"),
    ("KONGREALIP_UPSTREAM_TLS_VERIFY", "off", "upstream_tls_verify = off"),
    ("KONGREALIP_UPSTREAM_TLS_CA", "/etc/ca.pem", "upstream_tls_ca = /etc/ca.pem"),
    ("KONGREALIP_ALPN", "h2,http/1.1", "alpn = h2, http/1.1"),
    ("KONGREALIP_CONNECT_TIMEOUT", "500ms", "connect_timeout = 0.5"),
    ("KONGREALIP_IDLE_TIMEOUT", "1m", "idle_timeout = 60.0"),
    ("KONGREALIP_DRAIN_TIMEOUT", "1", "drain_timeout = 1.0"),
    ("KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE", "/ca.pem", "client_ca = /ca.pem"),
    ("KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT", "off", "client_verify = off"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(("KONG_", "KONGREALIP_"))]:
        monkeypatch.delenv(name)


def config(*args: str | Path, environ: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, ["config", *map(str, args)], env=environ)


def lines(*args: str | Path, environ: dict[str, str] | None = None) -> dict[str, str]:
    """Each line by its key."""
    result = config(*args, environ=environ)
    assert result.exit_code == 0, result.output
    return {line.partition(" = ")[0]: line for line in result.stdout.splitlines()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_every_setting_has_a_line_and_its_default() -> None:
    result = config()
    assert (result.exit_code, result.stderr) == (0, "")
    found = [re.fullmatch(r"(\w+) = (.+)  \(default\)", line) for line in result.stdout.splitlines()]
    assert [match and match[1] for match in found] == KEYS
    values = {match[1]: match[2] for match in found if match}
    # What reads best where there is nothing to show.
    assert values["trusted_ips"] == values["proxy_protocol_optional_from"] == "nobody"
    assert values["nginx_worker_processes"] == "this process alone"
    assert values["ssl_cert"] == values["ssl_cert_key"] == "self-signed"
    assert (values["status_listen"], values["port_maps"]) == ("off", "none")
    assert values["ssl_ciphers"] == "those of the suite"
    assert values["half_open_connections"] == values["nginx_events_worker_connections"] == "auto"


@pytest.mark.parametrize(("name", "value", "expected"), CASES)
def test_a_variable_and_its_name_as_the_origin(name: str, value: str, expected: str) -> None:
    found = lines(environ={name: value})
    assert found[expected.partition(" = ")[0]] == f"{expected}  ({name})"
    assert sum("(default)" in line for line in found.values()) == len(KEYS) - 1


@pytest.mark.parametrize(
    ("name", "value", "expected"), [case for case in CASES if case[0].startswith("KONG_")]
)
def test_a_line_of_kong_conf_and_its_key_as_the_origin(
    name: str, value: str, expected: str, file: Path
) -> None:
    key = name.removeprefix("KONG_").lower()
    file.write_text(f"{key} = {value}\n")
    assert f"{expected}  ({key} in kong.conf)" in lines("--conf", file).values()


def test_no_name_is_left_out_here() -> None:
    names = {f"KONG_{key.upper()}" for key in READ} | {f"KONGREALIP_{key.upper()}" for key in READ_OF_OURS}
    assert names - {name for name, _, _ in CASES} == {"KONG_SSL_CERT", "KONG_SSL_CERT_KEY"}, (
        "they come in pairs"
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"KONG_REAL_IP_HEADER": "X-A", "KONG_NGINX_PROXY_REAL_IP_HEADER": "X-B"},
            "real_ip_header = X-B  (KONG_NGINX_PROXY_REAL_IP_HEADER)",
        ),
        (
            {"KONG_NGINX_WORKER_PROCESSES": "1", "KONG_NGINX_MAIN_WORKER_PROCESSES": "2"},
            "nginx_worker_processes = 2  (KONG_NGINX_MAIN_WORKER_PROCESSES)",
        ),
        (
            {"KONG_NGINX_WORKER_PROCESSES": "1", "KONG_NGINX_MAIN_WORKER_PROCESSES": ""},
            "nginx_worker_processes = 1  (KONG_NGINX_WORKER_PROCESSES)",
        ),
        (
            {"KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT": "1s", "KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT": "2s"},
            "client_header_timeout = 2.0  (KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT)",
        ),
        (
            {"KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT": "1s", "KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT": "NONE"},
            "client_header_timeout = 1.0  (KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT)",
        ),
        ({"KONG_TRUSTED_IPS": ""}, "trusted_ips = nobody  (KONG_TRUSTED_IPS)"),
    ],
)
def test_which_of_two_names_is_the_origin(environ: dict[str, str], expected: str) -> None:
    assert expected in lines(environ=environ).values()


def test_which_of_three_places_is_the_origin(tmp_path: Path) -> None:
    conf, file = tmp_path / "kong.conf", tmp_path / "app.env"
    conf.write_text("trusted_ips = 10.0.0.1\nlog_level = debug\nreal_ip_header = X-A\n")
    file.write_text("KONG_TRUSTED_IPS=10.0.0.2\nKONG_LOG_LEVEL=info\n")
    found = lines("--conf", conf, "--env-file", file, environ={"KONG_TRUSTED_IPS": "10.0.0.3"})
    assert found["trusted_ips"] == "trusted_ips = 10.0.0.3  (KONG_TRUSTED_IPS)"
    assert found["log_level"].startswith("log_level = info  (KONG_LOG_LEVEL")
    assert found["real_ip_header"] == "real_ip_header = X-A  (real_ip_header in kong.conf)"


def test_the_environment_file_is_named(file: Path) -> None:
    """Otherwise one would look for the variable in the environment, in vain."""
    file.write_text(
        "KONG_LOG_LEVEL=info\nKONGREALIP_PROXY_PROTOCOL_STRICT=on\nKONG_NGINX_PROXY_REAL_IP_HEADER=X-A\n"
    )
    found = lines("--env-file", file)
    assert found["log_level"] == f"log_level = info  (KONG_LOG_LEVEL in {file})"
    assert found["proxy_protocol_strict"].endswith(f"(KONGREALIP_PROXY_PROTOCOL_STRICT in {file})")
    assert found["real_ip_header"].endswith(f"(KONG_NGINX_PROXY_REAL_IP_HEADER in {file})")


# Secrets


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def in_one_line(pem: str) -> str:
    """Base64 of DER, which is no form that Kong knows. Somebody will try it, and then ask why."""
    return "".join(pem.splitlines()[1:-1])


@pytest.mark.parametrize("form", [str, encoded, in_one_line])
@pytest.mark.parametrize("in_conf", [False, True])
def test_a_private_key_is_never_shown(form: type[str], in_conf: bool, file: Path) -> None:
    pairs = [self_signed(), self_signed()]
    certificates = ",".join(certificate for certificate, _ in pairs)
    keys = [form(key) for _, key in pairs]
    if in_conf:
        # A value of several lines cannot stand there.
        value = ",".join(key.replace("\n", " ") for key in keys)
        file.write_text(f"ssl_cert = /a, /b\nssl_cert_key = {value}\n")
        result = config("--conf", file)
    else:
        result = config(environ={"KONG_SSL_CERT": certificates, "KONG_SSL_CERT_KEY": ",".join(keys)})
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == len(KEYS), "one line each"
    for key in keys:
        assert not any(piece in result.output for piece in key.split() if len(piece) > 20)


def test_the_shortest_private_key_is_not_shown_either() -> None:
    key = "MC4CAQAwBQYDK2VwBCIEI" + "A" * 43  # As long as Ed25519 is as base64 of DER, and none.
    found = lines(environ={"KONG_SSL_CERT": "/a", "KONG_SSL_CERT_KEY": key})
    assert key not in found["ssl_cert_key"]


def test_paths_are_shown() -> None:
    found = lines(environ={"KONG_SSL_CERT": "/etc/a.pem, b.pem", "KONG_SSL_CERT_KEY": "/etc/a.key, b.key"})
    assert found["ssl_cert"] == "ssl_cert = /etc/a.pem, b.pem  (KONG_SSL_CERT)"
    assert found["ssl_cert_key"] == "ssl_cert_key = /etc/a.key, b.key  (KONG_SSL_CERT_KEY)"
    long = "/etc/kong/certificates/of-the-first-site/tls" * 5
    found = lines(environ={"KONG_SSL_CERT": long, "KONG_SSL_CERT_KEY": long})
    assert long in found["ssl_cert"]


# What is wrong


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("KONG_NGINX_WORKER_PROCESSES", "0", "write auto or a number of at least 1"),
        ("KONG_NGINX_WORKER_PROCESSES", "-1", "write auto or a number of at least 1"),
        ("KONG_NGINX_MAIN_WORKER_PROCESSES", "many", "write auto or a number of at least 1"),
        ("KONG_NGINX_MAIN_WORKER_PROCESSES", "2.5", "write auto or a number of at least 1"),
        ("KONG_NGINX_EVENTS_WORKER_CONNECTIONS", "0", "write auto or a number of at least 1"),
        ("KONG_NGINX_EVENTS_WORKER_CONNECTIONS", "99999999", "write auto or a number of at least 1"),
        ("KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT", "soon", "write a time above 0 as nginx does, as in 60s"),
        ("KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT", "0", "write a time above 0 as nginx does, as in 60s"),
        ("KONG_LOG_LEVEL", "loud", "write one of debug, info, notice, warn, error, crit, alert, emerg"),
        ("KONG_PROXY_ACCESS_LOG", "syslog:server=h", "there is no syslog here, write a path or /dev/stdout"),
        ("KONG_PROXY_ACCESS_LOG", "/dev/stdout basic", "the form of the access log is KONGREALIP_ACCESS_LOG_FORMAT"),
        ("KONG_PROXY_ERROR_LOG", "syslog:server=h", "there is no syslog here, write a path or /dev/stdout"),
        ("KONG_PROXY_ERROR_LOG", "/dev/stderr debug", "write a path alone"),
        ("KONG_SSL_CIPHER_SUITE", "best", "write one of modern, intermediate, old, fips, custom"),
        ("KONG_SSL_CIPHER_SUITE", "custom", "name the ciphers in KONG_SSL_CIPHERS"),
        ("KONG_SSL_PROTOCOLS", "TLSv9", "write some of SSLv2 SSLv3 TLSv1 TLSv1.1 TLSv1.2 TLSv1.3"),
        ("KONGREALIP_PREAMBLE_MAX_BYTES", "106", "write a number of bytes from 107 to 65551"),
        ("KONGREALIP_PREAMBLE_MAX_BYTES", "4 KiB", "write a number of bytes from 107 to 65551"),
        ("KONGREALIP_PROXY_PROTOCOL_STRICT", "yes", "write one of on, off"),
        ("KONGREALIP_HALF_OPEN_CONNECTIONS", "0", "write a number from 1 to 10000000"),
        ("KONGREALIP_HALF_OPEN_CONNECTIONS", "auto", "write a number from 1 to 10000000"),
        ("KONGREALIP_ACCESS_LOG_FORMAT", "xml", "write one of kong, json"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_one_line_with_the_fix(name: str, value: str, fix: str) -> None:
    assert_told(name, f"{name}: {value!r}: ", fix, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "entry", "fix"),
    [
        ("KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM", "unix:, host", "entry 2 'host'", "write an IPv4 or IPv6 address"),
        ("KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM", "10.0.0.0/33", "entry 1 '10.0.0.0/33'", "from 0 to 32"),
        ("KONG_STATUS_LISTEN", "127.0.0.1:8100 udp", "entry 1 '127.0.0.1:8100 udp'", "the flags are ssl, http2,"),
        ("KONG_STATUS_LISTEN", "127.0.0.1", "entry 1 '127.0.0.1'", "not of the form <ip>:<port>"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_told_in_one_line_with_the_fix(name: str, value: str, entry: str, fix: str) -> None:
    assert_told(name, f"{name}: {entry}: ", fix, {name: value})


def test_an_empty_list_of_status_listeners() -> None:
    assert_told("KONG_STATUS_LISTEN", "KONG_STATUS_LISTEN: is empty", "write off", {"KONG_STATUS_LISTEN": ""})


def assert_told(name: str, beginning: str, fix: str, environ: dict[str, str]) -> None:
    result = config(environ=environ)
    assert (result.exit_code, result.stdout) == (3, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"kongrealip: {beginning}")
    assert fix in line


def test_problems_of_the_files_are_told_with_their_place(tmp_path: Path) -> None:
    conf, file = tmp_path / "kong.conf", tmp_path / "app.env"
    conf.write_text("log_level = loud\n")
    file.write_text("KONG_NGINX_WORKER_PROCESSES=0\n")
    result = config("--conf", conf, "--env-file", file)
    assert result.exit_code == 3
    first, second = result.stderr.splitlines()
    assert first.startswith("kongrealip: KONG_NGINX_WORKER_PROCESSES")
    assert second.startswith("kongrealip: log_level in kong.conf: 'loud': ")


def test_near_misses_are_told_beside_the_settings(tmp_path: Path) -> None:
    conf, file = tmp_path / "kong.conf", tmp_path / "app.env"
    conf.write_text("real-ip-recursiv = on\n")
    file.write_text("KONG_TRUSTED_IP=10.0.0.1\n")
    environ = {"KONGREALIP_PROXY_PROTOCOL_STRIKT": "on", "KONG_DATABASE": "off"}
    result = config("--conf", conf, "--env-file", file, environ=environ)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == len(KEYS)
    assert result.stderr.splitlines() == [
        "kongrealip: KONG_TRUSTED_IP is not a name that is read, did you mean KONG_TRUSTED_IPS?",
        "kongrealip: KONGREALIP_PROXY_PROTOCOL_STRIKT is not a name that is read,"
        " did you mean KONGREALIP_PROXY_PROTOCOL_STRICT?",
        "kongrealip: real_ip_recursiv is not a name that is read, did you mean real_ip_recursive?",
    ]


@pytest.mark.parametrize("option", ["--conf", "--env-file"])
def test_a_file_that_is_not_there_is_2(option: str, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        assert config(option, path).exit_code == 2


def test_bytes_of_no_encoding(file: Path) -> None:
    file.write_bytes(b"proxy_error_log = /var/log/\xff\n")
    result = run("config", "--conf", str(file), environ={"PYTHONIOENCODING": "utf-8"})
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == len(KEYS)
