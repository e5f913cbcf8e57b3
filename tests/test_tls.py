"""TLS by real handshakes over loopback: suites, versions, several pairs, and what cannot be used."""

from __future__ import annotations

import base64
import datetime
import logging
import os
import socket
import ssl
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519

from kongrealip import Settings
from kongrealip.errors import StartError
from kongrealip.server import suites, tls

PrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)
VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
CIPHER = "ECDHE-RSA-AES128-GCM-SHA256"
OTHER_CIPHER = "ECDHE-RSA-AES256-GCM-SHA384"
INTERMEDIATE = set(
    "ECDHE-ECDSA-AES128-GCM-SHA256 ECDHE-RSA-AES128-GCM-SHA256 ECDHE-ECDSA-AES256-GCM-SHA384"
    " ECDHE-RSA-AES256-GCM-SHA384 ECDHE-ECDSA-CHACHA20-POLY1305 ECDHE-RSA-CHACHA20-POLY1305"
    " DHE-RSA-AES128-GCM-SHA256 DHE-RSA-AES256-GCM-SHA384 DHE-RSA-CHACHA20-POLY1305".split()
)
CBC_AND_RSA = set(
    "ECDHE-ECDSA-AES128-SHA256 ECDHE-RSA-AES128-SHA256 ECDHE-ECDSA-AES128-SHA ECDHE-RSA-AES128-SHA"
    " ECDHE-ECDSA-AES256-SHA384 ECDHE-RSA-AES256-SHA384 ECDHE-ECDSA-AES256-SHA ECDHE-RSA-AES256-SHA"
    " AES128-GCM-SHA256 AES256-GCM-SHA384 AES128-SHA256 AES256-SHA256 AES128-SHA AES256-SHA"
    " DES-CBC3-SHA".split()
)
FIPS = set(
    "ECDHE-ECDSA-AES256-GCM-SHA384 ECDHE-RSA-AES256-GCM-SHA384 ECDHE-ECDSA-AES128-GCM-SHA256"
    " ECDHE-RSA-AES128-GCM-SHA256 ECDHE-ECDSA-AES256-SHA384 ECDHE-RSA-AES256-SHA384"
    " ECDHE-ECDSA-AES128-SHA256 ECDHE-RSA-AES128-SHA256 AES256-GCM-SHA384 AES128-GCM-SHA256"
    " AES256-SHA256 AES128-SHA256 AES256-SHA AES128-SHA".split()
)


class Pair(NamedTuple):
    certificate: str
    key: str


def without_dhe(ciphers: set[str]) -> set[str]:
    return {name for name in ciphers if not name.startswith("DHE-")}


