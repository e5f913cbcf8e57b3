"""TLS versions and ciphers from KONG_SSL_CIPHER_SUITE, KONG_SSL_CIPHERS and KONG_SSL_PROTOCOLS.

The named suites are Kong's, which follow version 5.7 of Mozilla's guidelines for TLS servers.
"""

import logging
import re
import ssl
import warnings
from typing import NamedTuple

from kongrealip.config import Settings
from kongrealip.errors import StartError

logger = logging.getLogger("kongrealip.server")

# The group ffdhe2048 of RFC 7919.
_FFDHE2048 = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
_INTERMEDIATE = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
    ":ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
    ":ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
    ":DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384:DHE-RSA-CHACHA20-POLY1305"
)
_OLD = (
    f"{_INTERMEDIATE}"
    ":ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA"
    ":ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA"
    ":DHE-RSA-AES128-SHA256:DHE-RSA-AES256-SHA256:AES128-GCM-SHA256:AES256-GCM-SHA384"
    ":AES128-SHA256:AES256-SHA256:AES128-SHA:AES256-SHA:DES-CBC3-SHA"
)
_BITS = {
    "TLSv1": ssl.OP_NO_TLSv1,
    "TLSv1.1": ssl.OP_NO_TLSv1_1,
    "TLSv1.2": ssl.OP_NO_TLSv1_2,
    "TLSv1.3": ssl.OP_NO_TLSv1_3,
}


class Suite(NamedTuple):
    protocols: tuple[str, ...]
    #: For versions up to TLSv1.2; None leaves Python's own list. TLSv1.3 has ciphers of its own.
    ciphers: str | None
    prefer_server_ciphers: bool
    #: PEM. Without it the DHE ciphers are never chosen, as in nginx.
    dhparam: str | None = None


_SUITES = {
    "modern": Suite(("TLSv1.3",), None, prefer_server_ciphers=False),
    "intermediate": Suite(
        ("TLSv1.2", "TLSv1.3"), _INTERMEDIATE, prefer_server_ciphers=False, dhparam=_FFDHE2048
    ),
    # OpenSSL 3 takes TLSv1 and TLSv1.1 at security level 0 alone.
    "old": Suite(
        ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), f"{_OLD}:@SECLEVEL=0", prefer_server_ciphers=True
    ),
    "fips": Suite(("TLSv1.2",), "TLSv1.2+FIPS:kRSA+FIPS:!eNULL:!aNULL", prefer_server_ciphers=True),
}


def offer(made: ssl.SSLContext, settings: Settings) -> Suite:
    """Give a context its versions and ciphers, and return the suite in force. Raises StartError."""
    suite = _SUITES.get(settings.ssl_cipher_suite)
    if suite is None:
        # Kong's own defaults besides: the server chooses, and there are no DH parameters.
        suite = Suite(settings.ssl_protocols, settings.ssl_ciphers, prefer_server_ciphers=True)
    versions = _versions(settings, suite)
    _set_versions(made, versions)
    _set_ciphers(made, settings, suite)
    if suite.prefer_server_ciphers:
        made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if settings.ssl_cipher_suite == "custom":
        _warn_of_custom(made, settings, versions)
    elif settings.ssl_ciphers:
        names = name_of(settings, "ssl_ciphers"), name_of(settings, "ssl_cipher_suite")
        logger.warning("%s has no effect: %s is %s, not custom", *names, settings.ssl_cipher_suite)
    return suite


def name_of(settings: Settings, key: str) -> str:
    """What the operator set it by, and the variable where nobody did."""
    return settings.given.get(key, f"KONG_{key.upper()}")


def _versions(settings: Settings, suite: Suite) -> list[str]:
    """In Kong a named suite overrides ssl_protocols. Here it never adds to what was asked for."""
    asked = settings.ssl_protocols if "ssl_protocols" in settings.given else suite.protocols
    name, text = name_of(settings, "ssl_protocols"), " ".join(asked)
    if not any(version in _BITS for version in asked):
        raise StartError(f"{name}: {text!r}: none of these can be served, write TLSv1.2 TLSv1.3")
    offered = [version for version in _BITS if version in asked and version in suite.protocols]
    if not offered:
        raise StartError(
            f"{name}: {text!r}: {name_of(settings, 'ssl_cipher_suite')} is"
            f" {settings.ssl_cipher_suite}, which has none of these;"
            f" write {' '.join(suite.protocols)}, or choose another suite"
        )
    if lost := [version for version in asked if version not in offered]:
        logger.warning(
            "%s: %s not offered with %s %s; what is left is %s",
            name, " ".join(lost), name_of(settings, "ssl_cipher_suite"), settings.ssl_cipher_suite,
            " ".join(offered),
        )  # fmt: skip
    return offered


def _set_versions(made: ssl.SSLContext, versions: list[str]) -> None:
    """As nginx does it, with a bit for each version left out: a minimum and a maximum have no gaps."""
    made.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    made.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    # Python would rather have the two above, and warns of the oldest versions there as well.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        for version, bit in _BITS.items():
            if version not in versions:
                made.options |= bit


def _set_ciphers(made: ssl.SSLContext, settings: Settings, suite: Suite) -> None:
    if suite.ciphers is None:
        return
    try:
        made.set_ciphers(suite.ciphers)
    except (ssl.SSLError, ValueError) as error:
        key = "ssl_ciphers" if settings.ssl_cipher_suite == "custom" else "ssl_cipher_suite"
        raise StartError(
            f"{name_of(settings, key)}: {suite.ciphers!r}: this OpenSSL has none of these;"
            " write names that 'openssl ciphers' prints, joined by colons (TLSv1.3 needs none)"
        ) from error


def _warn_of_custom(made: ssl.SSLContext, settings: Settings, versions: list[str]) -> None:
    """OpenSSL passes over in silence what it cannot use."""
    name = name_of(settings, "ssl_ciphers")
    if unknown := _unknown_words(settings.ssl_ciphers or ""):
        logger.warning(
            "%s: %s: this OpenSSL has no such cipher for TLSv1.2 and older", name, " ".join(unknown)
        )
    oldest = [version for version in versions if version in ("TLSv1", "TLSv1.1")]
    if oldest and made.security_level > 0 and ssl.OPENSSL_VERSION_INFO >= (3,):
        logger.warning(
            "%s: %s: OpenSSL 3 refuses these at its security level %d; end %s with :@SECLEVEL=0",
            name_of(settings, "ssl_protocols"), " ".join(oldest), made.security_level, name,
        )  # fmt: skip


def _unknown_words(ciphers: str) -> list[str]:
    """Operators (!, -, + and @) cannot be tried alone."""
    words = [word for word in re.split("[:,; ]+", ciphers) if word and word[0] not in "!-+@"]
    return [word for word in words if not _known(word)]


def _known(word: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(word)
    except ssl.SSLError:
        return False
    return True
