"""What an agent answers when a patch is made in two steps: prepare, and commit at a moment."""

from __future__ import annotations

from dataclasses import dataclass

from uftrace_remote.values import PatchResult


@dataclass(frozen=True, slots=True)
class Preparation:
    """A patch of which everything is ready but the change of code.

    Attributes:
        session_id: The session that it is of.
        preparation_id: By which it is committed or aborted.
        ready: Whether there is anything to commit: not where something was refused of
            what is all or nothing.
        plan: What would become of each function: those that are ready are not enabled yet.
    """

    session_id: str
    preparation_id: str
    ready: bool
    plan: PatchResult


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What became of a commit; times on the CLOCK_MONOTONIC of the agent's host.

    Attributes:
        patch: What became of each function.
        at_ns: The moment that was asked for.
        begun_ns: When the change began; 0: it was given up before.
        written_ns: When the code had been changed; 0: it was not.
    """

    patch: PatchResult
    at_ns: int
    begun_ns: int
    written_ns: int

    @property
    def is_written(self) -> bool:
        """Whether the code was changed."""
        return self.written_ns > 0
