"""A fleet's certificate authority: one folder, no server.

    ca.pem, ca.key                            made by `init`
    agents/NAME/ca.pem server.pem server.key  for an agent's --tls-dir
    clients/NAME/ca.pem client.pem client.key for a client's --tls-dir

A client's role is the URI `uftrace:role:ROLE` in its certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from uftrace_remote.errors import ConflictError, OutputError, UsageError
from uftrace_remote.login import private_directory, private_file

ROLES = ("view", "trace", "admin")
CA_DAYS, AGENT_DAYS, CLIENT_DAYS = 3650, 365, 90

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}\Z")
_HERE = ("localhost", "127.0.0.1", "::1")
# Hosts whose clock is behind must not find a certificate "not yet valid".
_CLOCK_TOLERANCE = datetime.timedelta(days=1)


def init(directory: Path, *, days: int = CA_DAYS) -> Path:
    """Make the authority.

    Returns:
        The file of its certificate.

    Raises:
        ConflictError: There is one already.
        OutputError: It cannot be written.
    """
    if (directory / "ca.key").exists() or (directory / "ca.pem").exists():
        raise ConflictError(
            f"there is an authority in {directory}",
            reason="CA_EXISTS",
            hint="every certificate is of it: keep it, or name another folder with --dir",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("fleet CA")
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        _builder(name, name, key, now, now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(directory, {"ca.key": _key_pem(key), "ca.pem": certificate.public_bytes(Encoding.PEM)})
    return directory / "ca.pem"


def issue_agent(
    directory: Path,
    name: str,
    hosts: Sequence[str] = (),
    *,
    days: int = AGENT_DAYS,
    now: datetime.datetime | None = None,
) -> Path:
    """Make an agent's key and certificate.

    Args:
        directory: The authority's folder.
        name: The agent, mostly its host name.
        hosts: Further names and addresses that clients reach it under.
        days: How long it is valid.
        now: From when; the present if None.

    Returns:
        The folder, for the agent's `--tls-dir`.

    Raises:
        UsageError: A name is none, or there is no authority.
        OutputError: It cannot be written.
    """
    names = [_general_name(host) for host in dict.fromkeys((name, *hosts, *_HERE))]
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    return _issue(directory, "agents", "server", name, names, purpose, days, now)


def issue_client(
    directory: Path,
    name: str,
    role: str,
    *,
    days: int = CLIENT_DAYS,
    now: datetime.datetime | None = None,
) -> Path:
    """Make a client's key and certificate.

    Args:
        directory: The authority's folder.
        name: The person or program; agents write it down as `cert:NAME`.
        role: `view`, `trace` or `admin`.
        days: How long it is valid.
        now: From when; the present if None.

    Returns:
        The folder, for the client's `--tls-dir`.

    Raises:
        UsageError: The name or the role is none, or there is no authority.
        OutputError: It cannot be written.
    """
    if role not in ROLES:
        raise UsageError(f"'{role}' is no role", hint=f"one of {', '.join(ROLES)}")
    names = [x509.UniformResourceIdentifier(f"uftrace:role:{role}")]
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    return _issue(directory, "clients", "client", name, names, purpose, days, now)


def _issue(
    directory: Path,
    group: str,
    side: str,
    name: str,
    names: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    days: int,
    now: datetime.datetime | None,
) -> Path:
    if not _NAME.match(name):
        raise UsageError(
            f"'{name}' is no name", hint="up to 63 of the characters A-Z a-z 0-9 _ . @ -"
        )
    ca, ca_key = _authority(directory)
    begin = now or datetime.datetime.now(datetime.UTC)
    # A certificate that outlives its authority only looks valid.
    end = min(begin + datetime.timedelta(days=days), ca.not_valid_after_utc)
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _builder(_name(name), ca.subject, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(issuer, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    folder = directory / group / name
    files = {
        "ca.pem": (directory / "ca.pem").read_bytes(),
        f"{side}.key": _key_pem(key),
        f"{side}.pem": certificate.public_bytes(Encoding.PEM),
    }
    _write(folder, files)
    return folder


def _authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        # With several, the first is the present one, and the others are still trusted.
        ca = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no authority in {directory}",
            reason="CA_MISSING",
            hint="make one: uftrace-remote pki init",
        ) from error
    except OSError as error:
        raise OutputError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"the authority in {directory} cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise OutputError(f"{directory}: ca.key is not the key of ca.pem")
    return ca, key


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        private_directory(folder)
        for name, content in files.items():
            private_file(folder / name, content, 0o600 if name.endswith(".key") else 0o644)
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "uftrace-remote"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCK_TOLERANCE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.match(r"[A-Za-z0-9_.-]{1,253}\Z", host):
        raise UsageError(f"'{host}' is no host name and no address")
    return x509.DNSName(host)
