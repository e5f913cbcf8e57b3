"""TLS contexts from KONG_SSL_CERT and KONG_SSL_CERT_KEY, or a self-signed pair as Kong makes one."""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile

from kongrealip.config import Settings
from kongrealip.errors import StartError

_VERSIONS = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


def context(settings: Settings) -> ssl.SSLContext:
    """The context for every ``ssl`` listener. Raises StartError with one line and the fix."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    versions = [_VERSIONS[name] for name in settings.ssl_protocols if name in _VERSIONS]
    if not versions:
        raise StartError("KONG_SSL_PROTOCOLS: none of these can be served, write TLSv1.2 TLSv1.3")
    made.minimum_version, made.maximum_version = min(versions), max(versions)
    made.set_alpn_protocols(["http/1.1"])
    pairs = list(zip(settings.ssl_cert, settings.ssl_cert_key, strict=True)) or [self_signed()]
    for position, (certificate, key) in enumerate(pairs, 1):
        try:
            _load(made, certificate, key)
        except (OSError, ValueError) as error:
            what = getattr(error, "strerror", None) or error
            raise StartError(
                f"KONG_SSL_CERT / KONG_SSL_CERT_KEY: entry {position} cannot be loaded: {what};"
                " give a readable PEM certificate chain and its unencrypted key"
            ) from error
    return made


def _load(made: ssl.SSLContext, certificate: str, key: str) -> None:
    """The standard library reads files only, so PEM texts take a detour that nobody else can read."""
    with tempfile.TemporaryDirectory(prefix="kongrealip-") as folder:
        paths = []
        for name, pem_or_path in (("certificate", certificate), ("key", key)):
            path = pem_or_path
            if "-----BEGIN" in pem_or_path:
                path = os.path.join(folder, name)
                with open(path, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
                    file.write(pem_or_path)
            elif not os.path.isfile(path):
                raise ValueError(f"no such file: {path}")
            paths.append(path)
        # An empty password instead of a prompt on the terminal for an encrypted key.
        made.load_cert_chain(paths[0], paths[1], password="")


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
