"""Where the certificate and the token of an agent are found.

The agent makes `ca.pem` and `token` in its state directory on first start. A
client of the same user on the same host finds them there. For another host
`uftrace-remote login` puts them into `~/.config/uftrace-remote/hosts/HOST_PORT/`.

A fleet with a CA of its own has client certificates instead of tokens: a folder
with `ca.pem`, `client.pem` and `client.key`, as `uftrace-remote pki issue client`
makes it. There the agents' certificates have to name the hosts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
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
        ca_certificate: PEM of the agent's own CA, or the fleet's; None for plaintext.
        token: Bearer token; empty where there is none.
        client_certificate: PEM of this client's certificate, where it has one.
        client_key: And its key.
        server_name: What the agent's certificate has to name; empty for the host
            that is called.
    """

    ca_certificate: bytes | None = None
    token: str = field(default="", repr=False)
    client_certificate: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    server_name: str = CERTIFICATE_NAME


@dataclass(frozen=True, slots=True)
class CredentialOptions:
    """What the user said about credentials.

    Attributes:
        state_directory: The agent's state directory; None looks in the usual places.
        insecure: Plaintext instead of TLS.
        tls_directory: Folder of a client certificate; None looks in the usual places.
    """

    state_directory: Path | None = None
    insecure: bool = False
    tls_directory: Path | None = None


def default_state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The state directory of an agent that this user would start."""
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIRECTORY
    base = environment.get("XDG_STATE_HOME")
    root = Path(base) if base else Path(environment.get("HOME", "/")) / ".local" / "state"
    return root / "uftrace-agent"


def config_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this client keeps what lasts."""
    base = environment.get("XDG_CONFIG_HOME")
    root = Path(base) if base else Path(environment.get("HOME", "/")) / ".config"
    return root / "uftrace-remote"


def host_directory(endpoint: Endpoint, environment: Mapping[str, str] = os.environ) -> Path:
    """Where this client keeps the certificate and the token of one remote agent."""
    return config_directory(environment) / "hosts" / endpoint.directory_name


def fleet_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this client keeps its own certificate, for agents that it has no token of."""
    return config_directory(environment) / "tls"


def find_credentials(
    endpoint: Endpoint,
    options: CredentialOptions,
    environment: Mapping[str, str] = os.environ,
) -> Credentials:
    """Looks up what is needed to talk to an agent.

    Args:
        endpoint: The agent.
        options: What the user said.
        environment: Environment variables (`UFTRACE_STATE_DIR`, `UFTRACE_TLS_DIR`,
            `HOME`, XDG).

    Returns:
        For TCP the CA certificate and the token, or a client certificate; for a
        unix socket or with `insecure` the token alone, where one is found.

    Raises:
        AuthenticationError: TLS is needed and no certificate is found, or a
            file cannot be read.
    """
    places = _places(endpoint, options, environment)
    plaintext = options.insecure or endpoint.is_unix
    named = _named_tls_directory(options, environment)
    if named is not None and not plaintext:
        return _client_certificate(named)
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
    ours = fleet_directory(environment)
    if options.state_directory is None and (ours / "client.pem").exists():
        return _client_certificate(ours)
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


# What an option names comes before what the environment does.
def _named_tls_directory(options: CredentialOptions, environment: Mapping[str, str]) -> Path | None:
    if options.tls_directory is not None:
        return options.tls_directory
    named = environment.get("UFTRACE_TLS_DIR")
    if named and options.state_directory is None and not environment.get("UFTRACE_STATE_DIR"):
        return Path(named)
    return None


def _client_certificate(directory: Path) -> Credentials:
    try:
        key_mode = stat.S_IMODE((directory / "client.key").stat().st_mode)
        ca, certificate, key = (
            _read(directory / name) for name in ("ca.pem", "client.pem", "client.key")
        )
    except OSError as error:
        raise AuthenticationError(
            f"no client certificate in {directory}: {error.filename}: {error.strerror}",
            reason="CREDENTIALS_UNREADABLE"
            if isinstance(error, PermissionError)
            else "CREDENTIALS_MISSING",
            hint="it holds ca.pem, client.pem and client.key, as "
            "`uftrace-remote pki issue client NAME` makes them",
        ) from error
    if key_mode & 0o077:
        raise AuthenticationError(
            f"others can read {directory / 'client.key'}",
            reason="CREDENTIALS_UNSAFE",
            hint="chmod 600 it; if somebody may have read it, issue a new one",
        )
    # Any agent of the fleet has a certificate of this CA: it has to be the right one.
    return Credentials(ca, "", certificate, key, server_name="")


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _nothing_found(
    endpoint: Endpoint, places: list[Path], denied: list[Path]
) -> AuthenticationError:
    if denied:
        return AuthenticationError(
            f"not allowed to read the certificate and token of {endpoint} in {denied[0]}",
            reason="CREDENTIALS_UNREADABLE",
            hint=f"run as the user that runs the agent, or log in: uftrace-remote login {endpoint}",
        )
    looked = ", ".join(str(place) for place in places)
    return AuthenticationError(
        f"no certificate and token for {endpoint} (looked in {looked})",
        reason="CREDENTIALS_MISSING",
        hint=f"log in once: uftrace-remote login {endpoint}; for an agent on this host start it "
        "once or name its directory with --state-dir; "
        "--insecure talks to an agent that was started with --insecure",
    )
