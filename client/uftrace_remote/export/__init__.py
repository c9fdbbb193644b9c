"""Traces in other tools' formats: one file per format, and this registry."""

from __future__ import annotations

from uftrace_remote.export._format import ExportFormat as ExportFormat
from uftrace_remote.export._format import ExportResult as ExportResult
from uftrace_remote.export.chrome import CHROME
from uftrace_remote.export.flamegraph import FLAMEGRAPH
from uftrace_remote.export.uftrace_dir import UFTRACE

FORMATS: dict[str, ExportFormat] = {each.name: each for each in (UFTRACE, CHROME, FLAMEGRAPH)}

__all__ = ["FORMATS", "ExportFormat", "ExportResult"]
