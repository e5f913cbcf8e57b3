"""Every exception that this package raises on purpose.

::

    KongRealIPError
    ├── SettingsError          the operator's configuration cannot be used (also a ValueError)
    ├── PreambleError          bytes that can never become a PROXY preamble (also a ValueError)
    ├── ResolutionMissingError the middleware did not see this request (also a LookupError)
    └── StartError             the server could not start: import, certificate, bind
"""

from __future__ import annotations


class KongRealIPError(Exception):
    """Base of all errors of this package."""


class SettingsError(KongRealIPError, ValueError):
    """The configuration cannot be used.

    ``problems`` holds one line for each fault, in the order of the settings:
    the variable, the entry, what is wrong with it and how to put it right.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PreambleError(KongRealIPError, ValueError):
    """The bytes received are not, and can never become, a PROXY preamble.

    The text is for the log; ``reason`` is one fixed word for metrics. Those of the parser are
    ``kongrealip.preamble.REASONS``.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class ResolutionMissingError(KongRealIPError, LookupError):
    """``resolution_of`` was given a request that no ``RealIPMiddleware`` has seen."""


class StartError(KongRealIPError):
    """The server could not start. The text is one line that names the cause and the fix."""
