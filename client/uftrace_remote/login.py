"""Getting to know an agent: its authority by fingerprint, and a token that it takes."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any

from uftrace_remote.agent import AgentClient
from uftrace_remote.credentials import Credentials
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import (
    AuthenticationError,
    ConnectionFailedError,
    OutputError,
    UsageError,
)
from uftrace_remote.values import AgentInfo

_FINGERPRINT = re.compile(r"(?:sha-?256[:= ])?((?:[0-9a-f]{2}:?){32})\Z", re.IGNORECASE)

# Frames of HTTP/2: length, type 4, flags, stream.
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ACKNOWLEDGED = bytes((0, 0, 0, 4, 1, 0, 0, 0, 0))
_LONGEST_ANSWER = 1 << 14


def parse_fingerprint(text: str) -> str:
    """Read a SHA-256 fingerprint, with or without colons, as `AB:CD:...`.

    Raises:
        UsageError: It is none.
    """
    match = _FINGERPRINT.match(text.strip())
    if match is None:
        raise UsageError(
            f"'{text}' is no SHA-256 fingerprint",
            reason="INVALID_FINGERPRINT",
            hint="it is 32 bytes in hex, as `uftrace-agent credentials` prints it",
        )
    return bytes.fromhex(match[1].replace(":", "")).hex(":").upper()


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate, as `AB:CD:...`: what people compare."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).digest().hex(":").upper()


def fetch_authority(endpoint: Endpoint, timeout: float) -> bytes:
    """Ask an agent for its authority's certificate. Nothing of it is trusted yet.

    Returns:
        PEM, of the last certificate that the agent shows.

    Raises:
        ConnectionFailedError: It cannot be reached, or does not speak TLS.
        AuthenticationError: It wants client certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It is the fingerprint that will be verified, and then the whole chain.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=endpoint.host) as secured,
        ):
            chain = _chain(secured)
            _complete(secured, endpoint)
    except ssl.SSLError as error:
        if "CERTIFICATE_REQUIRED" in (error.reason or ""):
            raise _certificate_wanted(endpoint) from error
        raise ConnectionFailedError(
            f"TLS with {endpoint} failed: {error.reason or error}",
            reason="TLS_FAILED",
            hint="was the agent started with --insecure, or is it no uftrace-agent?",
        ) from error
    except socket.gaierror as error:
        raise ConnectionFailedError(
            f"unknown host in {endpoint}", reason="UNKNOWN_HOST", hint="check the host name"
        ) from error
    except OSError as error:
        raise ConnectionFailedError(
            f"cannot reach the agent at {endpoint}: {error.strerror or error}",
            reason="CONNECTION_REFUSED"
            if isinstance(error, ConnectionRefusedError)
            else "UNAVAILABLE",
            hint="does it listen on all interfaces? uftrace-agent --listen :50051",
        ) from error
    if not chain:
        raise ConnectionFailedError(f"{endpoint} showed no certificate", reason="TLS_FAILED")
    return ssl.DER_cert_to_PEM_cert(chain[-1]).encode()


# In TLS 1.3 a server says only after the handshake that it wants a certificate (gRPC's
# just hangs up), and it may have sent its first bytes before. Who acknowledges settings
# has no such wish (RFC 9113 section 3.4).
def _complete(secured: ssl.SSLSocket, endpoint: Endpoint) -> None:
    secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
    answer = b""
    while _ACKNOWLEDGED not in answer and len(answer) < _LONGEST_ANSWER:
        received = secured.recv(4096)
        if not received:
            raise _certificate_wanted(endpoint)
        answer += received


def _certificate_wanted(endpoint: Endpoint) -> AuthenticationError:
    return AuthenticationError(
        f"the agent at {endpoint} wants a client certificate, not a token",
        reason="CERTIFICATE_REQUIRED",
        hint="name the folder of yours with --tls-dir, or keep it in "
        "~/.config/uftrace-remote/tls; who has the fleet's CA makes one: "
        "uftrace-remote pki issue client NAME",
    )


# SSLSocket.get_unverified_chain() is of Python 3.13; what it calls is older.
def _chain(secured: ssl.SSLSocket) -> list[bytes]:
    public: Any = getattr(secured, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    inner: Any = secured._sslobj  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in inner.get_unverified_chain()]


def check_fingerprint(pem: bytes, expected: str, endpoint: Endpoint) -> None:
    """See that it is the authority that was meant.

    Raises:
        AuthenticationError: It is another one.
    """
    if not hmac.compare_digest(fingerprint(pem), expected):
        raise AuthenticationError(
            f"the agent at {endpoint} has another fingerprint: {fingerprint(pem)}",
            reason="WRONG_FINGERPRINT",
            hint="somebody may be in between, or the agent was set up anew; on its host: "
            "uftrace-agent credentials",
        )


async def try_token(endpoint: Endpoint, ca_pem: bytes, token: str, timeout: float) -> AgentInfo:
    """Make one call with a token, over TLS that trusts this authority alone.

    Raises:
        AuthenticationError: The agent does not take the token.
        UftraceError: It cannot be reached so.
    """
    async with AgentClient(endpoint, Credentials(ca_pem, token), timeout=timeout) as agent:
        return await agent.info()


def store(directory: Path, ca_pem: bytes, token: str) -> None:
    """Keep what was proven, for nobody else to read.

    Args:
        directory: Made where it is missing; `credentials.host_directory`.
        ca_pem: The authority.
        token: The token.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        private_directory(directory)
        # The token last: with an old one, a new authority serves nobody.
        private_file(directory / "ca.pem", ca_pem)
        private_file(directory / "token", token.encode() + b"\n")
    except OSError as error:
        raise OutputError(
            f"cannot write {error.filename or directory}: {error.strerror}"
        ) from error


def private_directory(path: Path) -> None:
    """Make a folder of mode 0700, and those above it that are missing."""
    for missing in reversed([path, *path.parents]):
        with contextlib.suppress(FileExistsError):
            missing.mkdir(mode=0o700)
    path.chmod(0o700)


def private_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a whole file or none."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(unfinished, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    unfinished.rename(path)
