# SPDX-License-Identifier: Apache-2.0
"""The short form of `python -m tests.torture.churn`."""

from __future__ import annotations

import pytest

from tests.torture.churn import HEADER, checkpoints, churning


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_leaks")
def test_attaching_again_and_again_adds_nothing() -> None:
    """Two hundred times attach, patch, unpatch, detach: the process and the agent have as
    many mappings, threads and descriptors, and as much memory, as after the first ones."""
    with churning() as churn:
        print(HEADER)
        for checkpoint in checkpoints(churn, cycles=200, count=2):
            print(checkpoint.row())
        assert churn.records > 0
