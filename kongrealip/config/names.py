"""Names of settings that are not read here, and what to say about them.

A pod's environment holds dozens of KONG_* names, and nearly all are none of our business. A
line is owed for those that look like one of ours with a slip of the pen, and for the ones that
change the client's address in Kong and cannot do so here.
"""

from __future__ import annotations

from collections.abc import Mapping

READ = (
    "trusted_ips",
    "real_ip_header",
    "real_ip_recursive",
    "nginx_proxy_real_ip_header",
    "nginx_proxy_real_ip_recursive",
    "proxy_listen",
    "stream_listen",
    "port_maps",
    "lua_max_req_headers",
    "ssl_cert",
    "ssl_cert_key",
    "ssl_protocols",
    "ssl_cipher_suite",
    "ssl_ciphers",
    "nginx_worker_processes",
    "nginx_main_worker_processes",
    "nginx_events_worker_connections",
    "log_level",
    "proxy_access_log",
    "proxy_error_log",
    "status_listen",
    "nginx_http_client_header_timeout",
    "nginx_proxy_client_header_timeout",
    "nginx_sproxy_ssl_client_certificate",
    "nginx_sproxy_ssl_verify_client",
    "upstream_keepalive_pool_size",
    "upstream_keepalive_max_requests",
    "upstream_keepalive_idle_timeout",
)
READ_OF_OURS = (
    "preamble_max_bytes",
    "proxy_protocol_optional_from",
    "proxy_protocol_strict",
    "half_open_connections",
    "access_log_format",
    "forwarded_headers",
    "scheme_from_preamble",
    "replace_host",
    "replace_root_path",
    "upstream",
    "send_proxy",
    "allow",
    "upstream_tls",
    "upstream_tls_verify",
    "upstream_tls_ca",
    "alpn",
    "connect_timeout",
    "idle_timeout",
    "drain_timeout",
    "preserve_host",
    "read_timeout",
)
_OVERRULED_IN_KONG = {
    "nginx_proxy_set_real_ip_from": "list the network in trusted_ips",
    "nginx_http_set_real_ip_from": "list the network in trusted_ips",
    "nginx_location_real_ip_header": "set real_ip_header",
    "nginx_location_real_ip_recursive": "set real_ip_recursive",
}
# Directives of other blocks, or of another meaning, which are no slips of the two for client certificates.
_NO_SLIPS = (
    "nginx_proxy_ssl_client_certificate",
    "nginx_proxy_ssl_verify_client",
    "nginx_http_ssl_client_certificate",
    "nginx_stream_ssl_client_certificate",
    "nginx_sproxy_ssl_certificate",
    "nginx_sproxy_ssl_verify_depth",
)
# How alike two names must be to be taken for a slip: "trusted_ip" and "trusted_ips" score 0.95,
# Kong's own "lua_ssl_protocols" and our "ssl_protocols" 0.87.
_ALIKE = 0.88


def unread_names(environ: Mapping[str, str], file: Mapping[str, str]) -> list[str]:
    """One warning for each name that the operator probably expects to be read."""
    warnings = []
    for prefix, known in (("KONG_", READ), ("KONGREALIP_", READ_OF_OURS)):
        for name in sorted(environ):
            if name.upper().startswith(prefix):
                key = name[len(prefix) :].lower()
                # Kong compares exactly, so kong_trusted_ips is a slip too.
                read = name == prefix + key.upper() and key in known
                warnings += [] if read else _about(name, key, known, prefix)
    for key in sorted(file):
        warnings += [] if key in READ else _about(key, key.lower(), READ, "")
    return warnings


def _about(name: str, key: str, known: tuple[str, ...], prefix: str) -> list[str]:
    if key in _OVERRULED_IN_KONG:
        return [f"{name} is not read here, {_OVERRULED_IN_KONG[key]} instead"]
    if key in _NO_SLIPS:
        return []
    if key in known:
        meant = key
    else:
        # Imported when there is a name to ask about: it costs more than the rest of this room.
        from difflib import get_close_matches

        matches = get_close_matches(key, known, n=1, cutoff=_ALIKE)
        if not matches:
            return []
        meant = matches[0]
    spelling = prefix + meant.upper() if prefix else meant
    return [f"{name} is not a name that is read, did you mean {spelling}?"]
