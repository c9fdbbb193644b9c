"""The client's one error tree, with the exit code each error gives the command line.

    UftraceError                      1
      UsageError                      2   the request makes no sense
      ConnectionFailedError           3   unknown host, refused, TLS, no answer in time
      AuthenticationError             4   no or wrong token
      PermissionDeniedError           4   the kernel or a policy does not allow it
      NotFoundError                   5
        NoSuchProcessError
        NoSuchFunctionError               with near names
        NoSuchSessionError
        NoSuchLeaseError                  it has ended
      ConflictError                   6   somebody else is in the way
      UnsupportedTargetError          7   this kind of process cannot be traced
      TargetGoneError                 8   the process ended or executed another program
      BusyTargetError                 9   could not be stopped in time; try again
      ResourceExhaustedError         10   a table or the address space is full
      StreamBrokenError              11   the agent went away in the middle of a stream
      OutputError                    12   disk full, not writable, not a trace
      PartialFailureError            13   functions were refused and that was not acceptable
      SomeHostsFailedError           14   some hosts of a fleet failed, others did not
      AgentInternalError             70   a bug or a kernel surprise; the target is as before

gRPC errors become these in one place, `_grpc_errors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class UftraceError(Exception):
    """Base of all errors of the client.

    Args:
        message: One sentence for people, without a full stop.
        reason: Stable UPPER_SNAKE name for programs; the class's default
            where it is empty.
        hint: What the user can do about it.

    Attributes:
        exit_code: What `uftrace-remote` exits with.
    """

    default_reason: ClassVar[str] = "ERROR"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, reason: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.hint = hint


class UsageError(UftraceError):
    """The request makes no sense."""

    default_reason = "INVALID_REQUEST"
    exit_code = 2


class ConnectionFailedError(UftraceError):
    """The agent cannot be reached: unknown host, refused, TLS, or no answer in time."""

    default_reason = "UNAVAILABLE"
    exit_code = 3


class AuthenticationError(UftraceError):
    """There is no token for this agent, or the agent does not accept it."""

    default_reason = "UNAUTHENTICATED"
    exit_code = 4


class PermissionDeniedError(UftraceError):
    """The kernel or a policy does not allow it."""

    default_reason = "PERMISSION_DENIED"
    exit_code = 4


class NotFoundError(UftraceError):
    """Something that was named is not there."""

    default_reason = "NOT_FOUND"
    exit_code = 5


class NoSuchProcessError(NotFoundError):
    """No such process, or the pid belongs to another one by now."""

    default_reason = "NO_SUCH_PROCESS"


class NoSuchFunctionError(NotFoundError):
    """A pattern matched no function.

    Attributes:
        suggestions: Names that are near.
    """

    default_reason = "NO_SUCH_FUNCTION"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        hint: str = "",
        suggestions: Sequence[str] = (),
    ) -> None:
        super().__init__(message, reason=reason, hint=hint)
        self.suggestions = tuple(suggestions)


class NoSuchSessionError(NotFoundError):
    """No such session on this agent."""

    default_reason = "NO_SUCH_SESSION"


class NoSuchLeaseError(NotFoundError):
    """No such lease in the session: it has ended."""

    default_reason = "NO_SUCH_LEASE"


class ConflictError(UftraceError):
    """Somebody else is in the way: another agent, a debugger, a foreign patch."""

    default_reason = "CONFLICT"
    exit_code = 6


class UnsupportedTargetError(UftraceError):
    """This kind of process cannot be traced."""

    default_reason = "UNSUPPORTED_PROCESS"
    exit_code = 7


class TargetGoneError(UftraceError):
    """The process ended or executed another program."""

    default_reason = "PROCESS_GONE"
    exit_code = 8


class BusyTargetError(UftraceError):
    """The target could not be brought to a safe point in time; nothing was changed."""

    default_reason = "TARGET_BUSY"
    exit_code = 9


class ResourceExhaustedError(UftraceError):
    """A table, the address space or a quota is full."""

    default_reason = "RESOURCE_EXHAUSTED"
    exit_code = 10


class StreamBrokenError(UftraceError):
    """The agent went away in the middle of a stream and did not come back."""

    default_reason = "STREAM_BROKEN"
    exit_code = 11


class OutputError(UftraceError):
    """A file or directory cannot be written or read: disk full, permission, not a trace."""

    default_reason = "OUTPUT_FAILED"
    exit_code = 12


class PartialFailureError(UftraceError):
    """Functions were refused: one of them with all-or-nothing, or every one."""

    default_reason = "FUNCTIONS_REFUSED"
    exit_code = 13


class SomeHostsFailedError(UftraceError):
    """Some hosts of a fleet failed, others did not."""

    default_reason = "SOME_HOSTS_FAILED"
    exit_code = 14


class AgentInternalError(UftraceError):
    """A bug of the agent or a surprise by the kernel; the target is as before."""

    default_reason = "INTERNAL"
    exit_code = 70
