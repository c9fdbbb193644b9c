# SPDX-License-Identifier: Apache-2.0
"""nginx: a master and one worker, which is the process to trace."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ._base import (
    Load,
    Program,
    answers,
    as_user,
    children,
    private_folder,
    python_load,
    running,
    wait_for,
)

BINARY = Path("/usr/sbin/nginx")
CONFIG = """
{user}
daemon off;
master_process on;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    types {{ text/plain txt; }}
    default_type text/plain;
    keepalive_requests 1000;
    gzip_min_length 100;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/files;
        location /gzip/ {{ gzip on; gzip_types text/plain; alias {folder}/files/; }}
        location /fixed {{ return 200 "fixed $arg_n\\n"; }}
        location /proxied/ {{ proxy_pass http://127.0.0.1:{port}/; }}
        location ~ ^/rewritten/(\\d+)$ {{ rewrite ^/rewritten/(\\d+)$ /fixed?n=$1 last; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx() -> Iterator[Program]:
    """Runs nginx on a loopback port; its load is wrk with a check of every body."""
    with private_folder("nginx") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        # nginx takes over a listening socket as in its binary upgrade (the
        # variable NGINX), so the port cannot be lost to anyone between.
        port = listener.getsockname()[1]
        os.set_inheritable(listener.fileno(), True)
        files = folder / "files"
        files.mkdir()
        (files / "small.txt").write_text("small\n")
        (files / "large.txt").write_text("".join(f"line {n}\n" for n in range(4000)))
        config = folder / "nginx.conf"
        user = "user www-data;" if os.geteuid() == 0 else ""
        config.write_text(CONFIG.format(folder=folder, port=port, user=user))
        command = [*as_user("root"), str(BINARY), "-p", str(folder), "-c", str(config)]
        with running(
            [*command, "-e", str(folder / "error.log")],
            folder,
            environment={"NGINX": f"{listener.fileno()};"},
            inherited=[listener.fileno()],
        ) as process:
            listener.close()
            wait_for(
                "nginx", lambda: bool(children(process.pid)) and answers(port), process, folder
            )
            load = python_load("web", f"http://127.0.0.1:{port}")
            worker = children(process.pid)[0]
            yield Program("nginx", worker, BINARY, lambda program: Load(program, load), BINARY)
