"""Debian's own programs under load: all functions traced, every reply correct."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.e2e.support import enabled_names, patch, recording
from tests.support import programs
from tests.support.architecture import here
from tests.support.programs import Program
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchStatus, PatchWriter
from uftrace_remote.values import PatchOptions

# Where AArch64 is emulated there are three of them, and fewer functions at a time.
CASES = here(
    x86_64=[
        (programs.nginx, "*"),
        (programs.redis, "*"),
        (programs.postgres, "*"),
        (programs.memcached, "*"),
        (programs.cpython, "libpython*!*"),
    ],
    aarch64=[(programs.nginx, "ngx_*"), (programs.redis, "*Command"), (programs.cpython, "*!Py*")],
)
RECORDS = here(x86_64=200_000, aarch64=20_000)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("writer", [PatchWriter.AUTO, PatchWriter.STOP], ids=["auto", "stop"])
@pytest.mark.parametrize(("start", "pattern"), CASES, ids=[case[0].__name__ for case in CASES])
def test_real_program_survives_trace_all_under_load(
    client: SyncAgentClient,
    start: Callable[[], AbstractContextManager[Program]],
    pattern: str,
    writer: PatchWriter,
) -> None:
    # GIVEN a server (or interpreter) under a load that checks every reply
    with start() as program, program.load() as load:
        # WHEN every patchable function of it is traced for a while
        with recording(client, load.pid) as (session_id, recorder):
            result = patch(client, session_id, [pattern], PatchOptions(writer=writer))
            wait_until(lambda: recorder.recording.records > RECORDS, timeout=60)
            client.unpatch(session_id)
            detached = client.detach(session_id)
        seen = recorder.finish()
        # THEN its code is the file's again, nobody traces it, no reply was wrong
        assert_text_unchanged(load.pid)
        assert_not_traced(load.pid)
        report = load.finish()
        assert report.errors == 0, report.detail
        assert report.requests > 0
        assert detached.conflicting_sites == 0
        delivered = seen.records + seen.lost_in_stream
        assert delivered == detached.records_produced - detached.records_lost
        patchable = [r for r in result.results if r.function.size >= 2 and not _is_stub(r)]
        enabled = [r for r in patchable if r.status is PatchStatus.ENABLED]
        assert len(enabled) >= 0.9 * len(patchable)
        assert len(enabled_names(result)) > 300


def _is_stub(result: object) -> bool:
    refusal = getattr(result, "refusal", None)
    return refusal is not None and refusal.name in ("PLT_STUB", "IFUNC_RESOLVER")
