# The version of the installed distribution.
from __future__ import annotations

from importlib import metadata


def client_version() -> str:
    """As pyproject.toml says; "0+source" when run from a checkout that is not installed."""
    try:
        return metadata.version("uftrace-remote")
    except metadata.PackageNotFoundError:
        return "0+source"
