"""The agent's log, as its own process writes it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import structlog
from uftrace_agent.logging_setup import set_up_logging

def fails(token):
    answer = ["word"] * 100_000
    raise ValueError("it went wrong")

set_up_logging(sys.argv[1], "info")
try:
    fails("s3cret-" + "t0ken")
except ValueError as error:
    structlog.stdlib.get_logger("here").error("unexpected error", exc_info=error)
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_error_is_logged_without_the_values_of_variables(log_format: str) -> None:
    """They hold tokens, and answers that take seconds to print."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "it went wrong" in done.stderr
    assert "fails" in done.stderr
    assert "s3cret-t0ken" not in done.stderr
    assert "word" not in done.stderr.replace('["word"]', "")
    assert len(done.stderr) < 4000
    if log_format == "json":
        assert json.loads(done.stderr)["event"] == "unexpected error"
