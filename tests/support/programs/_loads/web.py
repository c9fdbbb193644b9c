# SPDX-License-Identifier: Apache-2.0
"""Load of nginx: wrk with web.lua, and a client that compares whole bodies."""

from __future__ import annotations

import gzip
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from loadlib import Tally, run

LIMIT, URL = sys.argv[1:3]
LARGE = "".join(f"line {n}\n" for n in range(4000)).encode()


def wrk(tally: Tally, stop: threading.Event) -> None:
    script = Path(__file__).with_suffix(".lua")
    command = ["wrk", "-t2", "-c24", f"-d{LIMIT}s", "--timeout", "15s", "-s", str(script), URL]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    stop.wait()
    process.send_signal(signal.SIGINT)  # it stops and reports
    output, _ = process.communicate(timeout=15)
    match = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (.*)", output)
    if match is None or process.returncode != 0:
        tally.error(f"wrk {process.returncode}: {output}")
        return
    checked, *errors = (int(match[i]) for i in range(1, 8))
    tally.add(checked)
    for name, count in zip(
        ("wrong body", "status", "connect", "read", "write", "timeout"), errors, strict=True
    ):
        if count:
            tally.error(f"wrk {name}: {count} {match[8]}", count)


def compare(tally: Tally, stop: threading.Event) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    number = 0
    while not stop.is_set():
        number += 1
        for path, want in (
            ("/large.txt", LARGE),
            (f"/fixed?n={number}", b"fixed %d\n" % number),
            (f"/rewritten/{number}", b"fixed %d\n" % number),
            ("/proxied/large.txt", LARGE),
        ):
            with opener.open(URL + path, timeout=15) as answer:
                tally.check(path, answer.read(), want)
        request = urllib.request.Request(URL + "/gzip/large.txt")
        request.add_header("Accept-Encoding", "gzip")
        with opener.open(request, timeout=15) as answer:
            tally.check("gzip", gzip.decompress(answer.read()), LARGE)


if __name__ == "__main__":
    run([wrk, compare])
