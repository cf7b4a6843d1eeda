"""The fuzz targets of things: their names, certificates, credentials and fleet provisioning. See `table.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flota.fleet.things import (
    parse_device_text,
    parse_job_name,
    parse_template_name,
    parse_thing_name,
    parse_thing_name_template,
    thing_name_of,
)
from flota.protocols import aws_provisioning
from flota.protocols.aws_provisioning import PayloadFormat
from flota.trust.thing_certificates import parse_foreign_certificate, parse_request
from flota.trust.thing_credentials import (
    ThingCredentials,
    ThingFile,
    pack_credentials_source,
    pack_thing_file,
    parse_credentials_source,
    parse_thing_file,
)
from tests.fuzz.model import Target, as_text, target
from tests.fuzz.targets_trust import NOW, certificates, p256

THING = ThingFile("meter-3", "meter-3", "localhost", 8883)
CREDENTIALS = ThingCredentials(THING, "-----BEGIN CERTIFICATE-----\nAA//\n-----END CERTIFICATE-----\n")


@cache
def requests() -> tuple[bytes, ...]:
    """A certificate request, signed deterministically, so that every run begins with the same."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meter-3")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    made = builder.sign(p256(), hashes.SHA256(), ecdsa_deterministic=True)
    return (made.public_bytes(serialization.Encoding.PEM),)


@cache
def foreign() -> tuple[bytes, ...]:
    """A device's certificate as another authority issued it, and two that are no device's."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meter-3")])
    builder = (
        x509.CertificateBuilder(name, name, p256().public_key(), 9)
        .not_valid_before(NOW - timedelta(days=9))
        .not_valid_after(NOW + timedelta(days=9))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    made = builder.sign(p256(), hashes.SHA256(), ecdsa_deterministic=True)
    return (made.public_bytes(serialization.Encoding.PEM), *certificates()[:2])


def in_both_forms(reader: Callable[[bytes, PayloadFormat], object]) -> Callable[[bytes], object]:
    """Read JSON where the input begins with a brace, as a request in JSON does; else CBOR."""
    return lambda data: reader(data, PayloadFormat.JSON if data[:1] == b"{" else PayloadFormat.CBOR)


def packed(pack: Callable[[PayloadFormat], bytes]) -> Callable[[], tuple[bytes, ...]]:
    return lambda: tuple(pack(form) for form in PayloadFormat)


def named_by_template(data: bytes) -> object:
    template, _, value = as_text(data).partition(" ")
    return thing_name_of(parse_thing_name_template(template), {"SerialNumber": value})


MADE = aws_provisioning.CertificateMade("11" * 32, "PEM", "token", "KEY")
REQUEST = aws_provisioning.ProvisionRequest("token", {"SerialNumber": "17"})
REJECTED = aws_provisioning.ProvisioningRejected(aws_provisioning.ProvisioningRejection.FORBIDDEN, "no")
PROVISIONED = aws_provisioning.Provisioned("meter-17", {"a": "b"})

TARGETS: tuple[Target, ...] = (
    target(parse_request, requests, longest=16 * 1024),
    target(parse_foreign_certificate, foreign, longest=64 * 1024, now=NOW),
    target(parse_credentials_source, lambda: [pack_credentials_source(CREDENTIALS)]),
    target(parse_thing_file, lambda: [pack_thing_file(THING)]),
    target(parse_thing_name, ["meter:3"]),
    target(parse_template_name, ["meters"]),
    target(parse_thing_name_template, ["meter-{SerialNumber} 17"], read=named_by_template, also=[thing_name_of]),
    target(parse_job_name, ["AFR_OTA-pumps", "pumps"]),
    target(parse_device_text, ["Code_Verify_Key"], read=lambda data: parse_device_text("certfile", as_text(data))),
    target(aws_provisioning.parse_provisioning_topic, ["$aws/provisioning-templates/meters/provision/cbor"]),
    target(
        aws_provisioning.parse_csr_request,
        packed(lambda form: aws_provisioning.pack_csr_request("CSR", form)),
        read=in_both_forms(aws_provisioning.parse_csr_request),
    ),
    target(aws_provisioning.parse_keys_request, ["", "{}"], read=in_both_forms(aws_provisioning.parse_keys_request)),
    target(
        aws_provisioning.parse_provision_request,
        packed(lambda form: aws_provisioning.pack_provision_request(REQUEST, form)),
        read=in_both_forms(aws_provisioning.parse_provision_request),
    ),
    target(
        aws_provisioning.parse_certificate_made,
        packed(lambda form: aws_provisioning.pack_certificate_made(MADE, form)),
        read=in_both_forms(aws_provisioning.parse_certificate_made),
    ),
    target(
        aws_provisioning.parse_provisioned,
        packed(lambda form: aws_provisioning.pack_provisioned(PROVISIONED, form)),
        read=in_both_forms(aws_provisioning.parse_provisioned),
    ),
    target(
        aws_provisioning.parse_rejection,
        packed(lambda form: aws_provisioning.pack_rejection(REJECTED, form)),
        read=in_both_forms(aws_provisioning.parse_rejection),
    ),
)
