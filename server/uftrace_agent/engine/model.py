"""The engine's vocabulary: forms, writers, refusals. Numbers are those of the API."""

from __future__ import annotations

from enum import IntEnum


class Form(IntEnum):
    """What a site looks like while it is patched (DESIGN: forms)."""

    SLED = 1
    NOP = 2
    CALL = 3
    PUN = 4
    NEAR = 5
    HOP = 6
    MULTI = 7
    WORD = 8


class Writer(IntEnum):
    """How bytes of running code are changed."""

    AUTO = 1
    BYTE = 2
    TRAP = 3
    STOP = 4


class SiteKind(IntEnum):
    """What a compiler left in a function for those who trace it."""

    PLAIN = 1
    MCOUNT_CALL = 2
    FENTRY_CALL = 3
    FENTRY_NOP = 4
    PROFILE_CALLS = 5
    PATCHABLE_NOPS = 6
    SLEDS = 7


class Refusal(IntEnum):
    """Why a function is not patched, or (the last block) only at its entry."""

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


class Status(IntEnum):
    """What became of one function of a request."""

    ENABLED = 1
    ALREADY_ENABLED = 2
    REFUSED = 3
    DISABLED = 4
    NOT_ENABLED = 5
    CONFLICT = 6


class RefusedError(Exception):
    """The engine will not patch this; the message tells people why and what to do."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.refusal = refusal
        self.detail = detail
