"""TLS contexts from KONG_SSL_CERT and KONG_SSL_CERT_KEY, or a self-signed pair as Kong makes one."""

from __future__ import annotations

import base64
import datetime
import logging
import os
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from kongrealip.config import Listen, Settings
from kongrealip.errors import StartError
from kongrealip.server import suites
from kongrealip.server.suites import name_of

logger = logging.getLogger("kongrealip.server")

_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]+)-----END ")
# How a certificate says, in DER, what kind of key it has. OpenSSL keeps one pair of each kind.
_KINDS = {
    bytes.fromhex("06092a864886f70d010101"): "RSA",
    bytes.fromhex("06072a8648ce3d0201"): "ECDSA",
    bytes.fromhex("06032b6570"): "Ed25519",
    bytes.fromhex("06032b6571"): "Ed448",
}
_GIVE_FILE = "give the path of a PEM file that this user may read, or its text"
_GIVE_CERTIFICATE = "give a PEM certificate chain that begins with the server's own"
_GIVE_KEY = "give the unencrypted PEM key of the first certificate"
# The second is said of a key of another kind than the certificate's.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")


def contexts(settings: Settings, listens: Iterable[Listen]) -> dict[bool, ssl.SSLContext]:
    """TLS for listeners of HTTP with and without http2, where there are such."""
    wanted = {listen.http2 for listen in listens if listen.ssl}
    if wanted and not settings.ssl_cert:
        certificate, key = self_signed()
        settings = settings._replace(ssl_cert=(certificate,), ssl_cert_key=(key,))
    return {http2: context(settings, http2) for http2 in wanted}


def context(settings: Settings, http2: bool = False) -> ssl.SSLContext:
    """The context for ``ssl`` listeners of HTTP, version 2 as well or not. Raises as ``base`` does."""
    made = base(settings)
    made.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return made


def base(settings: Settings) -> ssl.SSLContext:
    """The context for ``ssl`` listeners of any protocol. StartError has one line and the fix."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Before the pairs, for the security level in a list of ciphers decides which keys are too small.
    suite = suites.offer(made, settings)
    if suite.dhparam:
        with _file(suite.dhparam.encode()) as path:
            made.load_dh_params(path)
    pairs = list(zip(settings.ssl_cert, settings.ssl_cert_key, strict=True)) or [self_signed()]
    names = f"{name_of(settings, 'ssl_cert')} / {name_of(settings, 'ssl_cert_key')}"
    _load_pairs(made, pairs, names)
    return made


def _load_pairs(made: ssl.SSLContext, pairs: list[tuple[str, str]], names: str) -> None:
    positions: dict[str, int] = {}
    for position, (certificate, key) in enumerate(pairs, 1):
        try:
            kind = _load(made, certificate, key)
        except ValueError as error:
            raise StartError(f"{names}: entry {position} cannot be loaded: {error}") from error
        if kind in positions:
            logger.warning(
                "%s: entry %d replaces entry %d: both keys are %s, and one of each kind is served;"
                " leave one of them out",
                names, position, positions[kind], kind,
            )  # fmt: skip
        if kind:
            positions[kind] = position


def _load(made: ssl.SSLContext, certificate: str, key: str) -> str | None:
    """Add a pair and return the kind of its key, if it is known. ValueError has the cause and the fix."""
    chain, secret = _pem(certificate), _pem(key)
    first = _CERTIFICATE.search(chain)
    if first is None:
        raise ValueError(f"no whole certificate in {_shown(certificate)}; {_GIVE_CERTIFICATE}")
    if b"PRIVATE KEY-----" not in secret:
        raise ValueError(f"no private key in {_shown(key)}; {_GIVE_KEY}")
    refuse = partial(_refuse_to_decrypt, key)
    with _file(chain) as chain_path, _file(secret) as key_path:
        # Tried by itself: next to other pairs OpenSSL takes a key that belongs to one of them.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trial.set_ciphers(f"ALL:@SECLEVEL={made.security_level}")
        try:
            trial.load_cert_chain(chain_path, key_path, refuse)
        except ssl.SSLError as error:
            raise ValueError(_cause(error, certificate, key, chain_path)) from error
        made.load_cert_chain(chain_path, key_path, refuse)
    return _kind(first[1])


def _pem(entry: str) -> bytes:
    """The text itself, or that of the file."""
    if "-----BEGIN" in entry:
        return entry.encode("utf-8", "surrogateescape")
    try:
        with open(entry, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "no such file" if missing else str(getattr(error, "strerror", error)).lower()
        raise ValueError(f"{why}: {_shown(entry)}; {_GIVE_FILE}") from error


def _shown(entry: str) -> str:
    """An entry, for one line of the log. A long one may be a damaged key, which must not be seen."""
    if "-----BEGIN" in entry:
        return "the text"
    line = "".join(character if character.isprintable() else "?" for character in entry)
    return line if len(line) <= 100 else f"{line[:20]}...{line[-20:]}"


def _refuse_to_decrypt(key: str) -> str:
    """Asked for the password of a key, which OpenSSL would otherwise ask for on the terminal."""
    raise ValueError(f"the key in {_shown(key)} is encrypted; {_GIVE_KEY}")


def _cause(error: ssl.SSLError, certificate: str, key: str, chain_path: str) -> str:
    """Why a pair was not taken. OpenSSL does not say which half it could not read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(chain_path)
    except ssl.SSLError:
        return f"a certificate in {_shown(certificate)} is damaged; {_GIVE_CERTIFICATE}"
    reason = error.reason or "PEM_LIB"
    if reason in _MISMATCHES:
        return f"the key in {_shown(key)} belongs to another certificate; {_GIVE_KEY}"
    if reason == "PEM_LIB" or error.library == "PEM":
        return f"the key in {_shown(key)} is damaged; {_GIVE_KEY}"
    words = reason.lower().replace("_", " ")
    return (
        f"OpenSSL refuses {_shown(certificate)}: {words}; make a pair of 2048-bit RSA or ECDSA, with SHA-256"
    )


def _kind(certificate: bytes) -> str | None:
    der = base64.b64decode(certificate)
    return next((kind for identifier, kind in _KINDS.items() if identifier in der), None)


@contextmanager
def _file(text: bytes) -> Iterator[str]:
    """The standard library reads files only. This one is in memory: a key never comes to a disk."""
    with open(os.memfd_create("kongrealip"), "wb") as file:
        file.write(text)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def self_signed() -> tuple[str, str]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise StartError(
            "an ssl listener without KONG_SSL_CERT and KONG_SSL_CERT_KEY needs a self-signed pair:"
            " pip install 'kongrealip[selfsigned]', or set both, or leave ssl out of KONG_PROXY_LISTEN"
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(encoding).decode("ascii"), private.decode("ascii")
