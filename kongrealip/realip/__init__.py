"""Who is the client? The decision, and nothing that touches a socket."""

from __future__ import annotations

from kongrealip.realip.connection import CONNECTION_KEY, EXTENSION_KEY, Connection
from kongrealip.realip.networks import KongTrust, TrustedNetworks
from kongrealip.realip.resolve import PeerResolver, Resolution, Rules, resolve

__all__ = [
    "CONNECTION_KEY",
    "EXTENSION_KEY",
    "Connection",
    "KongTrust",
    "PeerResolver",
    "Resolution",
    "Rules",
    "TrustedNetworks",
    "resolve",
]
