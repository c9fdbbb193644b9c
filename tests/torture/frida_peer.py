# SPDX-License-Identifier: Apache-2.0
"""Frida's Interceptor, with callbacks in C; in a process of its own, since a call into a
program that hangs may never come back.

    python -m tests.torture.frida_peer PID      commands on stdin, answers on stdout
"""

from __future__ import annotations

import importlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.torture.places import Place
from tests.torture.subject import Subject

_DEADLINE = 60.0
_SCRIPT = """
const code = new CModule(`
#include <gum/guminterceptor.h>
extern volatile guint64 entered;
extern volatile guint64 left;
void onEnter(GumInvocationContext *context) { entered++; }
void onLeave(GumInvocationContext *context) { left++; }
`, { entered: Memory.alloc(8), left: Memory.alloc(8) });
let addresses = [];
const listeners = new Map();
rpc.exports = {
  places(list) {
    addresses = list.map(text => ptr(text));
    return addresses.length;
  },
  enable(indices) {
    let done = 0;
    for (const index of indices) {
      try {
        const callbacks = { onEnter: code.onEnter, onLeave: code.onLeave };
        listeners.set(index, Interceptor.attach(addresses[index], callbacks));
        done++;
      } catch (error) {
        // Too short a function, or one that it cannot move.
      }
    }
    Interceptor.flush();
    return done;
  },
  disable(indices) {
    let done = 0;
    for (const index of indices) {
      if (!listeners.has(index))
        continue;
      listeners.get(index).detach();
      listeners.delete(index);
      done++;
    }
    Interceptor.flush();
    return done;
  },
};
"""


class _Frida:
    def __init__(self, process: subprocess.Popen[str], places: Sequence[Place]) -> None:
        self._process = process
        self._ask("places", [hex(place.address) for place in places])

    def enable(self, indices: Sequence[int]) -> int:
        return self._ask("enable", list(indices))

    def disable(self, indices: Sequence[int]) -> int:
        return self._ask("disable", list(indices))

    def leave(self) -> None:
        self._ask("leave", [])

    def _ask(self, command: str, values: list[str] | list[int]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, values]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _DEADLINE)
        assert ready, f"Frida gave no answer to {command}"
        answer = self._process.stdout.readline()
        assert answer.startswith("done "), f"Frida: {answer.strip() or 'ended'}"
        return int(answer.removeprefix("done "))


@contextmanager
def frida_peer(subject: Subject, places: Sequence[Place]) -> Iterator[_Frida]:
    """Attach Frida to the program; it is detached when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.torture.frida_peer", str(subject.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        peer = _Frida(process, places)
        yield peer
        peer.leave()
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _serve(pid: int) -> None:
    # No dependency of the project: whoever compares installs it.
    frida: Any = importlib.import_module("frida")
    session = frida.attach(pid)
    script = session.create_script(_SCRIPT)
    script.load()
    for line in sys.stdin:
        command, values = json.loads(line)
        if command == "leave":
            script.unload()
            session.detach()
            result = 0
        else:
            result = getattr(script.exports_sync, command)(values)
        print("done", result, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
