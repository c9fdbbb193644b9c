"""The policy's file, reread when it changes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import structlog

from uftrace_agent.trust.policy import Policy, PolicyError, parse_policy

_log = structlog.stdlib.get_logger(__name__)


class PolicyFile:
    """The rules as they stand now.

    Args:
        path: The file.

    Raises:
        PolicyError: It cannot be read, or is no policy.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._version()
        self._policy = self._read()

    def current(self) -> Policy:
        """The rules. A new version that is broken, or gone, leaves the old one in force."""
        version = self._version()
        if version != self._seen:
            # Not tried again until it changes again: one loud line for each version.
            self._seen = version
            try:
                self._policy = self._read()
            except PolicyError as error:
                _log.error("the policy was NOT reread: the old one holds", error=str(error))
            else:
                _log.warning("policy reread", path=str(self._path), rules=len(self._policy.rules))
        return self._policy

    def _version(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)

    def _read(self) -> Policy:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                text = file.read().decode()
        except OSError as error:
            raise PolicyError(f"{self._path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PolicyError(f"{self._path}: no UTF-8") from error
        if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o022:
            raise PolicyError(
                f"{self._path}: others can change it; it must belong to the agent's user or "
                "root, and be writable for nobody else"
            )
        if not text.strip():
            # An editor that writes over a file empties it first: that must not allow all.
            raise PolicyError(f"{self._path}: it is empty; no rules at all are `[defaults]`")
        try:
            return parse_policy(text)
        except PolicyError as error:
            raise PolicyError(f"{self._path}: {error}") from error
