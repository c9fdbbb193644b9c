"""Where certificate and token come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uftrace_remote.credentials import (
    SYSTEM_STATE_DIRECTORY,
    CredentialOptions,
    default_state_directory,
    find_credentials,
    host_directory,
)
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import AuthenticationError

REMOTE = Endpoint("web1", 7)
SOCKET = Endpoint("", 0, "/run/a.sock")


def fill(directory: Path, token: str) -> Path:
    directory.mkdir(parents=True)
    (directory / "ca.pem").write_bytes(b"certificate of " + token.encode())
    (directory / "token").write_text(token + "\n")
    return directory


@pytest.fixture
def home(tmp_path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


def test_a_directory_that_is_named_is_the_only_one(tmp_path, home):
    named = fill(tmp_path / "named", "mine")
    fill(host_directory(REMOTE, home), "other")
    found = find_credentials(REMOTE, CredentialOptions(named), home)
    assert (found.ca_certificate, found.token) == (b"certificate of mine", "mine")
    with pytest.raises(AuthenticationError, match="missing") as caught:
        find_credentials(REMOTE, CredentialOptions(tmp_path / "missing"), home)
    assert caught.value.reason == "CREDENTIALS_MISSING"
    assert caught.value.exit_code == 4


def test_the_environment_names_a_directory(tmp_path, home):
    named = fill(tmp_path / "named", "mine")
    environment = {**home, "UFTRACE_STATE_DIR": str(named)}
    assert find_credentials(REMOTE, CredentialOptions(), environment).token == "mine"


def test_another_hosts_token_is_in_the_clients_own_directory(home):
    fill(host_directory(REMOTE, home), "theirs")
    assert find_credentials(REMOTE, CredentialOptions(), home).token == "theirs"
    assert host_directory(REMOTE, home) == Path(home["HOME"]) / (
        ".config/uftrace-remote/hosts/web1_7"
    )


def test_the_state_directory_of_this_host_is_not_for_others(tmp_path, home):
    with pytest.raises(AuthenticationError) as caught:
        find_credentials(REMOTE, CredentialOptions(), home)
    assert str(SYSTEM_STATE_DIRECTORY) not in caught.value.message
    assert "uftrace-remote login web1:7" in caught.value.hint


def test_the_default_follows_the_user(home):
    if os.geteuid() == 0:
        assert default_state_directory(home) == SYSTEM_STATE_DIRECTORY
    else:
        expected = Path(home["HOME"]) / ".local/state/uftrace-agent"
        assert default_state_directory(home) == expected
        moved = {**home, "XDG_STATE_HOME": "/state"}
        assert default_state_directory(moved) == Path("/state/uftrace-agent")


def test_unix_sockets_are_plaintext_with_a_token_where_there_is_one(tmp_path, home):
    named = fill(tmp_path / "named", "mine")
    found = find_credentials(SOCKET, CredentialOptions(named), home)
    assert (found.ca_certificate, found.token) == (None, "mine")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert find_credentials(SOCKET, CredentialOptions(empty), home).token == ""


def test_insecure_needs_nothing(tmp_path, home):
    found = find_credentials(REMOTE, CredentialOptions(insecure=True), home)
    assert (found.ca_certificate, found.token) == (None, "")


def test_a_token_without_a_certificate_is_not_enough(tmp_path, home):
    named = fill(tmp_path / "named", "mine")
    (named / "ca.pem").unlink()
    with pytest.raises(AuthenticationError):
        find_credentials(REMOTE, CredentialOptions(named), home)


def test_a_directory_that_may_not_be_read_is_named(tmp_path, home, monkeypatch):
    # Root may read everything: what the kernel would say to another user.
    named = fill(tmp_path / "named", "mine")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("uftrace_remote.credentials._read", refuse)
    with pytest.raises(AuthenticationError, match="not allowed to read") as caught:
        find_credentials(REMOTE, CredentialOptions(named), home)
    assert caught.value.reason == "CREDENTIALS_UNREADABLE"
    assert str(named) in caught.value.message
