"""One line for every change, made or refused: in the log, and in the audit file."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from google.protobuf import json_format
from google.protobuf.message import Message

from uftrace_agent.errors import AgentError
from uftrace_agent.rpc.caller import Caller, present_caller
from uftrace_agent.rpc.handlers import Context
from uftrace_agent.trust.audit import AuditFile

# Clients say here on whose behalf they call. It is shown to others and
# logged; nothing is decided by it.
OWNER_HEADER: Final = "uftrace-owner"
# They name who and what, which have columns of their own.
_TOLD_ELSEWHERE: Final = frozenset(("request_id", "process", "session_id", "owner"))
_MOST_ITEMS: Final = 20
_MOST_CHARACTERS: Final = 200

_log = structlog.stdlib.get_logger("uftrace_agent.audit")


def owner_of(context: Context) -> str:
    """On whose behalf a call is made: what the client says, or its address."""
    for key, value in context.invocation_metadata() or ():
        if key == OWNER_HEADER and isinstance(value, str) and value:
            return value
    return context.peer()


class AuditLine:
    """What is known of a change before its result."""

    def __init__(self, file: AuditFile, facts: dict[str, Any], request: Any) -> None:
        self._file = file
        self._facts = facts
        self._request = request
        self._begun = time.monotonic()

    def done(self) -> None:
        """It is made."""
        _log.info("change", **self._facts, result="OK", seconds=self._seconds())
        self._write({"result": "OK"})

    def failed(self, error: BaseException, *, denied: bool = False) -> None:
        """It is not made."""
        result = {"result": type(error).__name__, "error": _brief(str(error))}
        if isinstance(error, AgentError):
            result["result"] = error.reason
            if rule := error.metadata.get("rule"):
                result["rule"] = rule
        _log.warning("change denied" if denied else "change failed", **self._facts, **result)
        self._write(result)

    def _write(self, result: dict[str, str]) -> None:
        asked = _asked(self._request)
        self._file.write(self._facts | {"asked": asked, "seconds": self._seconds()} | result)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._begun, 6)


class AuditTrail:
    """Begins lines.

    Args:
        file: Where they go beside the log.
    """

    def __init__(self, file: AuditFile) -> None:
        self._file = file

    def line(
        self,
        context: Context,
        request: Any,
        target: str,
        caller: Caller | None = None,
        what: str = "",
    ) -> AuditLine:
        """Begin the line of a change.

        Args:
            context: Of the RPC.
            request: Its message.
            target: What is changed, in words.
            caller: Who makes it; the present caller if None.
            what: The change, where the request's kind does not say it.
        """
        who = caller or present_caller()
        facts: dict[str, Any] = {
            "who": who.identity.name,
            "role": who.identity.role.word,
            "owner": _brief(owner_of(context)),
            "peer": context.peer(),
            "what": what or kind_of(request).lower(),
            "target": target,
            "request_id": _brief(getattr(request, "request_id", "")),
        }
        if who.facts is not None:
            facts["pid"] = who.facts.process.pid
            facts["executable"] = who.facts.executable
            facts["uid"] = who.facts.uid
        return AuditLine(self._file, facts, request)


def kind_of(request: Any) -> str:
    """`Patch` of a `PatchRequest`."""
    return type(request).__name__.removesuffix("Request")


def _asked(request: Any) -> dict[str, Any]:
    if not isinstance(request, Message):
        return {}
    content = type(request)()
    for field, value in request.ListFields():
        if field.name in _TOLD_ELSEWHERE:
            continue
        if isinstance(value, Message):
            getattr(content, field.name).CopyFrom(value)
        elif isinstance(value, bool | int | float | str | bytes):
            setattr(content, field.name, value)
        else:
            getattr(content, field.name).extend(value[:_MOST_ITEMS])
    told: dict[str, Any] = json_format.MessageToDict(content, preserving_proto_field_name=True)
    return {key: _shortened(value) for key, value in told.items()}


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return _brief(value)
    return [_shortened(item) for item in value] if isinstance(value, list) else value


def _brief(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
