"""Certificates, the event loop, and the servers that most of the tests stand behind."""

from __future__ import annotations

import datetime
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.running import LOOPBACK, TRUST_THE_BALANCER, Program, free_port, serving

SERVER_NAME = "service.test"
CLIENT_NAME = "a client of the tests"
FROM_THE_PREAMBLE = {
    "KONG_REAL_IP_HEADER": "proxy_protocol",
    "KONGREALIP_FORWARDED_HEADERS": "auto",
    **TRUST_THE_BALANCER,
}


class Certificates(NamedTuple):
    """PEM files. ``bundle`` is the server's chain and key in one file, as HAProxy wants them."""

    ca: Path
    server: Path
    server_key: Path
    bundle: Path
    client: Path
    client_key: Path

    def client_context(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        context.set_alpn_protocols(["http/1.1"])
        if with_certificate:
            context.load_cert_chain(self.client, self.client_key)
        return context

    def environ(self) -> dict[str, str]:
        return {"KONG_SSL_CERT": str(self.server), "KONG_SSL_CERT_KEY": str(self.server_key)}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    made = Certificates(*(folder / f"{name}.pem" for name in Certificates._fields))
    ca_key, key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    ca = _certificate("tests", ca_key, None, ca_key)
    made.ca.write_bytes(_pem(ca))
    for name, subject_key, path, key_path in (
        (SERVER_NAME, key, made.server, made.server_key),
        (CLIENT_NAME, client_key, made.client, made.client_key),
    ):
        path.write_bytes(_pem(_certificate(name, subject_key, ca, ca_key)))
        key_path.write_bytes(_key_pem(subject_key))
    made.bundle.write_bytes(made.server.read_bytes() + made.server_key.read_bytes())
    return made


def _certificate(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """Signed by ``issuer``, or by itself where there is none, which makes it the CA."""
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    is_ca = issuer is None
    names = [x509.DNSName(SERVER_NAME), x509.IPAddress(ip_address(LOOPBACK))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        # OpenSSL's strict verification, the default since Python 3.13, wants all of these.
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(_usage(is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if common_name == SERVER_NAME:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    """Every test that takes a server runs on both event loops."""
    name = str(request.param)
    if name == "uvloop":
        pytest.importorskip("uvloop")
    return name


@contextmanager
def served(loop: str, flags: str, environ: dict[str, str], *args: str | Path) -> Iterator[Program]:
    """A server with one listener, whose log pytest shows where the test fails."""
    listen = f"{LOOPBACK}:{free_port()} {flags}"
    with serving({"KONG_PROXY_LISTEN": listen, **environ}, "--loop", loop, *args) as server:
        try:
            yield server
        finally:
            print(server.stderr, file=sys.stderr)


@pytest.fixture
def preamble_server(loop: str) -> Iterator[Program]:
    """Takes the client from the preamble."""
    with served(loop, "proxy_protocol", FROM_THE_PREAMBLE) as server:
        yield server


@pytest.fixture
def tls_preamble_server(loop: str, certificates: Certificates) -> Iterator[Program]:
    """Takes the client from the preamble, and does TLS behind it."""
    with served(loop, "ssl proxy_protocol", FROM_THE_PREAMBLE | certificates.environ()) as server:
        yield server


@pytest.fixture
def forwarded_server(loop: str) -> Iterator[Program]:
    """Takes the client from X-Forwarded-For, recursively."""
    header = {"KONG_REAL_IP_HEADER": "X-Forwarded-For", "KONG_REAL_IP_RECURSIVE": "on"}
    with served(loop, "", TRUST_THE_BALANCER | header) as server:
        yield server


@pytest.fixture
def x_real_ip_server(loop: str) -> Iterator[Program]:
    """Takes the client from X-Real-IP, as Kong does unless it is told otherwise."""
    with served(loop, "", TRUST_THE_BALANCER) as server:
        yield server
