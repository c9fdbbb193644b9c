"""From a client's certificate to who it is. TLS has verified it before."""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from uftrace_agent.trust.roles import Role

ROLE_URI = "uftrace:role:"


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a client's certificate says.

    Attributes:
        name: Its common name.
        role: Of its URI `uftrace:role:ROLE`; None where it has none.
        ends: When it ends.
    """

    name: str
    role: Role | None
    ends: datetime.datetime


# A connection has one certificate for all of its calls.
@functools.lru_cache(maxsize=256)
def read_client_certificate(pem: bytes) -> ClientCertificate:
    """Read a certificate.

    Raises:
        ValueError: It cannot be read, or names several roles or an unknown one.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    roles = {Role.parse(u.removeprefix(ROLE_URI)) for u in uris if u.startswith(ROLE_URI)}
    if len(roles) > 1:
        raise ValueError("the certificate names several roles")
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return ClientCertificate(
        name=str(common[0].value) if common else "",
        role=next(iter(roles), None),
        ends=certificate.not_valid_after_utc,
    )
