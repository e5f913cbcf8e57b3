"""The client's real address, decided exactly as Kong decides it, for any Python service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kongrealip.config import Settings
from kongrealip.errors import KongRealIPError, PreambleError, ResolutionMissingError, SettingsError
from kongrealip.middleware.asgi import RealIPMiddleware, resolution_of
from kongrealip.realip import Resolution

if TYPE_CHECKING:
    from kongrealip.middleware.current import ClientFilter
else:

    def __getattr__(name: str) -> object:
        """Import what brings logging, and costs each request something, only for who uses it."""
        if name == "ClientFilter":
            from kongrealip.middleware.current import ClientFilter

            return ClientFilter
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "ClientFilter",
    "KongRealIPError",
    "PreambleError",
    "RealIPMiddleware",
    "Resolution",
    "ResolutionMissingError",
    "Settings",
    "SettingsError",
    "resolution_of",
]
