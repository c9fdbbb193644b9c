"""Messages and values: nothing is lost on the way, and numbers agree."""

from __future__ import annotations

import pytest

from tests.support.sessions import WORK
from uftrace.agent.v1 import event_pb2, process_pb2, session_pb2, tracepoint_pb2
from uftrace_agent.engine.model import Form, Refusal, Status, Writer
from uftrace_agent.errors import InvalidRequestError
from uftrace_agent.rpc import convert
from uftrace_agent.session.types import (
    ClockAnchor,
    EventBatch,
    FunctionPlan,
    Loss,
    MappedModule,
    PatchOutcome,
    PatchResult,
    RecordingOptions,
    TracedFunction,
)


@pytest.mark.parametrize(
    ("message_enum", "prefix", "value_enum"),
    [
        (tracepoint_pb2.PatchForm, "PATCH_FORM_", Form),
        (tracepoint_pb2.PatchWriter, "PATCH_WRITER_", Writer),
        (tracepoint_pb2.RefusalReason, "REFUSAL_REASON_", Refusal),
        (tracepoint_pb2.PatchStatus, "PATCH_STATUS_", Status),
    ],
)
def test_enumerations_have_the_same_names_and_numbers(message_enum, prefix, value_enum):
    of_messages = {name.removeprefix(prefix): number for name, number in message_enum.items()}
    of_values = {member.name: member.value for member in value_enum}
    assert of_messages == {"UNSPECIFIED": 0} | of_values


def test_zero_recording_options_take_the_defaults():
    assert convert.recording_options(session_pb2.RecordingOptions()) == RecordingOptions()


def test_recording_options_are_taken_over():
    message = session_pb2.RecordingOptions(ring_bytes=1 << 16, ring_count=3)
    assert convert.recording_options(message) == RecordingOptions(1 << 16, 3)


@pytest.mark.parametrize("pid", [0, -1])
def test_a_process_needs_a_pid(pid):
    with pytest.raises(InvalidRequestError):
        convert.process_id(process_pb2.ProcessRef(pid=pid))


def test_unspecified_writer_is_auto():
    assert convert.writer(tracepoint_pb2.PATCH_WRITER_UNSPECIFIED) is Writer.AUTO


def test_unknown_writer_is_refused():
    message = tracepoint_pb2.PatchRequest(patterns=["f"])
    message.ParseFromString(message.SerializeToString() + bytes([4 << 3, 99]))
    with pytest.raises(InvalidRequestError) as caught:
        convert.patch_order(message, "ann")
    assert caught.value.reason == "WRITER_UNKNOWN"


def test_patch_order_carries_everything():
    order = convert.patch_order(
        tracepoint_pb2.PatchRequest(
            patterns=["a", "b*"],
            writer=tracepoint_pb2.PATCH_WRITER_STOP,
            entry_only=True,
            all_or_nothing=True,
            dry_run=True,
            stop_deadline_nanos=5,
        ),
        "ann",
    )
    assert (order.patterns, order.owner, order.writer) == (("a", "b*"), "ann", Writer.STOP)
    assert (order.entry_only, order.all_or_nothing, order.dry_run) == (True, True, True)
    assert order.stop_deadline_ns == 5


def test_function_plan_without_a_form_shows_its_refusal():
    plan = FunctionPlan(WORK, refusal=Refusal.SHARED_TEXT, detail="mapped shared", enabled=False)
    message = convert.function_info(plan)
    assert message.form == tracepoint_pb2.PATCH_FORM_UNSPECIFIED
    assert message.refusal == tracepoint_pb2.REFUSAL_REASON_SHARED_TEXT
    assert message.function.name == "work"
    assert message.function.linkage_name == "_Z4workv"
    assert list(message.function.aliases) == ["toil"]


def test_patch_response_counts():
    outcome = PatchOutcome(
        [
            PatchResult(WORK, 1, Status.ENABLED, Form.NEAR, Writer.STOP),
            PatchResult(WORK, 2, Status.ALREADY_ENABLED, Form.NEAR, Writer.STOP),
            PatchResult(WORK, 0, Status.REFUSED, refusal=Refusal.TOO_SHORT),
        ]
    )
    message = convert.patch_response(outcome)
    assert (message.enabled_count, message.refused_count, len(message.results)) == (2, 1, 3)
    assert message.results[0].form == tracepoint_pb2.PATCH_FORM_NEAR
    assert message.results[2].refusal == tracepoint_pb2.REFUSAL_REASON_TOO_SHORT


def test_event_batch_survives_the_wire():
    records = bytes(range(32))
    batch = EventBatch(
        sequence=7,
        threads=[(11, "worker", records), (12, "", b"")],
        watermark_ticks=2**63,
        functions=[TracedFunction(1, WORK, True)],
        anchors=[ClockAnchor(1, 2, 3, 2.5e9)],
        losses=[Loss(event_pb2.LOSS_STAGE_RING, 4, 11)],
        records_total=2**40,
        modules=[MappedModule("/bin/app", "ab12", 0x1000, 0x2000, 0x400)],
        end=event_pb2.END_REASON_PROCESS_EXITED,
        end_detail="killed by signal 11",
    )
    sent = convert.events(batch).SerializeToString()
    got = event_pb2.StreamEventsResponse.FromString(sent)
    assert got.sequence == 7
    assert [(t.tid, t.name, t.records) for t in got.threads] == batch.threads
    assert got.watermark_ticks == 2**63
    assert (got.functions[0].function_id, got.functions[0].name) == (1, "work")
    assert got.functions[0].has_exit
    assert got.anchors[0].ticks_per_second == 2.5e9
    assert (got.losses[0].stage, got.losses[0].records, got.losses[0].tid) == (1, 4, 11)
    assert got.records_total == 2**40
    assert got.modules[0].load_bias == 0x400
    assert (got.end, got.end_detail) == (2, "killed by signal 11")
