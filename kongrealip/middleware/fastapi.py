"""The client's address as a FastAPI dependency."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from kongrealip.address import Address
from kongrealip.middleware.scope import resolution_of

__all__ = ["ClientAddress"]


# A coroutine function, because FastAPI calls every other in a thread.
async def _client_address(connection: HTTPConnection) -> Address:
    return resolution_of(connection).client


#: The type of a parameter, as in ``client: ClientAddress``, of HTTP and WebSocket endpoints and of other
#: dependencies. It gets the decided :class:`~kongrealip.address.Address`, with ``ip`` and ``port``; the
#: OpenAPI document does not show it. ResolutionMissingError where no RealIPMiddleware has seen the request.
ClientAddress = Annotated[Address, Depends(_client_address)]
