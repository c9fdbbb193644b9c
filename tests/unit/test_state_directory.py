"""Keys, certificates and token: made once, whole, and for nobody else's eyes."""

from __future__ import annotations

import datetime
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from uftrace_agent import certificates
from uftrace_agent.state_directory import (
    StateDirectory,
    StateDirectoryError,
    default_state_directory,
)

PRIVATE = ("ca.key", "server.key", "token", "token.trace", "token.view")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def state(tmp_path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


def test_first_start_makes_everything(state):
    assert mode(state.path) == 0o700
    assert {path.name for path in state.path.iterdir()} == {*PRIVATE, "ca.pem", "server.pem"}
    assert {mode(state.path / name) for name in PRIVATE} == {0o600}
    assert len(state.token) >= 43


def test_a_private_umask_or_an_open_one_makes_no_difference(tmp_path):
    before = os.umask(0)
    try:
        state = StateDirectory(tmp_path / "state")
    finally:
        os.umask(before)
    assert mode(state.path) == 0o700
    assert {mode(state.path / name) for name in PRIVATE} == {0o600}


def test_second_start_changes_nothing(state):
    before = {path.name: path.read_bytes() for path in state.path.iterdir()}
    StateDirectory(state.path)
    assert {path.name: path.read_bytes() for path in state.path.iterdir()} == before


def test_the_server_certificate_stands_up_to_a_tls_client(state):
    certificate = x509.load_pem_x509_certificate(state.tls().certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "uftrace-agent"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "::1"} <= set(map(str, names.get_values_for_type(x509.IPAddress)))
    for name in ("localhost", "127.0.0.1", "::1", "uftrace-agent"):
        handshake(state, name)


def test_a_name_that_is_not_the_agents_is_refused(state):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(state, "elsewhere.example")


def test_agents_that_start_at_once_share_one_authority(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from uftrace_agent.state_directory import StateDirectory\n"
        "sys.stdin.readline()\n"
        "state = StateDirectory(pathlib.Path(sys.argv[1]))\n"
        "print(state.ca_fingerprint, state.token, state.tls().certificate.hex())\n"
    )
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "state")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in starting:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = {process.communicate(timeout=60)[0] for process in starting}
    assert len(outputs) == 1
    assert outputs != {""}


def test_certificate_is_renewed_30_days_before_its_end(state):
    before = state.tls()
    today = datetime.datetime.now(datetime.UTC)
    assert not state.renew(today + datetime.timedelta(days=334))
    assert state.renew(today + datetime.timedelta(days=336))
    after = state.tls()
    assert after.certificate != before.certificate
    assert (after.key, after.ca) == (before.key, before.ca)


def test_certificate_is_made_anew_when_the_host_has_another_name(state, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "renamed.example")
    assert state.renew()
    handshake(state, "renamed.example")


def test_what_a_crash_left_unfinished_is_completed(state):
    # GIVEN that the first start ended between key and certificate
    (state.path / "ca.pem").unlink()
    (state.path / "server.pem").unlink()
    key = (state.path / "ca.key").read_bytes()
    # THEN the next start goes on from there
    again = StateDirectory(state.path)
    assert (state.path / "ca.key").read_bytes() == key
    handshake(again, "localhost")


def test_a_certificate_of_another_key_is_made_anew(state):
    (state.path / "server.key").unlink()
    again = StateDirectory(state.path)
    handshake(again, "localhost")


def test_certificates_without_their_authoritys_key_are_left_alone(state):
    (state.path / "ca.key").unlink()
    before = state.tls()
    far = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=364)
    assert not StateDirectory(state.path).renew(far)
    assert state.tls() == before


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("bad_mode", [0o640, 0o604, 0o620])
def test_private_files_that_others_reach_are_refused(state, name, bad_mode):
    (state.path / name).chmod(bad_mode)
    with pytest.raises(StateDirectoryError, match=name):
        StateDirectory(state.path)


def test_what_belongs_to_somebody_else_is_refused(state, monkeypatch):
    if os.geteuid() == 0:
        os.chown(state.path / "server.key", 12345, 12345)
    else:  # Only root can give files away: so become somebody else instead.
        monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(StateDirectoryError, match=r"server\.key|belongs to"):
        StateDirectory(state.path)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StateDirectoryError, match="chmod 700"):
        StateDirectory(folder)
    assert list(folder.iterdir()) == []


def test_a_file_in_the_way_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError, match="--state-dir"):
        StateDirectory(tmp_path / "file")


def test_key_that_is_not_of_the_certificate(state):
    (state.path / "server.key").write_bytes(certificates.make_key())
    with pytest.raises(StateDirectoryError, match="not the key"):
        state.tls()


def test_default_folder():
    assert default_state_directory({"UFTRACE_STATE_DIR": "/x"}) == Path("/x")
    if os.geteuid() == 0:
        assert default_state_directory({}) == Path("/var/lib/uftrace-agent")
    else:
        assert default_state_directory({"XDG_STATE_HOME": "/s"}) == Path("/s/uftrace-agent")
        assert default_state_directory({}) == Path.home() / ".local/state/uftrace-agent"


def handshake(state: StateDirectory, name: str) -> None:
    """Do a TLS handshake in memory, with the client trusting the state's CA alone."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(state.path / "server.pem", state.path / "server.key")
    client = ssl.create_default_context(cadata=state.tls().ca.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in list(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)
