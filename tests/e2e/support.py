"""What end-to-end tests do again and again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.support.architecture import here
from tests.support.waiting import SLOWNESS
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import EndReason, LossStage, PatchStatus, PatchWriter
from uftrace_remote.values import PatchOptions, PatchResult, ProcessRef, RecordingOptions

# Those that this machine has, but `byte`: not every function of a program has a form for that.
WRITERS = here(
    x86_64=(PatchWriter.AUTO, PatchWriter.STOP, PatchWriter.TRAP),
    aarch64=(PatchWriter.AUTO, PatchWriter.STOP),
)
KIND_ENTRY, KIND_EXIT, KIND_ENTRY_ONLY, KIND_TAIL_ENTRY = 1, 2, 3, 4
KIND_STRAND = 6


@dataclass
class Recording:
    """Everything one stream delivered."""

    names: dict[int, str] = field(default_factory=dict)
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    records: int = 0
    lost: dict[tuple[LossStage, int], int] = field(default_factory=dict)
    by_thread: dict[int, list[bytes]] = field(default_factory=dict)
    end: EndReason = EndReason.NONE
    end_detail: str = ""
    sequences: list[int] = field(default_factory=list)
    keep_records: bool = False

    def entries(self, name: str) -> int:
        kinds = (KIND_ENTRY, KIND_ENTRY_ONLY, KIND_TAIL_ENTRY)
        return sum(self.counts[name, kind] for kind in kinds)

    def exits(self, name: str) -> int:
        return self.counts[name, KIND_EXIT]

    @property
    def lost_in_stream(self) -> int:
        """Records that were read too slowly: by this process, which counts in Python."""
        return self.lost.get((LossStage.STREAM, 0), 0)

    @property
    def lost_total(self) -> int:
        return sum(self.lost.values())


class Recorder:
    """Reads a session's stream on a thread until it ends."""

    def __init__(
        self,
        client: SyncAgentClient,
        session_id: str,
        keep: bool = False,
        reconnect_seconds: float = 10.0,
    ) -> None:
        self.recording = Recording(keep_records=keep)
        self._raw: Counter[tuple[int, int]] = Counter()
        self._first = threading.Event()
        self._error: BaseException | None = None
        self._stream = client.stream(
            session_id, include_buffered=True, reconnect_seconds=reconnect_seconds * SLOWNESS
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._first.wait(20 * SLOWNESS), "the stream sent nothing"

    def _run(self) -> None:
        recording = self.recording
        try:
            for batch in self._stream:
                recording.sequences.append(batch.sequence)
                for function in batch.functions:
                    recording.names[function.function_id] = function.linkage_name or function.name
                for thread in batch.threads:
                    words = np.frombuffer(thread.records, "<u8").reshape(-1, 2)[:, 1]
                    keys, counts = np.unique(words & np.uint64(0xFFFFFFF), return_counts=True)
                    for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
                        self._raw[key >> 4, key >> 1 & 7] += count
                    recording.records += len(words)
                    if recording.keep_records:
                        recording.by_thread.setdefault(thread.tid, []).append(thread.records)
                for loss in batch.losses:
                    recording.lost[loss.stage, loss.tid] = loss.records
                if batch.end is not EndReason.NONE:
                    recording.end, recording.end_detail = batch.end, batch.end_detail
                self._first.set()
        except BaseException as error:
            self._error = error
            self._first.set()

    def finish(self) -> Recording:
        """Wait for the stream's end."""
        self._thread.join(60 * SLOWNESS)
        assert not self._thread.is_alive(), "the stream did not end"
        if self._error is not None:
            raise self._error
        for (function_id, kind), count in self._raw.items():
            if kind == KIND_STRAND:
                continue
            self.recording.counts[self.recording.names[function_id], kind] += count
        return self.recording


@contextmanager
def recording(
    client: SyncAgentClient, pid: int, rings: RecordingOptions | None = None, keep: bool = False
) -> Iterator[tuple[str, Recorder]]:
    """Attach and record; detaches at the end, which ends the recording."""
    session_id = client.attach(ProcessRef(pid), recording=rings).session.session_id
    recorder = Recorder(client, session_id, keep)
    try:
        yield session_id, recorder
    except BaseException:
        client.detach(session_id)
        raise


def patch(
    client: SyncAgentClient,
    session_id: str,
    patterns: Sequence[str],
    options: PatchOptions | None = None,
) -> PatchResult:
    """Patch, and insist that something was."""
    result = client.patch(session_id, patterns, options)
    enabled = [each for each in result.results if each.status is PatchStatus.ENABLED]
    assert enabled, [(each.function.name, each.refusal, each.detail) for each in result.results]
    return result


def enabled_names(result: PatchResult) -> set[str]:
    return {
        each.function.linkage_name or each.function.name
        for each in result.results
        if each.status is PatchStatus.ENABLED
    }
