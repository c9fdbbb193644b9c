"""The agent's one error tree.

    AgentError
      InvalidRequestError        the request makes no sense
      NotFoundError              process, session or function is not there
        NoSuchProcessError
        NoSuchSessionError
        NoSuchLeaseError
        NoSuchPreparationError
        NoSuchFunctionError      with near names
      ConflictError              somebody else is in the way
        AlreadyHeldError
        ForeignTracerError
      ForbiddenError             the kernel or a policy does not allow it
      UnsupportedTargetError     this kind of process cannot be traced
      TargetGoneError            the process ended or executed another program
      BusyTargetError            could not be stopped in time; try again
      ExhaustedError             a table or the address space is full
      EngineFaultError           a bug or a kernel surprise; the target is as before

Every error has a stable upper-case ``reason`` for programs, a sentence for
people, and a ``hint`` that says what to do. `rpc/status.py` is the only place
that turns them into gRPC status codes.
"""

from __future__ import annotations

from collections.abc import Mapping


class AgentError(Exception):
    """Base of all errors that the agent answers with.

    Args:
        message: One sentence for people, without a full stop.
        reason: Stable UPPER_SNAKE name for programs; the class's default
            where it is None.
        hint: What the user can do about it.
        metadata: Further facts for programs (`pid`, `suggestions`, ...).
    """

    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        hint: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.hint = hint
        self.metadata = dict(metadata or {})


class InvalidRequestError(AgentError):
    """The request makes no sense."""

    default_reason = "INVALID_REQUEST"


class NotFoundError(AgentError):
    """Something that was named is not there."""

    default_reason = "NOT_FOUND"


class NoSuchProcessError(NotFoundError):
    """No such pid, or the pid belongs to another process by now."""

    default_reason = "NO_SUCH_PROCESS"


class NoSuchSessionError(NotFoundError):
    """No such session on this agent."""

    default_reason = "NO_SUCH_SESSION"


class NoSuchLeaseError(NotFoundError):
    """No such lease in the session."""

    default_reason = "NO_SUCH_LEASE"


class NoSuchPreparationError(NotFoundError):
    """Nothing of that name is prepared in the session."""

    default_reason = "NO_SUCH_PREPARATION"


class NoSuchFunctionError(NotFoundError):
    """A pattern matched no function."""

    default_reason = "NO_SUCH_FUNCTION"


class ConflictError(AgentError):
    """Somebody else is in the way."""

    default_reason = "CONFLICT"


class AlreadyHeldError(ConflictError):
    """Another agent holds the process."""

    default_reason = "HELD_BY_ANOTHER_AGENT"


class ForeignTracerError(ConflictError):
    """A debugger traces the process."""

    default_reason = "TRACED_BY_ANOTHER"


class ForbiddenError(AgentError):
    """The kernel or a policy does not allow it."""

    default_reason = "PERMISSION_DENIED"


class UnsupportedTargetError(AgentError):
    """This kind of process cannot be traced."""

    default_reason = "UNSUPPORTED_PROCESS"


class TargetGoneError(AgentError):
    """The process ended or executed another program."""

    default_reason = "PROCESS_GONE"


class BusyTargetError(AgentError):
    """The target could not be brought to a safe point in time."""

    default_reason = "TARGET_BUSY"


class ExhaustedError(AgentError):
    """A table or the address space is full."""

    default_reason = "RESOURCE_EXHAUSTED"


class EngineFaultError(AgentError):
    """A bug of ours or a surprise by the kernel; the target is as before."""

    default_reason = "ENGINE_FAULT"
