"""A plugin of pytest for the guest: tests may take as much longer as the processors are slower."""

from __future__ import annotations

import pytest

from tests.support.waiting import SLOWNESS


# First: the plugin for timeouts reads it at the same moment.
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.timeout is None:
        config.option.timeout = SLOWNESS * float(config.getini("timeout"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (marker := item.get_closest_marker("timeout")) and marker.args:
            longer = pytest.mark.timeout(SLOWNESS * marker.args[0])
            item.add_marker(longer, append=False)
