"""The client's real address, decided exactly as Kong decides it, for any Python service."""

from __future__ import annotations

from kongrealip.config import Settings
from kongrealip.errors import KongRealIPError, PreambleError, ResolutionMissingError, SettingsError
from kongrealip.middleware.asgi import RealIPMiddleware, resolution_of
from kongrealip.realip import Resolution

__version__ = "0.1.0"

__all__ = [
    "KongRealIPError",
    "PreambleError",
    "RealIPMiddleware",
    "Resolution",
    "ResolutionMissingError",
    "Settings",
    "SettingsError",
    "resolution_of",
]
