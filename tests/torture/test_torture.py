# SPDX-License-Identifier: Apache-2.0
"""The short form: some seconds of the same torture for every form and writer.

`python -m tests.torture.run` is the long one.
"""

from __future__ import annotations

import pytest

from tests.torture import table
from tests.torture.cell import Work, run_cell
from tests.torture.forms import BY_NAME, FORMS
from tests.torture.run import THREADS, load_of
from tests.torture.subject import Load
from tests.torture.toggling import Limit

LIMIT = Limit(2000, 0.6)
SITES = 128
GENERATED = [case.name for case in FORMS if case.sites != "compiled"]
COMPILED = [case.name for case in FORMS if case.sites == "compiled"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The same for all: what was found out about a program serves the next test."""
    return Work(LIMIT, seed=1, sites=SITES, index_directory=str(tmp_path_factory.mktemp("index")))


def _assert_good(name: str, load: Load, work: Work) -> None:
    case = BY_NAME[name]
    rows = run_cell(case, case.writers, load, work)
    print(table.head(), *(table.line(row) for row in rows), table.forms(rows), sep="\n")
    for row in rows:
        assert row.is_good, "\n".join(row.failures) or "nothing was done"


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", GENERATED)
def test_sites_change_under_threads_that_execute_them(
    name: str, threads: int, work: Work
) -> None:
    """No wrong result, no crash, no impossible record; text, threads and signal
    handlers as before."""
    _assert_good(name, load_of(threads), work)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("name", COMPILED)
def test_compilers_sites_change_under_threads_that_execute_them(name: str, work: Work) -> None:
    _assert_good(name, load_of(8), work)
