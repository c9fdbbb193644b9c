"""Who calls: the holder of a token, or of a certificate of the fleet's CA.

The token travels as `authorization: Bearer TOKEN`, inside TLS or over a unix
socket that only the agent's user can open.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable

import structlog

from uftrace_agent.rpc.handlers import Context
from uftrace_agent.rpc.status import UnauthenticatedError
from uftrace_agent.trust.client_certificates import read_client_certificate
from uftrace_agent.trust.guess_limiter import GuessLimiter, address_of
from uftrace_agent.trust.roles import ANYONE, Identity
from uftrace_agent.trust.tokens import Tokens

HEADER = "authorization"
SCHEME = b"Bearer "

Authenticate = Callable[[Context], Identity]

_log = structlog.stdlib.get_logger(__name__)


def no_authentication(context: Context) -> Identity:
    """Of an agent that asks nobody who they are."""
    return ANYONE


class Authenticator:
    """Finds out who calls.

    Args:
        tokens: Those that are accepted.
        limiter: Remembers who presented wrong ones.
    """

    def __init__(self, tokens: Tokens, limiter: GuessLimiter) -> None:
        self._tokens = tokens
        self._limiter = limiter

    def __call__(self, context: Context) -> Identity:
        """Who makes this call.

        Raises:
            UnauthenticatedError: It does not prove who it is.
        """
        return _certified(context) or self._token_holder(context)

    def _token_holder(self, context: Context) -> Identity:
        presented = _presented(context)
        if not presented:
            raise UnauthenticatedError(
                "this agent wants a token, and the call carried none",
                reason="MISSING_TOKEN",
                hint="the token is in the file `token` of the agent's state directory; "
                "for another host: uftrace-remote login HOST",
            )
        address, now = address_of(context.peer()), time.monotonic()
        # While it is refused, an address learns nothing about any token.
        if (seconds := self._limiter.refused_for(address, now)) > 0:
            raise UnauthenticatedError(
                f"too many wrong tokens came from {address}",
                reason="TOO_MANY_FAILURES",
                hint=f"try again in {math.ceil(seconds)} s",
                metadata={"retry_after_seconds": str(math.ceil(seconds))},
            )
        role = None
        if presented.startswith(SCHEME):
            role = self._tokens.role_of(presented.removeprefix(SCHEME))
        if role is not None:
            return Identity(f"token:{role.word}", role)
        if seconds := self._limiter.failed(address, now):
            _log.warning("wrong tokens: refused for a while", address=address, seconds=seconds)
        raise UnauthenticatedError(
            "this is not the token of this agent",
            hint="the token is in the file `token` of the agent's state directory; "
            "was the agent set up anew? for another host: uftrace-remote login HOST",
        )


def _certified(context: Context) -> Identity | None:
    (pem, *_) = (context.auth_context() or {}).get("x509_pem_cert", ()) or (b"",)
    if not pem:
        return None
    try:
        certificate = read_client_certificate(pem)
    except ValueError as error:
        raise UnauthenticatedError(
            f"the client's certificate cannot be used: {error}", reason="BAD_CERTIFICATE"
        ) from error
    # TLS looked at the beginning of the connection, which may be long ago.
    if certificate.ends < datetime.datetime.now(datetime.UTC):
        raise UnauthenticatedError(
            f"the client's certificate ended at {certificate.ends:%Y-%m-%d %H:%M:%S} UTC",
            reason="CERTIFICATE_EXPIRED",
            hint="issue a new one: uftrace-remote pki issue client NAME --role ROLE",
        )
    if certificate.role is None:
        return None
    return Identity(f"cert:{certificate.name}", certificate.role)


def _presented(context: Context) -> bytes:
    for key, value in context.invocation_metadata() or ():
        if key == HEADER:
            return value if isinstance(value, bytes) else value.encode()
    return b""
