"""Programs that are nobody's balancer behind the relay: PostgreSQL, a mail server, gunicorn."""

from __future__ import annotations

import glob
import hashlib
import os
import pwd
import shutil
import smtplib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.balancers.conftest import Certificates
from tests.relay.conftest import PATIENCE_SECONDS, relaying
from tests.running import CLIENT_IP, LOOPBACK, Program, clean_environ, client, free_port, running, wait_until

Connection = psycopg.Connection[tuple[Any, ...]]

# Some six megabytes in rows of three kilobytes.
ROWS = 2000
TEXTS = [hashlib.md5(str(number).encode()).hexdigest() * 100 for number in range(ROWS)]


def postgres_binary(name: str) -> str:
    # Debian has the server's programs outside of PATH.
    places = [os.environ["PATH"], *glob.glob("/usr/lib/postgresql/*/bin")]
    return shutil.which(name, path=os.pathsep.join(places)) or pytest.skip(f"needs PostgreSQL's {name}")


def as_somebody(folder: Path) -> list[str]:
    """What to write in front of a command, for PostgreSQL refuses to be root; and ``folder`` becomes theirs."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@pytest.fixture(scope="module")
def postgres(certificates: Certificates) -> Iterator[Program]:
    """A new and empty one, with TLS for those who ask for it."""
    initdb, server = postgres_binary("initdb"), postgres_binary("postgres")
    # Not pytest's folder, which is for one user alone.
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        for path in (certificates.server, certificates.server_key):
            Path(shutil.copy(path, folder)).chmod(0o600)
        somebody, data = as_somebody(folder), folder / "data"
        options = ["--no-sync", "--auth=trust", "--username=tests", "--encoding=UTF8", "--no-locale"]
        # Some output is of interest where it fails, and pytest shows it then.
        command = [*somebody, initdb, *options, str(data)]
        subprocess.run(command, cwd=folder, env=clean_environ(), check=True)
        (data / "postgresql.conf").write_text(postgres_settings(folder, port))
        with running([*somebody, server, "-D", data], clean_environ(), [port], folder) as program:
            yield program


def postgres_settings(folder: Path, port: int) -> str:
    return f"""
listen_addresses = '{LOOPBACK}'
port = {port}
unix_socket_directories = ''
fsync = off
ssl = on
ssl_cert_file = '{folder}/server.pem'
ssl_key_file = '{folder}/server_key.pem'
"""


Connect = Callable[..., Connection]


@pytest.fixture(scope="module")
def database(loop: str, postgres: Program) -> Iterator[Connect]:
    """Connects through a relay. PostgreSQL knows nothing of preambles."""
    with relaying(postgres, "off", "--loop", loop) as relay:

        def connect(**options: Any) -> Connection:
            where = f"host={LOOPBACK} port={relay.port} user=tests dbname=postgres connect_timeout=8"
            return psycopg.connect(where, autocommit=True, **options)

        yield connect


def test_result_of_several_megabytes(database: Connect) -> None:
    query = "SELECT repeat(md5(n::text), 100) FROM generate_series(0, %s) n"
    with database() as connection:
        assert [text for (text,) in connection.execute(query, [ROWS - 1])] == TEXTS


def test_copy_of_several_megabytes(database: Connect) -> None:
    with database() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE texts (text text)")
        with cursor.copy("COPY texts FROM STDIN") as copy:
            for text in TEXTS:
                copy.write_row([text])
        with cursor.copy("COPY texts TO STDOUT") as copy:
            assert [text for (text,) in copy.rows()] == TEXTS


def test_many_small_queries(database: Connect) -> None:
    with database() as connection:
        for number in range(200):
            assert connection.execute("SELECT %s::int", [number]).fetchone() == (number,)


def test_database_speaks_when_nobody_asked(database: Connect) -> None:
    with database() as listening, database() as speaking:
        listening.execute("LISTEN news")
        for text in ("one", "two"):
            speaking.execute("SELECT pg_notify('news', %s)", [text])
        notifies = listening.notifies(timeout=PATIENCE_SECONDS, stop_after=2)
        assert [notify.payload for notify in notifies] == ["one", "two"]


def test_query_is_cancelled_by_another_connection(database: Connect) -> None:
    """And the one on which it was asked goes on."""
    with database() as busy, database() as watching, ThreadPoolExecutor() as pool:
        pid = busy.info.backend_pid
        asked = pool.submit(busy.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: is_sleeping(watching, pid), "the query to begin")
        busy.cancel_safe(timeout=PATIENCE_SECONDS)
        with pytest.raises(psycopg.errors.QueryCanceled):
            asked.result()
        assert busy.execute("SELECT 1").fetchone() == (1,)


def is_sleeping(watching: Connection, pid: int) -> bool:
    query = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
    return watching.execute(query, [pid]).fetchone() == ("PgSleep",)


def test_database_hangs_up(database: Connect) -> None:
    with database() as ended, database() as ending:
        ending.execute("SELECT pg_terminate_backend(%s)", [ended.info.backend_pid])
        with pytest.raises(psycopg.errors.AdminShutdown):
            ended.execute("SELECT 1")


def test_tls_begins_in_the_middle(database: Connect, certificates: Certificates) -> None:
    """The client asks for it in clear, and verifies the certificate of the database."""
    with database(sslmode="verify-full", sslrootcert=str(certificates.ca)) as connection:
        row = connection.execute(
            "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ).fetchone()
        assert row == (True, "TLSv1.3")


MAIL_SERVER = """
import asyncio, ssl, sys
from aiosmtpd.smtp import SMTP

