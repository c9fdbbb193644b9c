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
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "arm"
APT = CACHE / "apt"
ARCHIVES = APT / "archives"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = "bookworm"
# Where the host itself is another release, or does not use apt.
MIRRORS = (
    ("http://deb.debian.org/debian", RELEASE),
    ("http://deb.debian.org/debian-security", f"{RELEASE}-security"),
)

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


def download(packages: Sequence[str], *, with_dependencies: bool = False) -> list[Path]:
    """Download packages, or find them where they were downloaded before.

    Args:
        packages: Names, as for ``apt-get install``.
        with_dependencies: Also all that they depend on, down to the C library.

    Returns:
        The ``.deb`` files. The same call has the same result until ``build/arm`` is removed.

    Raises:
        RuntimeError: apt failed; the message has what it said.
    """
    request = json.dumps([sorted(packages), with_dependencies]).encode()
    note = APT / f"request-{hashlib.sha256(request).hexdigest()[:12]}.json"
    with _locked():
        if (known := _noted(note)) is not None:
            return known
        _make_world()
        way = ["install", "--download-only", "--yes"] if with_dependencies else ["download"]
        try:
            found = _fetch([*way, *packages])
        except RuntimeError:
            # The usual cause: lists that name versions which the mirror no longer has.
            _apt_get(["update"])
            found = _fetch([*way, *packages])
        note.write_text(json.dumps([path.name for path in found]))
        return found


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
        _apt_get(["update"])


# The mirror that the host uses is likely the one that can be reached.
def _mirrors() -> Sequence[tuple[str, str]]:
    form = ["--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Component: main"]
    if shutil.which("apt-get") is None:
        raise RuntimeError("no apt-get here: packages for arm64 come from Debian")
    done = subprocess.run(["apt-get", "indextargets", *form], capture_output=True, text=True)
    pairs = {tuple(line.split()) for line in done.stdout.splitlines()}
    used = sorted(pair for pair in pairs if pair[1] in (RELEASE, f"{RELEASE}-security"))
    return used if any(release == RELEASE for _, release in used) else MIRRORS


def _fetch(command: Sequence[str]) -> list[Path]:
    # Lines of the form: 'URI' name size hash. Nothing that is there already is listed, so
    # the question is asked as if nothing were.
    empty = APT / "empty"
    (empty / "partial").mkdir(parents=True, exist_ok=True)
    listing = _apt_get(["-o", f"Dir::Cache::Archives={empty}", "--print-uris", *command], cwd=empty)
    names = [line.split()[1] for line in listing.splitlines() if line.startswith("'")]
    _apt_get(command, cwd=ARCHIVES)
    found = [ARCHIVES / name for name in names]
    if missing := [path.name for path in found if not path.exists()]:
        raise RuntimeError(f"apt-get did not download {', '.join(missing)}")
    return found


def _apt_get(arguments: Sequence[str], cwd: Path = APT) -> str:
    done = subprocess.run(
        ["apt-get", "-qq", *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "APT_CONFIG": str(APT / "apt.conf"),
            "DEBIAN_FRONTEND": "noninteractive",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"apt-get {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout
