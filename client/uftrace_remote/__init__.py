"""The client of uftrace agents: see any function of any running process, on any host.

`AgentClient` (asyncio) and `SyncAgentClient` drive one agent. Values are plain
frozen dataclasses, errors are `UftraceError`s; no gRPC type comes out.
"""

from __future__ import annotations

from uftrace_remote.agent import AgentClient as AgentClient
from uftrace_remote.credentials import CredentialOptions as CredentialOptions
from uftrace_remote.credentials import Credentials as Credentials
from uftrace_remote.endpoint import Endpoint as Endpoint
from uftrace_remote.enums import Architecture as Architecture
from uftrace_remote.enums import EndReason as EndReason
from uftrace_remote.enums import LimitKind as LimitKind
from uftrace_remote.enums import LossStage as LossStage
from uftrace_remote.enums import PatchForm as PatchForm
from uftrace_remote.enums import PatchStatus as PatchStatus
from uftrace_remote.enums import PatchWriter as PatchWriter
from uftrace_remote.enums import RecordKind as RecordKind
from uftrace_remote.enums import RefusalReason as RefusalReason
from uftrace_remote.enums import TracepointState as TracepointState
from uftrace_remote.errors import AgentInternalError as AgentInternalError
from uftrace_remote.errors import AuthenticationError as AuthenticationError
from uftrace_remote.errors import BusyTargetError as BusyTargetError
from uftrace_remote.errors import ConflictError as ConflictError
from uftrace_remote.errors import ConnectionFailedError as ConnectionFailedError
from uftrace_remote.errors import NoSuchFunctionError as NoSuchFunctionError
from uftrace_remote.errors import NoSuchLeaseError as NoSuchLeaseError
from uftrace_remote.errors import NoSuchProcessError as NoSuchProcessError
from uftrace_remote.errors import NoSuchSessionError as NoSuchSessionError
from uftrace_remote.errors import NotFoundError as NotFoundError
from uftrace_remote.errors import OutputError as OutputError
from uftrace_remote.errors import PartialFailureError as PartialFailureError
from uftrace_remote.errors import PermissionDeniedError as PermissionDeniedError
from uftrace_remote.errors import ResourceExhaustedError as ResourceExhaustedError
from uftrace_remote.errors import SomeHostsFailedError as SomeHostsFailedError
from uftrace_remote.errors import StreamBrokenError as StreamBrokenError
from uftrace_remote.errors import TargetGoneError as TargetGoneError
from uftrace_remote.errors import UftraceError as UftraceError
from uftrace_remote.errors import UnsupportedTargetError as UnsupportedTargetError
from uftrace_remote.errors import UsageError as UsageError
from uftrace_remote.sync import SyncAgentClient as SyncAgentClient
from uftrace_remote.target import ProcessSelector as ProcessSelector
from uftrace_remote.target import Target as Target
from uftrace_remote.values import AgentInfo as AgentInfo
from uftrace_remote.values import AttachResult as AttachResult
from uftrace_remote.values import ClockAnchor as ClockAnchor
from uftrace_remote.values import DetachResult as DetachResult
from uftrace_remote.values import EventBatch as EventBatch
from uftrace_remote.values import Function as Function
from uftrace_remote.values import FunctionInfo as FunctionInfo
from uftrace_remote.values import FunctionResult as FunctionResult
from uftrace_remote.values import Lease as Lease
from uftrace_remote.values import LeaseInfo as LeaseInfo
from uftrace_remote.values import LeaseResult as LeaseResult
from uftrace_remote.values import Limits as Limits
from uftrace_remote.values import LimitsResult as LimitsResult
from uftrace_remote.values import Loss as Loss
from uftrace_remote.values import MappedModule as MappedModule
from uftrace_remote.values import PatchOptions as PatchOptions
from uftrace_remote.values import PatchResult as PatchResult
from uftrace_remote.values import ProbeCost as ProbeCost
from uftrace_remote.values import Process as Process
from uftrace_remote.values import ProcessRef as ProcessRef
from uftrace_remote.values import RecordingOptions as RecordingOptions
from uftrace_remote.values import Session as Session
from uftrace_remote.values import ThreadRecords as ThreadRecords
from uftrace_remote.values import Throttle as Throttle
from uftrace_remote.values import TracedFunction as TracedFunction
from uftrace_remote.values import Tracepoint as Tracepoint
from uftrace_remote.values import UnpatchResult as UnpatchResult

__all__ = [
    "AgentClient",
    "AgentInfo",
    "AgentInternalError",
    "Architecture",
    "AttachResult",
    "AuthenticationError",
    "BusyTargetError",
    "ClockAnchor",
    "ConflictError",
    "ConnectionFailedError",
    "CredentialOptions",
    "Credentials",
    "DetachResult",
    "EndReason",
    "Endpoint",
    "EventBatch",
    "Function",
    "FunctionInfo",
    "FunctionResult",
    "Lease",
    "LeaseInfo",
    "LeaseResult",
    "LimitKind",
    "Limits",
    "LimitsResult",
    "Loss",
    "LossStage",
    "MappedModule",
    "NoSuchFunctionError",
    "NoSuchLeaseError",
    "NoSuchProcessError",
    "NoSuchSessionError",
    "NotFoundError",
    "OutputError",
    "PartialFailureError",
    "PatchForm",
    "PatchOptions",
    "PatchResult",
    "PatchStatus",
    "PatchWriter",
    "PermissionDeniedError",
    "ProbeCost",
    "Process",
    "ProcessRef",
    "ProcessSelector",
    "RecordKind",
    "RecordingOptions",
    "RefusalReason",
    "ResourceExhaustedError",
    "Session",
    "SomeHostsFailedError",
    "StreamBrokenError",
    "SyncAgentClient",
    "Target",
    "TargetGoneError",
    "ThreadRecords",
    "Throttle",
    "TracedFunction",
    "Tracepoint",
    "TracepointState",
    "UftraceError",
    "UnpatchResult",
    "UnsupportedTargetError",
    "UsageError",
]
