"""Signatures over a release's whole file, for devices that check it with a certificate that is built into them.

Such a device reads nothing of our manifest: what it takes is decided by one signature, under the one name that it was
built for. So the server knows the certificates of a type's devices, takes only signatures that these verify, and
publishes nothing that the devices would refuse after a whole download. That a certificate's time is over is judged when
it is said to be the devices': they themselves read its key alone, and still have it when it has ended.
Source: docs/reference/code-signing.md, "Signatures for devices"; docs/reference/aws-iot.md, "The OTA job document".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from flota.boards.catalogue import board
from flota.boards.model import CodeSignature
from flota.errors import Conflict, InvalidInput, NotFound, Refused
from flota.fleet.devices import DeviceType
from flota.fleet.releases import FileSignature, Release, ReleaseState
from flota.server.device_registry import device_type_or_builtin
from flota.trust.code_signing import check_chain, parse_chain, public_pem_of
from flota.trust.file_signatures import FileAlgorithm, FilePublicKey, FileSignatureWrong
from flota.trust.public_keys import BadKey
from flota.trust.thing_certificates import CertificateFacts, facts_of

if TYPE_CHECKING:
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

SIGNATURE_MAX_BYTES: Final = 512
"""An RSA-3072 signature has 384."""

CERTIFICATES_MAX: Final = 8
"""Of one type: while a signer's certificate is replaced, old and new devices have different ones."""

ALGORITHMS: Final[Mapping[CodeSignature, FileAlgorithm]] = {
    CodeSignature.SHA256_ECDSA: FileAlgorithm.ECDSA_P256,
    CodeSignature.SHA256_RSA: FileAlgorithm.RSA_PKCS1,
}
"""What stands under each name of a job document."""


@dataclass(frozen=True, slots=True)
class GivenSignature:
    """A signature (base64) over the file; `certificate` (PEM) None: whichever of the type's it verifies with."""

    signature: str
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class CodeCertificate:
    """A certificate for code, looked into: under which name its signatures go, and what is kept of it."""

    name: CodeSignature
    facts: CertificateFacts
    key: FilePublicKey


def read_code_certificate(pem: str, *, now: datetime | None) -> CodeCertificate:
    """Return the signer's certificate in a PEM file, judged for itself: devices follow no chain.

    `now` None: whatever its time. Raises `BadCertificate`, or a `CertificateRefused` for each way in which it must not
    sign code.
    """
    certificate = parse_chain(pem.encode("utf-8", "surrogatepass"))[0]
    check_chain([certificate], trusted=[certificate], now=now)
    return _looked_into(certificate)


async def trust_code_certificates(
    tx: Transaction, scope: Scope, type_name: str, pems: Sequence[str], *, now: datetime, allow_expired: bool = False
) -> DeviceType:
    """Add certificates to those that a type's devices have. Raises as `read_code_certificate`, `InvalidInput`."""
    device_type = await device_type_or_builtin(tx, scope, type_name, now)
    known = {certificate_sha256(pem): pem for pem in device_type.code_certificates}
    for pem in pems:
        added = read_code_certificate(pem, now=None if allow_expired else now)
        _refuse_unreadable_name(device_type, added.name)
        known[added.facts.fingerprint] = added.facts.pem
    if len(known) > CERTIFICATES_MAX:
        raise InvalidInput(
            "too many code-signing certificates", expected=f"at most {CERTIFICATES_MAX}", found=len(known)
        )
    return await tx.set_code_certificates(scope, device_type.name, known, now=now)


async def distrust_code_certificate(
    tx: Transaction, scope: Scope, type_name: str, fingerprint: str, *, now: datetime
) -> DeviceType:
    """Take one from the certificates that a type's devices have; published releases stay. Raises `NotFound`."""
    device_type = await tx.device_type(scope, type_name)
    known = {certificate_sha256(pem): pem for pem in device_type.code_certificates}
    if known.pop(fingerprint, None) is None:
        raise NotFound(
            f"type {type_name} has no such code-signing certificate",
            expected=", ".join(known) or "none is known",
            found=fingerprint,
        )
    return await tx.set_code_certificates(scope, device_type.name, known, now=now)


