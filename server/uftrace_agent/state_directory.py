"""The agent's folder: its certificate authority, certificate, token and socket.

    ca.pem, ca.key            made on first start, for ten years
    server.pem, server.key    made on first start; the certificate is renewed
                              when it is about to end or the host's name changed
    token                     what clients prove themselves with, for everything
    token.trace, token.view   the same with fewer rights
    agent.sock                the default unix socket

A client of the same user on the same host reads `ca.pem` and `token` here.
Where there is no `ca.key`, the certificates are somebody's own: they are used
as they are and never renewed.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uftrace_agent import certificates

_TOKEN_BYTES = 32
# By the role that they give.
TOKEN_FILES: Mapping[str, str] = {"admin": "token", "trace": "token.trace", "view": "token.view"}
_PRIVATE_FILES = (*TOKEN_FILES.values(), "ca.key", "server.key")


class StateDirectoryError(Exception):
    """The folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a TLS server needs, as PEM."""

    ca: bytes
    certificate: bytes
    key: bytes


def default_state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where agent and client look when nobody names a folder.

    UFTRACE_STATE_DIR; else /var/lib/uftrace-agent for root; else
    $XDG_STATE_HOME/uftrace-agent, which is ~/.local/state/uftrace-agent.
    """
    if named := environment.get("UFTRACE_STATE_DIR"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/uftrace-agent")
    if state_home := environment.get("XDG_STATE_HOME"):
        return Path(state_home) / "uftrace-agent"
    return Path.home() / ".local" / "state" / "uftrace-agent"


class StateDirectory:
    """The folder, checked and complete.

    Args:
        path: Made where it is missing, with mode 0700.

    Raises:
        StateDirectoryError: Others could read a key or change the folder, or
            it cannot be made or written.
    """

    clients_need_certificates = False

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            self._complete()
        except OSError as error:
            raise StateDirectoryError(
                f"cannot use the state directory {path}: {error.strerror}"
                f"{'' if error.filename in (None, str(path)) else f' ({error.filename})'}; "
                "choose another one with --state-dir"
            ) from error

    @property
    def socket_path(self) -> Path:
        """The default unix socket."""
        return self.path / "agent.sock"

    @property
    def token(self) -> str:
        """What clients prove themselves with, for everything."""
        return self.token_of("admin")

    def token_of(self, role: str) -> str:
        """The token that gives a role: `view`, `trace` or `admin`.

        Raises:
            StateDirectoryError: Others can read it.
            OSError: It cannot be read.
        """
        return self._private(TOKEN_FILES[role]).decode().strip()

    def token_versions(self) -> Mapping[str, tuple[int, int, int]]:
        """A value that changes when a token does, or who may read it."""
        versions = {}
        for role, name in TOKEN_FILES.items():
            with contextlib.suppress(OSError):
                status = (self.path / name).stat()
                versions[role] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return versions

    def renew_token(self, role: str) -> None:
        """Make a new token for a role; a running agent no longer takes the old one.

        Raises:
            OSError: It could not be written; the old one is still there.
        """
        with self._locked():
            self._make_token(TOKEN_FILES[role])

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the CA's certificate, for people to compare."""
        return certificates.fingerprint((self.path / "ca.pem").read_bytes())

    def certificate_version(self) -> tuple[int, ...]:
        """A value that changes when the server's certificate or key does."""
        return (
            (self.path / "server.pem").stat().st_mtime_ns,
            (self.path / "server.key").stat().st_mtime_ns,
        )

    def tls(self) -> TlsFiles:
        """Read certificates and key as they are now.

        Raises:
            StateDirectoryError: The key is not of the certificate, or others
                can read it.
            OSError: A file cannot be read.
        """
        files = TlsFiles(
            ca=(self.path / "ca.pem").read_bytes(),
            certificate=(self.path / "server.pem").read_bytes(),
            key=self._private("server.key"),
        )
        if not certificates.fits_key(files.certificate, files.key):
            raise StateDirectoryError(f"{self.path}: server.key is not the key of server.pem")
        return files

    def renew(self, now: datetime.datetime | None = None) -> bool:
        """Renew the server's certificate if it is about to end.

        Args:
            now: The moment to judge by; the present where it is None.

        Returns:
            Whether there is a new one.

        Raises:
            OSError: It could not be written; the old one is still there.
        """
        with self._locked():
            return self._renew(now or datetime.datetime.now(datetime.UTC))

    # Two agents that start at the same moment must end up with one CA.
    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _check_folder(self) -> None:
        status = self.path.stat()
        if status.st_uid not in (os.geteuid(), 0):
            raise StateDirectoryError(
                f"the state directory {self.path} belongs to user {status.st_uid}, "
                "who could replace its keys; choose another one with --state-dir"
            )
        # Not repaired by force: the user may have named /tmp by mistake.
        if stat.S_IMODE(status.st_mode) & 0o022:
            raise StateDirectoryError(
                f"others can write to the state directory {self.path}; "
                "chmod 700 it, or choose another one with --state-dir"
            )

    def _complete(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        with self._locked():
            for name in TOKEN_FILES.values():
                if not (self.path / name).exists():
                    self._make_token(name)
            # A key is always there before its certificate: a certificate
            # without its key could only have been brought here.
            if not (self.path / "ca.pem").exists():
                if not (self.path / "ca.key").exists():
                    self._write("ca.key", certificates.make_key(), 0o600)
                ca = certificates.make_ca_certificate(self._private("ca.key"), now)
                self._write("ca.pem", ca, 0o644)
            self._renew(now)
            for name in _PRIVATE_FILES:
                if (self.path / name).exists():
                    self._private(name)

    def _make_token(self, name: str) -> None:
        self._write(name, secrets.token_urlsafe(_TOKEN_BYTES).encode() + b"\n", 0o600)

    def _renew(self, now: datetime.datetime) -> bool:
        if not (self.path / "ca.key").exists():
            return False
        if not (self.path / "server.key").exists():
            self._write("server.key", certificates.make_key(), 0o600)
        key, ca = self._private("server.key"), (self.path / "ca.pem").read_bytes()
        names = certificates.server_names()
        current = self.path / "server.pem"
        if current.exists():
            pem = current.read_bytes()
            if certificates.fits_key(pem, key) and certificates.serves(pem, ca, names, now):
                return False
        fresh = certificates.make_server_certificate(key, ca, self._private("ca.key"), names, now)
        self._write("server.pem", fresh, 0o644)
        return True

    def _private(self, name: str) -> bytes:
        path = self.path / name
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o077:
                raise StateDirectoryError(
                    f"{path} can be read or changed by others: it must belong to the agent's "
                    "user with mode 0600; if it may have been read, remove it, and the agent "
                    "makes a new one"
                )
            return file.read()

    # A reader sees a whole file or none, and after a power cut too.
    def _write(self, name: str, content: bytes, mode: int) -> None:
        unfinished = self.path / f".{name}.{os.getpid()}"
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        unfinished.rename(self.path / name)
