"""What did the operator ask for? A mapping and a text in, frozen values out. No files, no sockets."""

from __future__ import annotations

from kongrealip.config.listen import Listen
from kongrealip.config.settings import Settings

__all__ = ["Listen", "Settings"]
