"""A fleet's certificates: `ca.pem`, `server.pem` and `server.key`, made elsewhere.

`uftrace-remote pki issue agent` makes such a folder. Files that are replaced
serve from the next connection on.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from uftrace_agent import certificates
from uftrace_agent.state_directory import StateDirectoryError, TlsFiles

_NAMES = ("ca.pem", "server.pem", "server.key")


class TlsDirectory:
    """The folder. Clients have to show a certificate of its `ca.pem`.

    Raises:
        StateDirectoryError: A file is missing, does not fit or can be read by others.
    """

    clients_need_certificates = True

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tls()
        except OSError as error:
            raise StateDirectoryError(f"{error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise StateDirectoryError(f"the certificates in {path}: {error}") from error

    def certificate_version(self) -> tuple[int, ...]:
        """A value that changes when a file does."""
        states = [(self.path / name).stat() for name in _NAMES]
        return tuple(v for s in states for v in (s.st_ino, s.st_mtime_ns, s.st_size))

    def tls(self) -> TlsFiles:
        """Read certificates and key as they are now.

        Raises:
            StateDirectoryError: The key is not of the certificate, or others can read it.
            OSError: A file cannot be read.
            ValueError: A file is no certificate or key.
        """
        path = self.path / "server.key"
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o077:
                raise StateDirectoryError(
                    f"{path} can be read or changed by others: it must belong to the agent's user "
                    "with mode 0600; if it may have been read, issue a new one"
                )
            key = file.read()
        ca, certificate = ((self.path / name).read_bytes() for name in _NAMES[:2])
        certificates.check_authority(ca)
        if not certificates.fits_key(certificate, key):
            raise StateDirectoryError(f"{self.path}: server.key is not the key of server.pem")
        return TlsFiles(ca=ca, certificate=certificate, key=key)

    def renew(self) -> bool:
        """Nothing is renewed here: the fleet's CA has its key elsewhere."""
        return False
