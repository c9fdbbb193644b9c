"""Where the certificate and the token of an agent are found.

The agent makes `ca.pem` and `token` in its state directory on first start. A
client of the same user on the same host finds them there. For another host
they are copied once to `~/.config/uftrace-remote/hosts/HOST_PORT/`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import AuthenticationError

SYSTEM_STATE_DIRECTORY = Path("/var/lib/uftrace-agent")

# The agent's certificate always names this, whatever the host is called by
# those who reach it; trust comes from the pinned CA, not from DNS.
CERTIFICATE_NAME = "uftrace-agent"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a channel needs.

    Attributes:
        ca_certificate: PEM of the agent's own CA; None for plaintext.
        token: Bearer token; empty where there is none.
    """

    ca_certificate: bytes | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class CredentialOptions:
    """What the user said about credentials.

    Attributes:
        state_directory: The agent's state directory; None looks in the usual places.
        insecure: Plaintext instead of TLS.
    """

    state_directory: Path | None = None
    insecure: bool = False


def default_state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The state directory of an agent that this user would start."""
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIRECTORY
    base = environment.get("XDG_STATE_HOME")
    root = Path(base) if base else Path(environment.get("HOME", "/")) / ".local" / "state"
    return root / "uftrace-agent"


def host_directory(endpoint: Endpoint, environment: Mapping[str, str] = os.environ) -> Path:
    """Where this client keeps the certificate and the token of one remote agent."""
    base = environment.get("XDG_CONFIG_HOME")
    root = Path(base) if base else Path(environment.get("HOME", "/")) / ".config"
    return root / "uftrace-remote" / "hosts" / endpoint.directory_name


def find_credentials(
    endpoint: Endpoint,
    options: CredentialOptions,
    environment: Mapping[str, str] = os.environ,
) -> Credentials:
    """Looks up what is needed to talk to an agent.

    Args:
        endpoint: The agent.
        options: What the user said.
        environment: Environment variables (`UFTRACE_STATE_DIR`, `HOME`, XDG).

    Returns:
        For TCP the CA certificate and the token; for a unix socket or with
        `insecure` the token alone, where one is found.

    Raises:
        AuthenticationError: TLS is needed and no certificate is found, or a
            file cannot be read.
    """
    places = _places(endpoint, options, environment)
    plaintext = options.insecure or endpoint.is_unix
    denied: list[Path] = []
    for place in places:
        try:
            token = _read(place / "token").decode("ascii", "replace").strip()
            certificate = None if plaintext else _read(place / "ca.pem")
        except PermissionError:
            denied.append(place)
            continue
        except OSError:
            continue
        return Credentials(certificate, token)
    if plaintext:
        return Credentials()
    raise _nothing_found(endpoint, places, denied)


def _places(
    endpoint: Endpoint, options: CredentialOptions, environment: Mapping[str, str]
) -> list[Path]:
    # A directory that was named is the only one: falling back silently to
    # another agent's token would hide a spelling mistake.
    if options.state_directory is not None:
        return [options.state_directory]
    if named := environment.get("UFTRACE_STATE_DIR"):
        return [Path(named)]
    places = [host_directory(endpoint, environment)]
    if endpoint.is_local:
        places += [default_state_directory(environment), SYSTEM_STATE_DIRECTORY]
    return list(dict.fromkeys(places))


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _nothing_found(
    endpoint: Endpoint, places: list[Path], denied: list[Path]
) -> AuthenticationError:
    if denied:
        return AuthenticationError(
            f"not allowed to read the certificate and token of {endpoint} in {denied[0]}",
            reason="CREDENTIALS_UNREADABLE",
            hint="run as the user that runs the agent, or copy ca.pem and token to "
            f"{host_directory(endpoint)}",
        )
    looked = ", ".join(str(place) for place in places)
    return AuthenticationError(
        f"no certificate and token for {endpoint} (looked in {looked})",
        reason="CREDENTIALS_MISSING",
        hint="start the agent once, name its directory with --state-dir, or copy ca.pem and token "
        f"from the agent's state directory to {host_directory(endpoint)}; "
        "--insecure talks to an agent that was started with --insecure",
    )