def certificate(public: PrivateKey | x25519.X25519PrivateKey, signed_by: PrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signs_itself = isinstance(signed_by, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    made = (
        x509.CertificateBuilder(subject, subject, public.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(signed_by, None if signs_itself else hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def private(key: PrivateKey | x25519.X25519PrivateKey, password: bytes | None = None) -> str:
    encrypted = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted)
    return pem.decode()


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def pair(name: str) -> Pair:
    """One pair for each name, whose first word is the kind of its key."""
    makers: dict[str, Callable[[], PrivateKey]] = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "weak": lambda: rsa.generate_private_key(65537, 1024),
        "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "ed448": ed448.Ed448PrivateKey.generate,
    }
    key = makers[name.split()[0]]()
    return Pair(certificate(key, key, name), private(key))


def settings(*pairs: Pair, **environ: str) -> Settings:
    """As the operator's variables give them, with the pairs in place."""
    loaded = Settings.load({f"KONG_{key.upper()}": value for key, value in environ.items()})
    certificates, keys = tuple(one.certificate for one in pairs), tuple(one.key for one in pairs)
    return loaded._replace(ssl_cert=certificates, ssl_cert_key=keys)


def served(*pairs: Pair, **environ: str) -> ssl.SSLContext:
    return tls.context(settings(*(pairs or (pair("rsa"), pair("ecdsa"))), **environ))


def client(versions: str = " ".join(VERSIONS), ciphers: str = "ALL", alpn: str = "") -> ssl.SSLContext:
    """A client that takes any certificate, and the oldest versions that OpenSSL has."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    made.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        for version in set(VERSIONS) - set(versions.split()):
            made.options |= getattr(ssl, f"OP_NO_{version.replace('.', '_')}")
    if alpn:
        made.set_alpn_protocols(alpn.split())
    return made


class Shaken(NamedTuple):
    version: str | None
    cipher: str
    alpn: str | None
    #: The common name of the server's certificate.
    name: str


def shake(server: ssl.SSLContext, asking: ssl.SSLContext) -> Shaken | None:
    """What both sides agree on, or None where they do not."""
    with (
        accepting(server) as port,
        suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        asking.wrap_socket(plain) as sock,
    ):
        # With TLSv1.3 the client is through before the server is.
        assert sock.recv(1) == b"."
        name, _, _ = sock.cipher() or ("", "", 0)
        return Shaken(sock.version(), name, sock.selected_alpn_protocol(), common_name(sock))
    return None


def common_name(sock: ssl.SSLSocket) -> str:
    der = sock.getpeercert(binary_form=True)
    assert der is not None
    (name,) = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(name.value)


@contextmanager
def accepting(server: ssl.SSLContext) -> Iterator[int]:
    """The port of a server for one connection: it shakes hands, and sends one byte."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        done = pool.submit(answer_one, listening, server)
        yield listening.getsockname()[1]
        done.result(10)


def answer_one(listening: socket.socket, server: ssl.SSLContext) -> None:
    listening.settimeout(10)
    plain, _ = listening.accept()
    with plain, suppress(ssl.SSLError, ConnectionError):
        plain.settimeout(10)
        with server.wrap_socket(plain, server_side=True) as sock:
            sock.sendall(b".")


def s_client(server: ssl.SSLContext, *arguments: str) -> str:
    """What OpenSSL's own client says, without blanks. It can be told more than Python's."""
    with accepting(server) as port:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    return result.stdout.replace(" ", "")


def versions(server: ssl.SSLContext) -> str:
    shaken = {version: shake(server, client(version)) for version in VERSIONS}
    assert all(found is None or found.version == version for version, found in shaken.items())
    return " ".join(version for version, found in shaken.items() if found)


def ciphers(server: ssl.SSLContext, version: str) -> set[str]:
    """Each cipher that this OpenSSL has, tried by itself."""
    known = {cipher["name"] for cipher in client(ciphers="ALL:COMPLEMENTOFALL").get_ciphers()}
    return {
        name
        for name in known
        if not name.startswith("TLS_") and shake(server, client(version, name)) is not None
    }


def known(names: set[str]) -> set[str]:
    """Without those that this OpenSSL was built without, as DES-CBC3-SHA mostly is."""
    return names & {cipher["name"] for cipher in client(ciphers="ALL").get_ciphers()}


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("modern", "TLSv1.3"),
        ("intermediate", "TLSv1.2 TLSv1.3"),
        ("old", "TLSv1 TLSv1.1 TLSv1.2 TLSv1.3"),
        ("fips", "TLSv1.2"),
    ],
)
def test_versions_of_a_named_suite(suite: str, expected: str) -> None:
    assert versions(served(ssl_cipher_suite=suite)) == expected


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("modern", set()),
        ("intermediate", INTERMEDIATE),
        # Kong gives no DH parameters with these two, and without them DHE is never chosen.
        ("old", without_dhe(INTERMEDIATE) | CBC_AND_RSA),
        ("fips", FIPS),
    ],
)
def test_ciphers_of_a_named_suite(suite: str, expected: set[str]) -> None:
    assert ciphers(served(ssl_cipher_suite=suite), "TLSv1.2") == known(expected)


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1.1"])
@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_the_oldest_versions_with_either_kind_of_key(version: str, kind: str) -> None:
    shaken = shake(served(pair(kind), ssl_cipher_suite="old"), client(version))
    assert shaken is not None
    assert (shaken.version, shaken.name) == (version, kind)


def test_intermediate_is_the_default() -> None:
    server = served()
    assert versions(server) == "TLSv1.2 TLSv1.3"
    assert shake(server, client("TLSv1.2", "ECDHE-RSA-AES128-SHA")) is None


