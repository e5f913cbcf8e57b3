"""Who is the client? The decision, and nothing that touches a socket."""

from __future__ import annotations

from kongrealip.realip.belief import ForwardedRules, Request, ResolutionUnderRules
from kongrealip.realip.connection import (
    CONNECTION_KEY,
    EXTENSION_KEY,
    OWN_SCHEME_KEY,
    RECEIVED_KEY,
    TELL_KEY,
    Connection,
)
from kongrealip.realip.forwarded import Forwarded, RequestResolution, with_request
from kongrealip.realip.networks import KongTrust, TrustedNetworks
from kongrealip.realip.resolve import PeerResolver, Resolution, Rules, resolve

__all__ = [
    "CONNECTION_KEY",
    "EXTENSION_KEY",
    "OWN_SCHEME_KEY",
    "RECEIVED_KEY",
    "TELL_KEY",
    "Connection",
    "Forwarded",
    "ForwardedRules",
    "KongTrust",
    "PeerResolver",
    "Request",
    "RequestResolution",
    "Resolution",
    "ResolutionUnderRules",
    "Rules",
    "TrustedNetworks",
    "resolve",
    "with_request",
]
