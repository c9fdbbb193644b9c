"""Who may call: everyone who knows the token.

The token travels as `authorization: Bearer TOKEN`, inside TLS or over a unix
socket that only the agent's user can open.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import AsyncIterator

from grpc_health.v1 import health

from uftrace_agent.rpc.handlers import Context, Guard, GuardInterceptor
from uftrace_agent.rpc.status import UnauthenticatedError

HEADER = "authorization"
SCHEME = "Bearer "

# Load balancers and `grpc_health_probe` have no token; health tells nothing.
_OPEN_SERVICES = frozenset({health.SERVICE_NAME})


def token_interceptor(token: str) -> GuardInterceptor:
    """Make the interceptor that lets only calls with `token` pass."""
    return GuardInterceptor(_token_guard(token), _OPEN_SERVICES)


def _token_guard(token: str) -> Guard:
    expected = (SCHEME + token).encode()

    @contextlib.asynccontextmanager
    async def guard(context: Context) -> AsyncIterator[None]:
        presented = _presented(context)
        if not presented:
            raise UnauthenticatedError(
                "this agent wants a token, and the call carried none",
                reason="MISSING_TOKEN",
                hint="the token is in the file `token` of the agent's state directory",
            )
        # Constant time: how long it takes says nothing about how much is right.
        if not hmac.compare_digest(presented, expected):
            raise UnauthenticatedError(
                "this is not the token of this agent",
                hint="the token is in the file `token` of the agent's state directory; "
                "was the agent set up anew?",
            )
        yield

    return guard


def _presented(context: Context) -> bytes:
    for key, value in context.invocation_metadata() or ():
        if key == HEADER:
            return value if isinstance(value, bytes) else value.encode()
    return b""