def test_the_group_of_dhe_is_ffdhe2048() -> None:
    answer = s_client(served(), "-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256")
    assert "TempKey:DH,2048bits" in answer


@pytest.mark.parametrize("suite", ["intermediate", "old", "fips"])
def test_who_chooses_the_cipher(suite: str) -> None:
    server = served(ssl_cipher_suite=suite)
    chosen = [
        shake(server, client("TLSv1.2", order))
        for order in (f"{CIPHER}:{OTHER_CIPHER}", f"{OTHER_CIPHER}:{CIPHER}")
    ]
    servers = {"intermediate": None, "old": CIPHER, "fips": OTHER_CIPHER}[suite]
    assert [shaken and shaken.cipher for shaken in chosen] == (
        [servers, servers] if servers else [CIPHER, OTHER_CIPHER]
    )


def test_custom_has_its_ciphers_and_its_protocols_alone() -> None:
    server = served(
        ssl_cipher_suite="custom", ssl_ciphers=f"{OTHER_CIPHER}:{CIPHER}", ssl_protocols="TLSv1.2"
    )
    assert versions(server) == "TLSv1.2"
    assert ciphers(server, "TLSv1.2") == {CIPHER, OTHER_CIPHER}
    shaken = shake(server, client("TLSv1.2", f"{CIPHER}:{OTHER_CIPHER}"))
    assert shaken is not None
    assert shaken.cipher == OTHER_CIPHER, "the server chooses, which is Kong's default"


@pytest.mark.parametrize(
    ("suite", "asked", "expected"),
    [
        ("intermediate", "TLSv1.3", "TLSv1.3"),
        ("intermediate", "TLSv1.1 TLSv1.2 SSLv3", "TLSv1.2"),
        ("modern", "TLSv1.2 TLSv1.3", "TLSv1.3"),
        ("old", "TLSv1.1 TLSv1.2", "TLSv1.1 TLSv1.2"),
        ("old", "TLSv1 TLSv1.2", "TLSv1 TLSv1.2"),
        ("old", "TLSv1.3 TLSv1", "TLSv1 TLSv1.3"),
        ("custom", "TLSv1.1 TLSv1.3", "TLSv1.1 TLSv1.3"),
        ("custom", "SSLv2 SSLv3 TLSv1.2", "TLSv1.2"),
    ],
)
def test_protocols_never_add_to_a_suite_and_may_have_gaps(suite: str, asked: str, expected: str) -> None:
    server = served(ssl_cipher_suite=suite, ssl_protocols=asked, ssl_ciphers="ALL:@SECLEVEL=0")
    assert versions(server) == expected


def test_a_client_with_every_version_gets_the_newest_around_a_gap() -> None:
    server = served(ssl_cipher_suite="old", ssl_protocols="TLSv1 TLSv1.2")
    shaken = shake(server, client())
    assert shaken is not None
    assert shaken.version == "TLSv1.2"


@pytest.mark.parametrize(("http2", "expected"), [(False, "http/1.1"), (True, "h2")])
def test_alpn(http2: bool, expected: str) -> None:
    server = tls.context(settings(pair("rsa")), http2=http2)
    for offered, agreed in (("h2 http/1.1", expected), ("http/1.1", "http/1.1"), ("spdy/1", None)):
        shaken = shake(server, client(alpn=offered))
        assert shaken is not None
        assert shaken.alpn == agreed


# ECDSA first, then RSA, and the other way round: the order means nothing.
@pytest.mark.parametrize("order", [("rsa", "ecdsa"), ("ecdsa", "rsa")])
def test_the_client_decides_which_of_two_kinds_it_gets(order: tuple[str, str]) -> None:
    server = served(*map(pair, order))
    for kind in order:
        shaken = shake(server, client("TLSv1.2", f"ECDHE-{kind.upper()}-AES128-GCM-SHA256"))
        assert shaken is not None
        assert shaken.name == kind
    # With TLSv1.3 it is not the cipher that says so.
    assert "subject=CN=rsa" in s_client(server, "-tls1_3", "-sigalgs", "RSA-PSS+SHA256")
    assert "subject=CN=ecdsa" in s_client(server, "-tls1_3", "-sigalgs", "ECDSA+SHA256")


