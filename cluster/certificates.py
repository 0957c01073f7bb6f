# SPDX-License-Identifier: Apache-2.0
"""One certificate per installation, with which Ray's processes recognise each other.

Ray's servers answer two standard gRPC services to anybody, token or not. With mutual TLS a stranger gets no
word out of them. The authority's key is thrown away as soon as it has signed, so there is never a second
certificate; the files lie in the home's key folder, readable by its owner alone.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.home import Home

_LIFETIME_DAYS = 3650


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeCertificate:
    """Files of the installation's certificate.

    Attributes:
        authority: what signed it; the only thing that is trusted.
        certificate: used as server and as client.
        key: its private key.
    """

    authority: Path
    certificate: Path
    key: Path


def node_certificate(home: Home) -> NodeCertificate:
    """The installation's certificate; made on first use."""
    files = NodeCertificate(
        authority=home.keys / "ray-authority.pem",
        certificate=home.keys / "ray-node.pem",
        key=home.keys / "ray-node.key",
    )
    # The key is written last: where it exists, the other two belong to it.
    if not files.key.exists():
        _make(home, files)
    return files


def _make(home: Home, files: NodeCertificate) -> None:
    authority_key, node_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = _named("expert marketplace installation")
    authority = (
        _certificate(issuer, issuer, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    node = (
        _certificate(_named("expert marketplace node"), issuer, node_key)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    home.write_secret(files.authority, authority.public_bytes(serialization.Encoding.PEM))
    home.write_secret(files.certificate, node.public_bytes(serialization.Encoding.PEM))
    home.write_secret(
        files.key,
        node_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    # A minute back, for a clock that is set back a little must not lock an installation out.
    return (
        builder.public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=_LIFETIME_DAYS))
    )
