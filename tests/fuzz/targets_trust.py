"""The fuzz targets of `flota.trust`. One line each; see `table.py`."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flota.images.esp_secure_boot import public_key_digest
from flota.trust.canonical_json import parse_strict
from flota.trust.certificates import Key, pack_certificates, pack_key, parse_certificates, parse_key
from flota.trust.code_signing import check_chain, parse_chain
from flota.trust.file_signatures import FilePrivateKey, FilePublicKey
from flota.trust.image_keys import ImagePrivateKey, ImagePublicKey
from flota.trust.keys import PrivateKey, load_private_key
from flota.trust.manifest import pack_manifest, parse_manifest
from flota.trust.mcuboot_signatures import verify_image
from flota.trust.public_keys import PublicKey, load_public_key
from flota.trust.rotation import Rotation, accept_rotation, pack_rotation, pack_signers, parse_rotation, parse_signers
from flota.trust.signatures import Signature, check_threshold, parse_signatures, signatures_as_json
from flota.trust.trust_file import TrustedSigners, pack_trust_file, parse_revoked, parse_trust_file
from tests.fuzz.model import Target, target
from tests.fuzz.targets_images import mcuboot_images
from tests.images.mcuboot_samples import RFC_8032_KEY
from tests.trust.releases import manifest

ENCRYPTED = bytes.fromhex(
    "3081a3305f06092a864886f70d01050d3052303106092a864886f70d01050c302404107ff0446a0248fca9429a9ef469e021"
    "f502020800300c06082a864886f70d02090500301d060960864801650304012a041001fead909cd2da7c4fe20776fabaf3c2"
    "0440291408caea295a7cb84616b02042ccfcd42d83c769d4aaf41a3c63db171fe14763f9b9c1532b924df4cf90a6886cea36"
    "c94d05db4fb573b415a367c3f87f56e7"
)
"""PKCS#8, PBES2, password `password`, of `ed25519_key`."""

NOW = datetime(2026, 6, 1, tzinfo=UTC)
RSA_BYTES = 256
RSA_N = (1 << 2047) + 0x1234567  # no product of primes: enough for what only reads it


@cache
def p256() -> Key:
    return ec.derive_private_key(0xF107A, ec.SECP256R1())


@cache
def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@cache
def private_keys() -> tuple[bytes, ...]:
    plain = serialization.NoEncryption()
    sec1 = p256().private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    pkcs8 = serialization.PrivateFormat.PKCS8
    return (pack_key(p256()), sec1, ed25519_key().private_bytes(serialization.Encoding.PEM, pkcs8, plain))


@cache
def encrypted_keys() -> tuple[bytes, ...]:
    body = base64.encodebytes(ENCRYPTED)
    return (
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + body + b"-----END ENCRYPTED PRIVATE KEY-----\n",
        *private_keys(),
    )


@cache
def public_keys() -> tuple[bytes, ...]:
    rsa_key = rsa.RSAPublicNumbers(65537, RSA_N).public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    keys = (p256().public_key(), ed25519_key().public_key(), rsa_key)
    return tuple(key.public_bytes(serialization.Encoding.PEM, info) for key in keys)


@cache
def certificates() -> tuple[bytes, ...]:
    """An authority and a code signer below it, signed deterministically, so that every run begins with the same."""
    keys = [p256(), ec.derive_private_key(0xF107B, ec.SECP256R1())]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("Flota root", "signer")]
    made = []
    for number, key in enumerate(keys):
        builder = (
            x509.CertificateBuilder(names[0], names[number], key.public_key(), 7 + number)
            .not_valid_before(NOW - timedelta(days=9))
            .not_valid_after(NOW + timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=number == 0, path_length=None), critical=True)
            .add_extension(_usage(is_authority=number == 0), critical=True)
        )
        if number:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256(), ecdsa_deterministic=True))
    root, signer = (pack_certificates(item) for item in made)
    return (root, signer, signer + root)


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    rest = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    rest |= dict.fromkeys(("crl_sign", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not is_authority, key_cert_sign=is_authority, **rest)


@cache
def signers() -> TrustedSigners:
    return TrustedSigners.of([pem.decode() for pem in public_keys()[:2]], 1)


def signature_of(message: bytes) -> Signature:
    key_id = PublicKey.from_pem(public_keys()[1]).key_id
    return Signature(key_id, "ed25519", ed25519_key().sign(message))


@cache
def rotations() -> tuple[bytes, ...]:
    document = pack_signers(replace(signers(), version=1))
    return (pack_rotation(Rotation(document, (signature_of(document),))),)


def rotation_applied(data: bytes) -> object:
    return accept_rotation(signers(), parse_rotation(data))


def chain_checked(data: bytes) -> object:
    chain = parse_chain(data)
    return check_chain(chain, trusted=parse_certificates(certificates()[0]), now=NOW)


def signatures_checked(data: bytes) -> object:
    return check_threshold(b"message", parse_signatures(data), signers().keys, 1)


def revoked_from_json(data: bytes) -> object:
    items = parse_strict(data, max_bytes=65536, max_depth=3, what="the list")
    return parse_revoked(items if isinstance(items, list) else [items])


@cache
def file_signatures() -> tuple[bytes, ...]:
    algorithm = ec.ECDSA(utils.Prehashed(hashes.SHA256()), deterministic_signing=True)
    return (p256().sign(bytes(32), algorithm), bytes(256))


def file_signature(data: bytes) -> object:
    number = 2 if len(data) == RSA_BYTES else 0
    return FilePublicKey.from_pem(public_keys()[number]).check(bytes(32), data)


def image_verified(data: bytes) -> object:
    return verify_image(data, [RFC_8032_KEY.public, ImagePublicKey.from_pem(public_keys()[0])])


def key_with_password(data: bytes) -> object:
    return load_private_key(data, "password")


JSON = ('{"a":[1,{"b":null}],"c":"\\u00e9"}', "[]", '{"a":1,"a":2}', "[1e5,-0,1.5]")

TARGETS: tuple[Target, ...] = (
    target(parse_strict, JSON, max_bytes=65536, max_depth=8, what="the document"),
    target(parse_manifest, lambda: [pack_manifest(manifest())]),
    target(parse_signatures, lambda: [signatures_as_json([signature_of(b"message")])]),
    target(check_threshold, lambda: [signatures_as_json([signature_of(b"message")])], read=signatures_checked),
    target(parse_trust_file, lambda: [pack_trust_file(signers())]),
    target(parse_revoked, ['["' + "0f" * 32 + '"]'], read=revoked_from_json),
    target(parse_signers, lambda: [parse_rotation(rotations()[0]).document]),
    target(parse_rotation, rotations),
    target(accept_rotation, rotations, read=rotation_applied),
    target(PublicKey.from_pem, public_keys),
    target(load_public_key, public_keys),
    target(public_key_digest, public_keys),
    target(FilePublicKey.from_pem, public_keys),
    target(FilePublicKey.check, file_signatures, read=file_signature),
    target(ImagePublicKey.from_pem, public_keys),
    target(PrivateKey.from_pem, private_keys),
    target(load_private_key, private_keys),
    target(load_private_key, encrypted_keys, read=key_with_password, variant="password"),
    target(FilePrivateKey.from_pem, private_keys),
    target(ImagePrivateKey.from_pem, private_keys),
    target(parse_key, private_keys),
    target(parse_certificates, certificates),
    target(parse_chain, certificates),
    target(check_chain, certificates, read=chain_checked),
    target(verify_image, mcuboot_images, read=image_verified),
)
