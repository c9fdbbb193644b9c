"""The closed lists of the API. Numbers are those of the wire; 0 means "not said"."""

from __future__ import annotations

from enum import IntEnum


class Architecture(IntEnum):
    """The instruction set of a host."""

    UNKNOWN = 0
    AMD64 = 1
    ARM64 = 2


class PatchForm(IntEnum):
    """What a tracepoint's site looks like while it is patched."""

    NONE = 0
    SLED = 1
    NOP = 2
    CALL = 3
    PUN = 4
    NEAR = 5
    HOP = 6
    MULTI = 7
    WORD = 8


class PatchWriter(IntEnum):
    """How bytes of running code are changed."""

    NONE = 0
    AUTO = 1
    BYTE = 2
    TRAP = 3
    STOP = 4


class RefusalReason(IntEnum):
    """Why a function is not patched, or only at its entry."""

    NONE = 0
    TOO_SHORT = 1
    SHARED_TEXT = 2
    ANONYMOUS_CODE = 3
    NOT_IN_TEXT = 4
    IFUNC_RESOLVER = 5
    PLT_STUB = 6
    FOREIGN_PATCH = 7
    UNDECODABLE = 8
    UNMOVABLE_INSTRUCTION = 9
    NO_TRAMPOLINE_SPACE = 10
    OVERLAPS_NEIGHBOUR = 11
    RESERVED = 12
    NOT_FOUND = 13
    MODULE_REPLACED = 14
    WRITER_UNSUITABLE = 15
    TABLE_FULL = 16
    RETURNS_TWICE = 17
    READS_RETURN_ADDRESS = 18
    MOVING_STACKS = 19
    SHADOW_STACK = 20
    UNWINDER_NOT_HOOKABLE = 21
    RESTARTABLE_SEQUENCE = 22
    STOP_TIMED_OUT = 23
    PROCESS_GONE = 24
    IRREGULAR_FRAME = 25
    OVER_BUDGET = 26
    # A reason of a newer agent than this client.
    UNKNOWN = 255


class SiteKind(IntEnum):
    """What a compiler left in a function for those who trace it."""

    NONE = 0
    PLAIN = 1
    MCOUNT_CALL = 2
    FENTRY_CALL = 3
    FENTRY_NOP = 4
    PROFILE_CALLS = 5
    PATCHABLE_NOPS = 6
    SLEDS = 7


class PatchStatus(IntEnum):
    """What became of one function of a request."""

    UNKNOWN = 0
    ENABLED = 1
    ALREADY_ENABLED = 2
    REFUSED = 3
    DISABLED = 4
    NOT_ENABLED = 5
    CONFLICT = 6


class RecordKind(IntEnum):
    """What a record says."""

    ENTRY = 1
    EXIT = 2
    ENTRY_ONLY = 3
    TAIL_ENTRY = 4
    # The records after it are of the goroutine that its key names; 0: of the thread.
    STRAND = 6


class LossStage(IntEnum):
    """Where records were lost."""

    UNKNOWN = 0
    RING = 1
    STREAM = 2
    SHARED_RING = 3
    AGENT = 4


class EndReason(IntEnum):
    """Why a stream ended; NONE while it goes on."""

    NONE = 0
    DETACHED = 1
    PROCESS_EXITED = 2
    PROCESS_EXECUTED = 3
    AGENT_SHUTDOWN = 4


class TracepointState(IntEnum):
    """What became of a tracepoint since it was asked for."""

    UNKNOWN = 0
    ENABLED = 1
    THROTTLED = 2


class LimitKind(IntEnum):
    """Which limit a throttled function broke."""

    UNKNOWN = 0
    CPU = 1
    RATE = 2
