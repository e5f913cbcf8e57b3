"""The built-in application, which answers when it has read the whole body."""

from __future__ import annotations

from typing import Any

from kongrealip.cli import whoami


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
    await whoami.app(scope, receive, send)
