"""Debian 12 packages for arm64, on a machine of any architecture.

apt works here in a world of its own below ``build/arm/apt``: settings, lists, cache, and a
status file that says that nothing is installed. The host's dpkg learns of no foreign
architecture, and nothing of arm64 is executed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import urllib.parse
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "arm"
APT = CACHE / "apt"
ARCHIVES = APT / "archives"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = "bookworm"
_SETTINGS = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Dir::State "{apt}";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::SourceList "{apt}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Parts "/dev/null";
Acquire::Languages "none";
// A machine that runs tests may have any clock.
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
"""


def download(
    packages: Sequence[str],
    *,
    with_dependencies: bool = False,
    leave_out: Collection[str] = (),
) -> list[Path]:
    """Download packages, or find them where they were downloaded before.

    Args:
        packages: Names, as for ``apt-get install``.
        with_dependencies: Also all that they depend on, down to the C library.
        leave_out: Dependencies that nobody needs where no package is configured; their own
            dependencies come nevertheless.

    Returns:
        The ``.deb`` files. The same call has the same result until ``build/arm`` is removed.

    Raises:
        RuntimeError: apt failed; the message has what it said.
    """
    request = json.dumps([sorted(packages), with_dependencies, sorted(leave_out)]).encode()
    note = APT / f"request-{hashlib.sha256(request).hexdigest()[:12]}.json"
    with _locked():
        if (known := _noted(note)) is not None:
            return known
        _make_world()
        try:
            found = _fetch(packages, with_dependencies, leave_out)
        except RuntimeError:
            # The usual cause: lists that name versions which the mirror no longer has.
            _apt("get", "update")
            found = _fetch(packages, with_dependencies, leave_out)
        note.write_text(json.dumps([path.name for path in found]))
        return found


def newest_kernel(flavour: str) -> str:
    """Name the package with the kernel that ``linux-image-FLAVOUR`` depends on."""
    with _locked():
        _make_world()
        listing = _apt("cache", "depends", f"linux-image-{flavour}")
    return next(line.split()[-1] for line in listing.splitlines() if "Depends: linux-i" in line)


def unpack(debs: Sequence[Path], root: Path) -> None:
    """Unpack the packages' files below ``root``; no script of theirs runs.

    ``bin``, ``sbin`` and ``lib`` are links into ``usr``, as on an installed Debian.
    """
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as read:
            subprocess.run(
                ["tar", "--extract", "--keep-directory-symlink", "--directory", root],
                stdin=read.stdout,
                check=True,
            )
        if read.returncode != 0:
            raise RuntimeError(f"dpkg-deb could not read {deb}")


@contextmanager
def _locked() -> Iterator[None]:
    # Test runs are parallel; apt's own locks make the second one fail.
    APT.mkdir(parents=True, exist_ok=True)
    with (APT / "lock-of-tests").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _noted(note: Path) -> list[Path] | None:
    if not note.exists():
        return None
    found = [ARCHIVES / name for name in json.loads(note.read_text())]
    return found if all(path.exists() for path in found) else None


def _make_world() -> None:
    for folder in ("lists/partial", "archives/partial"):
        (APT / folder).mkdir(parents=True, exist_ok=True)
    (APT / "status").touch()
    (APT / "apt.conf").write_text(_SETTINGS.format(apt=APT))
    sources = APT / "sources.list"
    if not sources.exists():
        sources.write_text(
            "".join(
                f"deb [arch=arm64 signed-by={KEYRING}] {site} {release} main\n"
                for site, release in _mirrors()
            )
        )
        _apt("get", "update")


# The mirror that the host uses is the one that can be reached.
def _mirrors() -> list[tuple[str, str]]:
    form = ["--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Component: main"]
    done = subprocess.run(
        ["apt-get", "indextargets", *form], capture_output=True, text=True, check=True
    )
    pairs = {tuple(line.split()) for line in done.stdout.splitlines()}
    used = sorted((site, name) for site, name in pairs if name.split("-")[0] == RELEASE)
    if not any(name == RELEASE for _, name in used):
        raise RuntimeError(f"apt here has no source for {RELEASE}, which the guest is made of")
    return used


def _fetch(packages: Sequence[str], dependencies: bool, leave_out: Collection[str]) -> list[Path]:
    # Lines of the form: 'URI' name_version_architecture.deb size hash. What is in the cache
    # is not listed, so the question is asked with an empty one.
    way = ["install", "--download-only"] if dependencies else ["download"]
    empty = APT / "empty"
    (empty / "partial").mkdir(parents=True, exist_ok=True)
    here = ("-o", f"Dir::Cache::Archives={empty}")
    listing = _apt("get", *here, "--print-uris", *way, *packages, folder=empty)
    names = [line.split()[1] for line in listing.splitlines() if line.startswith("'")]
    wanted = [name for name in names if name.split("_")[0] not in leave_out]
    missing = [name for name in wanted if not (ARCHIVES / name).exists()]
    if missing:
        exact = ["=".join(urllib.parse.unquote(name).split("_")[:2]) for name in missing]
        _apt("get", "download", *exact, folder=ARCHIVES)
    return [ARCHIVES / name for name in wanted]


def _apt(tool: str, *arguments: str, folder: Path = APT) -> str:
    done = subprocess.run(
        [f"apt-{tool}", "-qq", *arguments],
        cwd=folder,
        env={**os.environ, "APT_CONFIG": str(APT / "apt.conf")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"apt-{tool} {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout
