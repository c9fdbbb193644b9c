# SPDX-License-Identifier: Apache-2.0
"""Functions toggled beside the threads that call them; `tests.torture.words` is the long form."""

from __future__ import annotations

import pytest

from tests.support.architecture import here
from tests.torture.words import toggle

TOGGLES = here(x86_64=2_000, aarch64=25_000)
VARIANTS = here(x86_64=["gcc-O2"], aarch64=["gcc-O2", "pfe2", "bti", "pac"])


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("variant", VARIANTS)
def test_words_change_under_threads_that_execute_them(variant: str) -> None:
    """No wrong result, no crash; after each round the code is as in the file."""
    done = toggle(variant, TOGGLES, threads=4)
    assert done.total >= TOGGLES
    assert done.iterations > 0