port, certificate, key = sys.argv[1:]
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(certificate, key)

class Handler:
    async def handle_PROXY(self, server, session, envelope, proxy_data):
        # The session forgets it when TLS begins.
        self.seen = proxy_data
        return proxy_data.valid

    async def handle_DATA(self, server, session, envelope):
        seen = self.seen
        return f"250 v{seen.version} {seen.src_addr} {seen.src_port} {seen.dst_port} {len(envelope.content)}"

async def main():
    make = lambda: SMTP(Handler(), proxy_protocol_timeout=8, tls_context=tls)
    async with await asyncio.get_running_loop().create_server(make, "127.0.0.1", int(port)) as server:
        await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def mail_server(folder: Path, certificates: Certificates) -> Iterator[Program]:
    path, port = folder / "mail.py", free_port()
    path.write_text(MAIL_SERVER)
    command = [sys.executable, str(path), str(port), str(certificates.server), str(certificates.server_key)]
    with running(command, clean_environ(), [port]) as program:
        yield program


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_mail_server_greets_first(tmp_path: Path, certificates: Certificates, form: str) -> None:
    """But not before it has the preamble, which so has to come without a byte of the client."""
    letter = b"0123456789\r\n" * 100_000
    with (
        mail_server(tmp_path, certificates) as server,
        relaying(server, form) as relay,
        smtplib.SMTP(LOOPBACK, relay.port, "tests", PATIENCE_SECONDS, (CLIENT_IP, 0)) as smtp,
    ):
        smtp.starttls(context=certificates.client_context())
        smtp.ehlo()
        smtp.mail("one@service.test")
        smtp.rcpt("other@service.test")
        assert smtp.sock is not None
        client_port = smtp.sock.getsockname()[1]
        told = f"{form} {CLIENT_IP} {client_port} {relay.port} {len(letter)}"
        assert smtp.data(letter) == (250, told.encode())


FLASK_APP = """
import flask

app = flask.Flask(__name__)

@app.get("/")
def seen():
    environ = flask.request.environ
    return {"remote_addr": flask.request.remote_addr, "remote_port": environ["REMOTE_PORT"]}
"""


@contextmanager
def gunicorn(folder: Path, form: str) -> Iterator[Program]:
    port = free_port()
    (folder / "application.py").write_text(FLASK_APP)
    settings = {
        "bind": f"{LOOPBACK}:{port}", "proxy_protocol": form, "proxy_allow_ips": LOOPBACK,
        "control_socket_disable": True,
    }  # fmt: skip
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    (folder / "gunicorn.conf.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "gunicorn", "application:app"]
    with running(command, clean_environ(), [port], folder) as program:
        yield program


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_flask_behind_gunicorn_sees_the_client(tmp_path: Path, form: str) -> None:
    with gunicorn(tmp_path, form) as server, relaying(server, form) as relay, client(relay.port) as asking:
        seen = asking.get(headers=[("X-Forwarded-For", "203.0.113.66")])
        assert seen == {"remote_addr": CLIENT_IP, "remote_port": str(asking.port)}