async def add_file_signature(
    context: ServerContext, scope: Scope, release: Release, given: GivenSignature
) -> tuple[Release, DeviceType]:
    """Check a signature over a release's file with the type's certificates, and keep it.

    Raises `Refused` for a certificate that is not the type's, that is over, or a signature that is not of this file;
    `InvalidInput` for what is none at all; `Conflict` for a release that is published or withdrawn.
    """
    now = context.now()
    raw = parse_signature(given.signature)
    digest = bytes.fromhex(release.artifact.digests.sha256)
    async with context.storage.transaction() as transaction:
        device_type = await transaction.device_type(scope, release.type_name)
        if release.state not in (ReleaseState.DRAFT, ReleaseState.SIGNED):
            raise Conflict(
                f"release {release.type_name}@{release.version} cannot be signed",
                expected="a draft",
                found=str(release.state),
            )
        certificate = _verified_with(_candidates(device_type, given.certificate), digest, raw)
        _refuse_unreadable_name(device_type, certificate.name)
        signature = FileSignature(
            name=certificate.name.value,
            signature=base64.b64encode(raw).decode("ascii"),
            certificate=certificate.facts.pem,
            certificate_sha256=certificate.facts.fingerprint,
        )
        changed = await transaction.add_file_signature(scope, release.id, signature, now=now)
    return changed, device_type


def refuse_without_code_signature(release: Release, device_type: DeviceType) -> None:
    """Raise `Refused` unless the release has a signature that the type's devices can check, by one of theirs."""
    needed = board(device_type.board).code_signatures
    if not needed:
        return
    usable = [one for one in release.file_signatures if one.name in needed]
    if not usable:
        raise Refused(
            f"release {release.type_name}@{release.version} has no signature over its file that its devices can check",
            expected=" or ".join(needed),
            found=", ".join(one.name for one in release.file_signatures) or "none",
            hint=f"flota release sign {release.id} --code-key KEY --file FILE",
        )
    digest = bytes.fromhex(release.artifact.digests.sha256)
    known = {certificate_sha256(pem) for pem in device_type.code_certificates}
    for one in usable:
        if one.certificate_sha256 not in known:
            raise Refused(
                f"{one.name} was made with a certificate that the type's devices no longer have",
                expected=", ".join(sorted(known)) or "a certificate; the type has none",
                found=one.certificate_sha256,
                hint=f"Sign it again, or: flota type trust {device_type.name} --code-certificate CERTIFICATE",
            )
        certificate = read_code_certificate(one.certificate, now=None)
        certificate.key.check(digest, parse_signature(one.signature), ALGORITHMS[certificate.name])


def parse_signature(text: str) -> bytes:
    """Return the bytes of a signature in base64. Raises `InvalidInput`."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("the signature is not base64", found=str(error)) from error
    if not 0 < len(raw) <= SIGNATURE_MAX_BYTES:
        raise InvalidInput("the signature's length", expected=f"1 to {SIGNATURE_MAX_BYTES} bytes", found=len(raw))
    return raw


def certificate_sha256(pem: str) -> str:
    """Return the hex SHA-256 of a kept certificate's DER form."""
    der = x509.load_pem_x509_certificate(pem.encode("ascii")).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def _looked_into(certificate: x509.Certificate) -> CodeCertificate:
    try:
        key = FilePublicKey.from_pem(public_pem_of(certificate))
    except BadKey as error:
        raise Refused("the certificate's key signs no files", expected=error.expected, found=error.found) from error
    name = next(name for name, algorithm in ALGORITHMS.items() if algorithm in key.algorithms)
    return CodeCertificate(name, facts_of(certificate), key)


def _candidates(device_type: DeviceType, given: str | None) -> list[CodeCertificate]:
    """Return the certificates that a signature may belong to: the one given, if the type's devices have it, or all."""
    known = {certificate_sha256(pem): pem for pem in device_type.code_certificates}
    if given is not None:
        wanted = read_code_certificate(given, now=None)
        if wanted.facts.fingerprint not in known:
            raise Refused(
                f"the certificate is none that devices of type {device_type.name} have",
                expected=", ".join(sorted(known)) or "a certificate; the type has none yet",
                found=wanted.facts.fingerprint,
                hint=f"If they do, say so once: flota type trust {device_type.name} --code-certificate CERTIFICATE "
                "(or --trust-key when signing).",
            )
        return [wanted]
    if not known:
        raise Refused(
            f"no code-signing certificate is known for type {device_type.name}",
            hint=f"flota type trust {device_type.name} --code-certificate CERTIFICATE",
        )
    return [read_code_certificate(pem, now=None) for pem in known.values()]


def _verified_with(candidates: Sequence[CodeCertificate], digest: bytes, signature: bytes) -> CodeCertificate:
    wrong: FileSignatureWrong | None = None
    for candidate in candidates:
        try:
            candidate.key.check(digest, signature, ALGORITHMS[candidate.name])
        except FileSignatureWrong as error:
            wrong = error if wrong is None or error.code != FileSignatureWrong.code else wrong
        else:
            return candidate
    assert wrong is not None
    raise wrong


def _refuse_unreadable_name(device_type: DeviceType, name: CodeSignature) -> None:
    readable = board(device_type.board).code_signatures
    if readable and name not in readable:
        raise Refused(
            f"devices of type {device_type.name} check no {name}",
            expected=" or ".join(readable),
            found=name.value,
            hint="A device reads the signature that it was built for, and no other.",
        )
