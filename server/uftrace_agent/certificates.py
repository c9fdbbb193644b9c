"""The agent's own certificate authority and server certificate, as bytes.

Pure: what is on disk and when it is renewed is `state_directory`'s business.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_NAME = "uftrace-agent"
CA_LIFETIME = datetime.timedelta(days=3650)
SERVER_LIFETIME = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=30)
# Hosts whose clock is behind must not find the certificate "not yet valid".
CLOCK_TOLERANCE = datetime.timedelta(days=1)


def make_key() -> bytes:
    """Make a P-256 key, as unencrypted PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def make_ca_certificate(key_pem: bytes, now: datetime.datetime) -> bytes:
    """Make a self-signed CA certificate of `key_pem`, as PEM."""
    key = _load_key(key_pem)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "uftrace-remote"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"agent CA of {socket.gethostname()}"[:64]),
        ]
    )
    return (
        _builder(name, name, key.public_key(), now, CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def make_server_certificate(
    key_pem: bytes,
    ca_pem: bytes,
    ca_key_pem: bytes,
    names: Sequence[str],
    now: datetime.datetime,
) -> bytes:
    """Make a server certificate of `key_pem`, signed by the CA, as PEM.

    Args:
        key_pem: The server's key.
        ca_pem: The CA's certificate.
        ca_key_pem: The CA's key.
        names: Host names and IP addresses that the server answers to.
        now: Moment from which it is valid, give or take a wrong clock.
    """
    ca = x509.load_pem_x509_certificate(ca_pem)
    ca_key = _load_key(ca_key_pem)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(subject, ca.subject, _load_key(key_pem).public_key(), now, SERVER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(authority, critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .sign(ca_key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def server_names() -> list[str]:
    """The names that a client on this host or another may know the agent by."""
    return sorted({"localhost", "127.0.0.1", "::1", SERVER_NAME, socket.gethostname()})


def fits_key(certificate_pem: bytes, key_pem: bytes) -> bool:
    """Tell whether a certificate is of this key."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return certificate.public_key() == _load_key(key_pem).public_key()


def check_authority(pem: bytes) -> None:
    """See that a file holds certificates that may sign others.

    Raises:
        ValueError: One does not, or there is none.
    """
    for certificate in x509.load_pem_x509_certificates(pem):
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        except x509.ExtensionNotFound as error:
            raise ValueError("ca.pem holds a certificate that is no authority's") from error
        if not constraints.value.ca:
            raise ValueError("ca.pem holds a certificate that is no authority's")


def serves(
    certificate_pem: bytes, ca_pem: bytes, names: Sequence[str], now: datetime.datetime
) -> bool:
    """Tell whether a server certificate is of this CA, for these names and not soon to end."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return False
    return (
        set(_general_names(names)) <= set(covered)
        and certificate.not_valid_after_utc - now > RENEW_BEFORE
    )


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of a certificate, as `AB:CD:...`: what people compare."""
    digest = x509.load_pem_x509_certificate(certificate_pem).fingerprint(hashes.SHA256())
    return digest.hex(":").upper()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_general_name(name) for name in names]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return key
