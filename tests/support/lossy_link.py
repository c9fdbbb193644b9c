"""A cable between two network interfaces that takes time and loses frames.

    python -m tests.support.lossy_link NAME OTHER_NAME --delay MS --jitter MS --loss PERCENT

Makes the two interfaces (tun(4), kernel Documentation/networking/tuntap.rst), says `ready`,
and carries every Ethernet frame from one to the other, in user space: what netem(8) does, for
kernels built without it. Frames that were given different jitter overtake each other. The
interfaces go with the process.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import time
from typing import Final

_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_LARGEST_FRAME: Final = 65535
# As many as netem holds back by default; what comes then is lost.
_MOST_HELD: Final = 1000


def make_interface(name: str) -> int:
    """A TAP interface; frames are read from and written to the descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


def carry(ends: tuple[int, int], delay: float, jitter: float, loss: float) -> None:
    """Carry frames for ever.

    Args:
        ends: Descriptors of both interfaces.
        delay: Seconds each way.
        jitter: Seconds that it may be more.
        loss: The part that gets lost.
    """
    far = {ends[0]: ends[1], ends[1]: ends[0]}
    held: list[tuple[float, int, int, bytes]] = []
    number = itertools.count()
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    while True:
        wait = max(held[0][0] - time.monotonic(), 0) * 1000 if held else None
        for end, _ in poll.poll(wait):
            try:
                frame = os.read(end, _LARGEST_FRAME)
            except OSError:
                continue  # the interface is down
            if random.random() >= loss and len(held) < _MOST_HELD:
                due = time.monotonic() + delay + random.uniform(0, jitter)
                heapq.heappush(held, (due, next(number), far[end], frame))
        while held and held[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(held)
            try:
                os.write(end, frame)
            except OSError:
                continue  # down, or full: lost


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs=2)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0)
    arguments = parser.parse_args()
    first, second = map(make_interface, arguments.names)
    print("ready", flush=True)
    carry((first, second), arguments.delay / 1000, arguments.jitter / 1000, arguments.loss / 100)


if __name__ == "__main__":
    main()
