"""Hosts that are none: a network, pids, and if wanted a clock of its own for each.

    with Network(8) as network:
        first = network.hosts[0]
        agent = subprocess.Popen([*first.inside, "uftrace-agent", "--listen", first.address])

Each host is a network namespace on a link of its own to a bridge in this one, with a pid
namespace: what runs there sees nobody else's processes. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.waiting import wait_until

# Of the addresses for private networks (RFC 1918), little used ones.
_NETWORKS = [ipaddress.ip_network(f"10.{second}.0.0/22") for second in range(200, 250)]


@dataclass(frozen=True)
class NamespacedHost:
    """One of them.

    Attributes:
        name: Its network namespace.
        address: Its address on the bridge.
        link: The bridge's end of its link.
        init: The process that keeps its namespaces.
    """

    name: str
    address: str
    link: str
    init: int

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command there, as a child of itself: `inner_pid` has its pid."""
        return (
            *("nsenter", "--target", str(self.init)),
            *("--net", "--mount", "--pid", "--time", "--"),
        )

    def cut(self) -> None:
        """Takes the link down: nothing gets through, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Takes the link up again."""
        _ip("link", "set", self.link, "up")


class Network:
    """A bridge with hosts.

    Args:
        count: How many.
        skews: Seconds by which the monotonic clocks of the first hosts are ahead.

    Attributes:
        address: This side of the bridge.
        hosts: All of them.
    """

    def __init__(self, count: int, skews: tuple[int, ...] = ()) -> None:
        self._count = count
        self._skews = skews
        self._stack = ExitStack()
        self.address = ""
        self.hosts: tuple[NamespacedHost, ...] = ()

    def __enter__(self) -> Network:
        with ExitStack() as stack:
            # Names of links have 15 characters at most.
            tag = f"u{random.randrange(1 << 24):06x}"
            network, bridge = _free_network(), f"{tag}b"
            addresses = network.hosts()
            self.address = str(next(addresses))
            _ip("link", "add", bridge, "type", "bridge")
            stack.callback(_ip, "link", "delete", bridge)
            _ip("address", "add", f"{self.address}/{network.prefixlen}", "dev", bridge)
            _ip("link", "set", bridge, "up")
            hosts = []
            for number in range(self._count):
                skew = self._skews[number] if number < len(self._skews) else 0
                where = f"{next(addresses)}/{network.prefixlen}"
                hosts.append(stack.enter_context(_host(f"{tag}{number}", bridge, where, skew)))
            self.hosts = tuple(hosts)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


@contextlib.contextmanager
def _host(name: str, bridge: str, where: str, skew: int) -> Iterator[NamespacedHost]:
    link = f"{name}v"
    _ip("netns", "add", name)
    with ExitStack() as stack:
        stack.callback(_ip, "netns", "delete", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        stack.callback(subprocess.run, ("ip", "link", "delete", link), capture_output=True)
        _ip("link", "set", link, "master", bridge, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", where, "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _ip("-netns", name, *command)
        clock = ("--time", "--monotonic", str(skew), "--boottime", str(skew))
        keeper = subprocess.Popen(
            [
                *("ip", "netns", "exec", name),
                *("unshare", *clock, "--pid", "--fork", "--mount-proc", "--kill-child"),
                *("sleep", "infinity"),
            ]
        )
        stack.callback(keeper.wait)
        # Everything in a pid namespace ends with its first process.
        stack.callback(keeper.kill)
        init = inner_pid(keeper)
        # Before it has become another program, /proc there is still the old one.
        wait_until(lambda: _command_of(init) == "sleep", timeout=30.0)
        yield NamespacedHost(name, where.partition("/")[0], link, init)


def inner_pid(wrapper: subprocess.Popen[bytes]) -> int:
    """The pid, as seen here, of what `NamespacedHost.inside` runs."""
    children = Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children")
    found: list[int] = []

    def is_there() -> bool:
        assert wrapper.poll() is None, "the command in a namespace ended"
        found[:] = map(int, children.read_text().split())
        return bool(found)

    wait_until(is_there, timeout=30.0)
    return found[0]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def _free_network() -> ipaddress.IPv4Network:
    said = subprocess.run(
        ("ip", "-4", "-oneline", "address"), check=True, capture_output=True, text=True
    ).stdout
    taken = [ipaddress.ip_interface(line.split()[3]).network for line in said.splitlines() if line]
    free = [n for n in _NETWORKS if not any(n.overlaps(each) for each in taken)]
    # At random: somebody else may be looking for one at this moment.
    network = random.choice(free)
    assert isinstance(network, ipaddress.IPv4Network)
    return network


def _ip(*arguments: str) -> None:
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
