"""Which program a process runs, and in which cgroup: what fleets select processes by."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock

from uftrace_agent.symbols.byte_source import FileSource, MalformedElfError
from uftrace_agent.symbols.elf import ElfFile

_Identity = tuple[int, int, int, int]

# A listing asks for every process each time; hosts run some hundred programs.
_REMEMBERED = 4096
_build_ids: OrderedDict[_Identity, str] = OrderedDict()
_lock = Lock()


def build_id(proc: str) -> str:
    """The GNU build id of a process's executable.

    Args:
        proc: Its directory of /proc.

    Returns:
        In hex; empty where the file has none, is damaged, or may not be read.
    """
    try:
        source = FileSource.open(f"{proc}/exe")
    except (OSError, MalformedElfError):
        return ""
    try:
        with _lock:
            known = _build_ids.get(source.identity)
        if known is None:
            known = _read(source)
            with _lock:
                _build_ids[source.identity] = known
                while len(_build_ids) > _REMEMBERED:
                    _build_ids.popitem(last=False)
        return known
    finally:
        source.close()


def cgroup(proc: str) -> str:
    """The cgroup of a process, as the agent's cgroup namespace shows it.

    Args:
        proc: Its directory of /proc.

    Returns:
        A path below the hierarchy's root, such as `/system.slice/nginx.service`:
        of cgroup v2, else of systemd's own v1 hierarchy, else of the first;
        empty where there is none.

    Raises:
        OSError: The process is gone.
    """
    text = Path(proc, "cgroup").read_bytes().decode(errors="replace")
    found = {}
    # cgroups(7): hierarchy-ID:controller-list:path, and the path may hold colons.
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found["v2" if number == "0" and not controllers else controllers] = path
    for name in ("v2", "name=systemd"):
        if name in found:
            return found[name].removesuffix(" (deleted)")
    return next(iter(found.values()), "").removesuffix(" (deleted)")


def _read(source: FileSource) -> str:
    try:
        return ElfFile(source).build_id
    except (OSError, MalformedElfError):
        return ""