def test_four_kinds_side_by_side(caplog: pytest.LogCaptureFixture) -> None:
    server = served(*map(pair, ("rsa", "ecdsa", "ed25519", "ed448")))
    assert "subject=CN=ed25519" in s_client(server, "-tls1_3", "-sigalgs", "ed25519")
    assert "subject=CN=ed448" in s_client(server, "-tls1_3", "-sigalgs", "ed448")
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_the_later_of_one_kind_wins_with_a_warning(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    between = {"rsa": "ecdsa", "ecdsa": "rsa"}[kind]
    server = served(pair(f"{kind} first"), pair(between), pair(f"{kind} second"))
    shaken = shake(server, client("TLSv1.2", f"ECDHE-{kind.upper()}-AES128-GCM-SHA256"))
    assert shaken is not None
    assert shaken.name == f"{kind} second"
    assert [record.getMessage() for record in caplog.records] == [
        "KONG_SSL_CERT / KONG_SSL_CERT_KEY: entry 3 replaces entry 1: both keys are"
        f" {kind.upper()}, and one of each kind is served; leave one of them out"
    ]


def test_a_kind_without_a_name_is_served_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """RSA keys for PSS alone, which OpenSSL keeps apart from the common ones."""
    pss = Pair(str(tmp_path / "certificate"), str(tmp_path / "key"))
    command = "openssl req -x509 -newkey rsa-pss -pkeyopt rsa_keygen_bits:2048 -nodes -subj /CN=pss".split()
    subprocess.run([*command, "-out", pss.certificate, "-keyout", pss.key], capture_output=True, check=True)
    answer = s_client(served(pair("rsa"), pss), "-tls1_3", "-sigalgs", "rsa_pss_pss_sha256")
    assert "subject=CN=pss" in answer
    assert caplog.text == ""


def test_files_texts_base64_and_pipes(tmp_path: Path) -> None:
    """Every form that Kong takes, and what a shell makes of <(...)."""
    made = pair("rsa")
    (tmp_path / "certificate").write_text(f"Größe: of no interest\n{made.certificate}", encoding="utf-8")
    (tmp_path / "key").write_text(made.key)
    files = Pair(str(tmp_path / "certificate"), str(tmp_path / "key"))
    encoded = Pair(*(base64.b64encode(text.encode()).decode() for text in made))
    reading, writing = os.pipe()
    os.write(writing, made.key.encode())
    os.close(writing)
    pipe = Pair(files.certificate, f"/proc/self/fd/{reading}")
    for one in (files, made, encoded, pipe):
        loaded = Settings.load({"KONG_SSL_CERT": one.certificate, "KONG_SSL_CERT_KEY": one.key})
        shaken = shake(tls.context(loaded), client())
        assert shaken is not None
        assert shaken.name == "rsa"
    os.close(reading)


def test_a_chain_is_sent_whole() -> None:
    leaf = pair("rsa")
    server = served(Pair(leaf.certificate + pair("ecdsa").certificate, leaf.key))
    assert s_client(server, "-showcerts").count("-----BEGINCERTIFICATE-----") == 2


def test_without_certificates_there_is_a_self_signed_one() -> None:
    shaken = shake(tls.context(Settings()), client())
    assert shaken is not None
    assert shaken.name == "localhost"


def test_no_text_comes_to_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a key stays where it is, and a file system that nothing can be written to will do."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert shake(served(), client()) is not None


def why_not(made: Settings) -> str:
    with pytest.raises(StartError) as caught:
        tls.context(made)
    line = str(caught.value)
    assert "\n" not in line
    return line


BROKEN_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
BROKEN_KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
CERTIFICATE_FIX = "give a PEM certificate chain that begins with the server's own"
KEY_FIX = "give the unencrypted PEM key of the first certificate"
FILE_FIX = "give the path of a PEM file that this user may read, or its text"


def wrong_pairs() -> list[tuple[str, Pair, str]]:
    good, other = pair("rsa"), pair("ecdsa")
    agreement = x25519.X25519PrivateKey.generate()
    no_signer = Pair(certificate(agreement, rsa_key(), "x25519"), private(agreement))
    stronger = "make a pair of 2048-bit RSA or ECDSA, with SHA-256"
    of_another = f"the key in the text belongs to another certificate; {KEY_FIX}"
    no_certificate = f"no whole certificate in the text; {CERTIFICATE_FIX}"
    damaged = f"a certificate in the text is damaged; {CERTIFICATE_FIX}"
    return [
        ("another key", Pair(good.certificate, private(rsa_key())), of_another),
        ("a key of another kind", Pair(good.certificate, other.key), of_another),
        ("the key of another entry", Pair(other.certificate, good.key), of_another),
        (
            "an encrypted key",
            Pair(good.certificate, private(rsa_key(), b"secret")),
            f"the key in the text is encrypted; {KEY_FIX}",
        ),
        ("no file", Pair("/no/file", good.key), f"no such file: /no/file; {FILE_FIX}"),
        ("no key file", Pair(good.certificate, "/no/file"), f"no such file: /no/file; {FILE_FIX}"),
        ("a directory", Pair("/", good.key), f"is a directory: /; {FILE_FIX}"),
        ("no path", Pair("a\0b\nc", good.key), f"embedded null byte: a?b?c; {FILE_FIX}"),
        ("unreadable", Pair("/proc/self/mem", good.key), f"input/output error: /proc/self/mem; {FILE_FIX}"),
        ("not PEM", Pair("/dev/null", good.key), f"no whole certificate in /dev/null; {CERTIFICATE_FIX}"),
        ("half a certificate", Pair(good.certificate[:200], good.key), no_certificate),
        ("swapped", Pair(good.key, good.certificate), no_certificate),
        ("garbage for a certificate", Pair(BROKEN_CERTIFICATE, good.key), damaged),
        ("garbage in the chain", Pair(good.certificate + BROKEN_CERTIFICATE, good.key), damaged),
        (
            "no key",
            Pair(good.certificate, good.certificate),
            f"no private key in the text; {KEY_FIX}",
        ),
        (
            "garbage for a key",
            Pair(good.certificate, BROKEN_KEY),
            f"the key in the text is damaged; {KEY_FIX}",
        ),
        ("a weak key", pair("weak"), f"OpenSSL refuses the text: ee key too small; {stronger}"),
        (
            "a key that cannot sign",
            no_signer,
            f"OpenSSL refuses the text: unknown certificate type; {stronger}",
        ),
    ]


WRONG_PAIRS = wrong_pairs()


@pytest.mark.parametrize(
    ("wrong", "expected"), [case[1:] for case in WRONG_PAIRS], ids=[case[0] for case in WRONG_PAIRS]
)
def test_a_pair_that_cannot_be_used(wrong: Pair, expected: str) -> None:
    line = why_not(settings(pair("rsa"), wrong))
    assert line == f"KONG_SSL_CERT / KONG_SSL_CERT_KEY: entry 2 cannot be loaded: {expected}"


def test_a_pair_in_kong_conf_is_named_by_it() -> None:
    made = Settings.load({"KONG_SSL_CERT": "/no/file"}, "ssl_cert_key = /no/key")
    assert why_not(made).startswith("KONG_SSL_CERT / ssl_cert_key in kong.conf: entry 1 cannot be loaded: ")


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_that_this_user_may_not_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(pair("rsa").key)
    path.chmod(0)
    with nobody():
        line = why_not(settings(Pair(pair("rsa").certificate, str(path))))
    assert f"entry 1 cannot be loaded: permission denied: {tmp_path}/key; {FILE_FIX}" in line


def test_a_damaged_key_is_not_shown() -> None:
    """Without its first line it is taken for a path."""
    key = pair("rsa").key.partition("\n")[2].replace("\n", "")
    line = why_not(settings(Pair(pair("rsa").certificate, key)))
    assert "-----BEGIN" not in key
    assert key[20:-20] not in line
    assert len(line) < 250


def test_old_takes_a_weak_key() -> None:
    shaken = shake(served(pair("weak"), ssl_cipher_suite="old"), client("TLSv1.2"))
    assert shaken is not None
    assert shaken.name == "weak"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"ssl_protocols": "TLSv1.2", "ssl_cipher_suite": "modern"},
            "KONG_SSL_PROTOCOLS: 'TLSv1.2': KONG_SSL_CIPHER_SUITE is modern, which has none of these;"
            " write TLSv1.3, or choose another suite",
        ),
        (
            {"ssl_protocols": "TLSv1 TLSv1.1"},
            "KONG_SSL_PROTOCOLS: 'TLSv1 TLSv1.1': KONG_SSL_CIPHER_SUITE is intermediate, which has none"
            " of these; write TLSv1.2 TLSv1.3, or choose another suite",
        ),
        (
            {"ssl_protocols": "SSLv2 SSLv3"},
            "KONG_SSL_PROTOCOLS: 'SSLv2 SSLv3': none of these can be served, write TLSv1.2 TLSv1.3",
        ),
        (
            {"ssl_cipher_suite": "custom", "ssl_ciphers": "TLS_AES_128_GCM_SHA256"},
            "KONG_SSL_CIPHERS: 'TLS_AES_128_GCM_SHA256': this OpenSSL has none of these; write names"
            " that 'openssl ciphers' prints, joined by colons (TLSv1.3 needs none)",
        ),
        (
            {"ssl_cipher_suite": "custom", "ssl_ciphers": "A\0B"},
            r"KONG_SSL_CIPHERS: 'A\x00B': this OpenSSL has none of these; write names"
            " that 'openssl ciphers' prints, joined by colons (TLSv1.3 needs none)",
        ),
    ],
)
def test_nothing_that_could_be_offered(environ: dict[str, str], expected: str) -> None:
    assert why_not(settings(pair("rsa"), **environ)) == expected


def test_a_named_suite_that_this_openssl_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = suites.Suite(("TLSv1.2",), "no:such", prefer_server_ciphers=True)
    monkeypatch.setitem(suites._SUITES, "fips", missing)
    line = why_not(settings(pair("rsa"), ssl_cipher_suite="fips"))
    assert line.startswith("KONG_SSL_CIPHER_SUITE: 'no:such': this OpenSSL has none of these; ")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"ssl_protocols": "TLSv1.2 TLSv1.3"}, []),
        ({"ssl_cipher_suite": "old"}, []),
        ({"ssl_cipher_suite": "custom", "ssl_ciphers": "HIGH:!aNULL:+kRSA:@STRENGTH"}, []),
        (
            {"ssl_protocols": "TLSv1.2 TLSv1.1 SSLv3"},
            [
                "KONG_SSL_PROTOCOLS: TLSv1.1 SSLv3 not offered with KONG_SSL_CIPHER_SUITE intermediate;"
                " what is left is TLSv1.2"
            ],
        ),
        (
            {"ssl_ciphers": CIPHER},
            ["KONG_SSL_CIPHERS has no effect: KONG_SSL_CIPHER_SUITE is intermediate, not custom"],
        ),
        (
            {"ssl_cipher_suite": "custom", "ssl_ciphers": f"{CIPHER}:typo, TLS_AES_128_GCM_SHA256"},
            [
                "KONG_SSL_CIPHERS: typo TLS_AES_128_GCM_SHA256: this OpenSSL has no such cipher for"
                " TLSv1.2 and older"
            ],
        ),
    ],
)
def test_what_has_no_effect_is_said(
    environ: dict[str, str], expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    served(**environ)
    assert [record.getMessage() for record in caplog.records] == expected
    assert {record.name for record in caplog.records} <= {"kongrealip.server"}
    assert {record.levelno for record in caplog.records} <= {logging.WARNING}


@pytest.mark.parametrize("level", [0, 2])
def test_the_oldest_versions_want_the_lowest_security_level(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In OpenSSL 3. What is said is what happens."""
    server = served(
        ssl_cipher_suite="custom", ssl_ciphers=f"ALL:@SECLEVEL={level}", ssl_protocols="TLSv1 TLSv1.1 TLSv1.3"
    )
    refused = "TLSv1" not in versions(server).split()
    assert refused == (level > 0 and ssl.OPENSSL_VERSION_INFO >= (3,))
    said = (
        "KONG_SSL_PROTOCOLS: TLSv1 TLSv1.1: OpenSSL 3 refuses these at its security level 2;"
        " end KONG_SSL_CIPHERS with :@SECLEVEL=0"
    )
    assert [record.getMessage() for record in caplog.records] == ([said] if refused else [])
