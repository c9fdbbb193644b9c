"""The tokens of the agent, one a role, reread when their files change."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping

import structlog

from uftrace_agent.state_directory import StateDirectory, StateDirectoryError
from uftrace_agent.trust.roles import Role

_log = structlog.stdlib.get_logger(__name__)


class Tokens:
    """Which role a token has.

    Args:
        state: Whose files they are. A file that is taken away takes its role's
            token with it, from the next call on.
    """

    def __init__(self, state: StateDirectory) -> None:
        self._known: dict[Role, bytes] = {}
        self._versions: Mapping[str, tuple[int, int, int]] = {}
        self._state = state
        self._reread()

    def role_of(self, presented: bytes) -> Role | None:
        """The role of a token, or None where it is none of ours."""
        if self._state.token_versions() != self._versions:
            self._reread()
        found = None
        # Every one is compared, in constant time: how long it takes says
        # neither how much is right nor which one it is.
        for role, token in self._known.items():
            if hmac.compare_digest(presented, token):
                found = role
        return found

    def _reread(self) -> None:
        self._versions = self._state.token_versions()
        self._known = {}
        for role in Role:
            token = _readable(lambda role=role: self._state.token_of(role.word))  # type: ignore[misc]
            if token:
                self._known[role] = token.encode()


def _readable(read: Callable[[], str]) -> str:
    try:
        return read()
    except FileNotFoundError:
        return ""
    except (OSError, StateDirectoryError) as error:
        _log.error("a token is not accepted any more", error=str(error))
        return ""
