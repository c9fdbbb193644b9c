"""The guest's Python packages: the versions that are installed here, as wheels for aarch64."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from tests.arm.packages import CACHE, ROOT

PYTHON = "3.11"  # Debian 12's
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 34, 36))


def requirements(*more: str) -> list[str]:
    """What the project and the packages ``more`` need, down to the last: ``name==version``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions: dict[str, str] = {}

    def add(requirement: str) -> None:
        match = re.match(r"[\w.-]+", requirement)
        assert match, requirement
        name = re.sub(r"[-_.]+", "-", match[0]).lower()
        # What is not installed is for another platform or for an extra.
        if name in versions or not _is_installed(name):
            return
        versions[name] = metadata.version(name)
        for each in metadata.requires(name) or ():
            if "extra ==" not in each:
                add(each)

    for requirement in (*project["dependencies"], *more):
        add(requirement)
    return sorted(f"{name}=={version}" for name, version in versions.items())


def install(site: Path, *more: str) -> None:
    """Unpack the wheels into the folder ``site``; no code of theirs runs."""
    wanted = requirements(*more)
    wheels = CACHE / f"wheels-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
    if not wheels.exists():
        unfinished = wheels.with_name(".wheels")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"),
                *("--no-deps", "--only-binary=:all:"),
                *("--implementation=cp", f"--python-version={PYTHON}"),
                *(f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")),
                *(f"--platform={platform}" for platform in PLATFORMS),
                *("--dest", str(unfinished), *wanted),
            ],
            check=True,
        )
        unfinished.rename(wheels)
    site.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
