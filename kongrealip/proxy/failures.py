"""Why an exchange comes to no good end. None of these leaves this room."""

from __future__ import annotations


class RefusalError(Exception):
    """The client gets an answer of ours: a status, and one line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class UpstreamError(RefusalError):
    """The upstream is to blame. ``cause`` is for the log: the client learns no addresses.

    ``upstream`` is its name, "" where that is known from the connection.
    """

    def __init__(self, cause: str, is_timeout: bool = False, upstream: str = "") -> None:
        status, text = (504, "the upstream took too long") if is_timeout else (502, "the upstream failed")
        super().__init__(status, text)
        self.cause = cause
        self.is_timeout = is_timeout
        self.upstream = upstream


class ClientGoneError(Exception):
    """There is nobody to answer."""
