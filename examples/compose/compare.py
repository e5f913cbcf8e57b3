"""Ask Kong and this server the same, and show that the answers are equal.

    docker compose --profile kong up --build

runs it from the one address that both trust. From the host, which they do not trust:

    python examples/compose/compare.py 127.0.0.1:8085 127.0.0.1:8086

Needs nothing but Python. Exit code 0 where every answer is equal. The tests run it against two servers
of this project; against Kong it takes an engine, and has not been run in them.
"""

from __future__ import annotations

import http.client
import json
import sys
from typing import Any

Answer = dict[str, Any]
Headers = dict[str, str]

REQUESTS: dict[str, Headers] = {
    "nothing claimed": {},
    "one address": {"X-Forwarded-For": "203.0.113.7"},
    "address and port": {"X-Forwarded-For": "203.0.113.7:51000"},
    "forged in front": {"X-Forwarded-For": "8.8.8.8, 203.0.113.7"},
    "no address": {"X-Forwarded-For": "unknown"},
    "IPv6": {"X-Forwarded-For": "[2001:db8::7]:51000"},
    "another header": {"X-Real-IP": "203.0.113.7"},
    "scheme, host, port": {
        "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example", "X-Forwarded-Port": "8443",
    },
    "path": {"X-Forwarded-Path": "/shop"},
}  # fmt: skip
VIEW = ("scheme", "host", "port", "path")


def ask(server: str, headers: Headers) -> Answer:
    """What a server says of one request, in what both have a word for."""
    connection = http.client.HTTPConnection(server, timeout=10)
    connection.connect()
    try:
        own_port = connection.sock.getsockname()[1]
        connection.request("GET", "/a//b", headers={"Host": "asked.example", **headers})
        said = json.load(connection.getresponse())
    finally:
        connection.close()
    # The two are asked on connections of their own, whose ports differ.
    port = "its own" if said.get("client_port") == own_port else said.get("client_port")
    view = {name: said["forwarded"].get(name) for name in VIEW}
    return {"client": said["client_ip"], "client_port": port or "unknown", "peer": said["peer_ip"], **view}


def in_short(answer: Answer) -> str:
    """The answer as a cell of the table."""
    return "{client}, port {client_port}, {scheme}://{host}:{port}{path}".format(**answer)


def compare(kong: str, ours: str) -> bool:
    """Print a row for each request; whether all answers were equal."""
    rows = [("asked with", kong, ours, "equal")]
    for name, headers in REQUESTS.items():
        theirs, mine = ask(kong, headers), ask(ours, headers)
        rows.append((name, in_short(theirs), in_short(mine), "yes" if theirs == mine else "NO"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return all(row[3] == "yes" for row in rows[1:])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: compare.py KONG:PORT KONGREALIP:PORT")
    sys.exit(0 if compare(sys.argv[1], sys.argv[2]) else 1)
