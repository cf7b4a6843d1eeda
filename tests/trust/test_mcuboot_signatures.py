"""Whose MCUboot image is it? Only what a trusted key signed is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from flota.errors import FlotaError
from flota.images.mcuboot import (
    HashMismatch,
    ImageFlag,
    ImageKeyKind,
    McubootImage,
    NoHash,
    Tlv,
    TlvType,
    build_image,
    pack_image,
    pack_signed_part,
    sign_image,
)
from flota.images.model import TruncatedImage
from flota.trust.image_keys import ImagePrivateKey, ImagePublicKey
from flota.trust.keys import BadKey, PasswordNeeded, PrivateKey, WrongPassword
from flota.trust.mcuboot_signatures import (
    BadImageSignature,
    HashCannotBeChecked,
    ImageNotSigned,
    ImageSignedByOthers,
    verify_image,
)
from tests.images.mcuboot_samples import OPTIONS, SIGNING_KINDS, image_key

FIRMWARE = b"firmware" * 9


def signed(key: ImagePrivateKey, *, full_key: bool = False) -> McubootImage:
    return sign_image(build_image(FIRMWARE, OPTIONS), key.signer, full_key=full_key)


@pytest.mark.parametrize("kind", SIGNING_KINDS)
@pytest.mark.parametrize("full_key", [False, True])
def test_what_a_key_signed_verifies_with_its_public_half(kind: ImageKeyKind, full_key: bool) -> None:
    key = image_key(kind)
    packed = pack_image(signed(key, full_key=full_key))
    verified = verify_image(packed + b"\xff" * 100, [image_key(kind, 1).public, key.public])
    assert (verified.key, str(verified.version), verified.facts.security_counter) == (key.public, "1.2.3+4", 7)
    assert verified.digest == hashlib.sha256(pack_signed_part(signed(key))).digest()


@pytest.mark.parametrize("kind", SIGNING_KINDS)
def test_every_changed_byte_of_image_and_signature_is_refused(kind: ImageKeyKind) -> None:
    packed = bytearray(pack_image(signed(image_key(kind))))
    step = 1 if kind is ImageKeyKind.ED25519 else 7
    for position in range(0, len(packed), step):
        packed[position] ^= 0x10
        with pytest.raises(FlotaError):
            verify_image(packed, [image_key(kind).public])
        packed[position] ^= 0x10
    verify_image(packed, [image_key(kind).public])


def test_a_file_cut_anywhere_is_refused() -> None:
    packed = pack_image(signed(image_key()))
    for length in range(len(packed)):
        with pytest.raises(TruncatedImage):
            verify_image(packed[:length], [image_key().public])


def test_an_image_without_signature_is_refused_whoever_is_trusted() -> None:
    packed = pack_image(sign_image(build_image(FIRMWARE, OPTIONS), None))
    with pytest.raises(ImageNotSigned):
        verify_image(packed, [image_key().public])


def test_an_image_of_another_key_is_refused_and_names_that_key() -> None:
    packed = pack_image(signed(image_key(number=1)))
    for trusted in ([image_key().public], []):
        with pytest.raises(ImageSignedByOthers) as caught:
            verify_image(packed, trusted)
        assert image_key(number=1).public.key_hash.hex() in str(caught.value)


def test_a_signature_moved_to_another_image_is_refused() -> None:
    image = signed(image_key())
    other = replace(image, payload=b"other")
    hash_of_other = sign_image(other, None).unprotected[0]
    with pytest.raises(BadImageSignature):
        verify_image(
            pack_image(replace(other, unprotected=(hash_of_other, *image.unprotected[1:]))), [image_key().public]
        )
    with pytest.raises(HashMismatch):
        verify_image(pack_image(replace(other, unprotected=image.unprotected)), [image_key().public])


def test_a_trusted_name_before_a_foreign_signature_is_refused() -> None:
    mine, theirs = signed(image_key()), signed(image_key(number=1))
    forged = replace(mine, unprotected=(*mine.unprotected[:2], theirs.unprotected[2]))
    with pytest.raises(BadImageSignature):
        verify_image(pack_image(forged), [image_key().public])


def test_a_second_signature_of_an_unknown_key_does_no_harm_and_a_wrong_one_of_a_known_key_does() -> None:
    mine, theirs = signed(image_key()), signed(image_key(number=1))
    for order in (mine.unprotected + theirs.unprotected[1:], theirs.unprotected + mine.unprotected[1:]):
        assert (
            verify_image(pack_image(replace(mine, unprotected=order)), [image_key().public]).key == image_key().public
        )
        with pytest.raises(BadImageSignature):
            broken = (*order[:-1], Tlv(order[-1].kind, bytes(64)))
            verify_image(
                pack_image(replace(mine, unprotected=broken)), [image_key().public, image_key(number=1).public]
            )


@pytest.mark.parametrize(
    "bend",
    [
        lambda tlvs: tlvs[1:],
        lambda tlvs: (Tlv(TlvType.SIG_PURE, b"\1"), *tlvs[1:]),
        lambda tlvs: (tlvs[0], tlvs[2]),
        lambda tlvs: (tlvs[0], tlvs[2], tlvs[1]),
        lambda tlvs: (tlvs[0], tlvs[1], Tlv(TlvType.ECDSA_SIG, tlvs[2].value)),
        lambda tlvs: (tlvs[0], tlvs[1], Tlv(tlvs[2].kind, b"")),
        lambda tlvs: (tlvs[0], Tlv(TlvType.KEYHASH, tlvs[1].value[:4]), tlvs[2]),
        lambda tlvs: (tlvs[0], Tlv(TlvType.PUBKEY, tlvs[1].value), tlvs[2]),
        lambda tlvs: (tlvs[0], Tlv(TlvType.SHA512, bytes(64)), *tlvs[1:]),
    ],
)
def test_no_rearranged_tlvs_pass(bend: Callable[[tuple[Tlv, ...]], tuple[Tlv, ...]]) -> None:
    image = signed(image_key())
    with pytest.raises(FlotaError):
        verify_image(pack_image(replace(image, unprotected=bend(image.unprotected))), [image_key().public])


def test_a_pure_ed25519_signature_is_over_the_signed_part_itself() -> None:
    image = build_image(FIRMWARE, OPTIONS)
    entries = (
        Tlv(TlvType.SIG_PURE, b"\1"),
        Tlv(TlvType.KEYHASH, hashlib.sha512(image_key().public.encoded).digest()),
        Tlv(TlvType.ED25519, image_key()._key.sign(pack_signed_part(image))),  # type: ignore[union-attr, call-arg]
    )
    verified = verify_image(pack_image(replace(image, unprotected=entries)), [image_key().public])
    assert verified.digest == hashlib.sha256(pack_signed_part(image)).digest()


def test_an_encrypted_image_is_never_called_trusted() -> None:
    image = replace(signed(image_key()), flags=ImageFlag.ENCRYPTED_AES128)
    with pytest.raises(HashCannotBeChecked):
        verify_image(pack_image(image), [image_key().public])


def test_an_image_without_hash_is_refused() -> None:
    image = signed(image_key())
    with pytest.raises(NoHash):
        verify_image(pack_image(replace(image, unprotected=image.unprotected[1:])), [image_key().public])


def test_unsigned_copies_of_signed_fields_have_no_effect() -> None:
    image = signed(image_key())
    forged = replace(image, unprotected=(*image.unprotected, Tlv(TlvType.SEC_CNT, b"\xff\xff\xff\xff")))
    assert verify_image(pack_image(forged), [image_key().public]).facts.security_counter == 7


def test_rsa_2048_is_verified_but_signs_nothing_new() -> None:
    key = image_key(ImageKeyKind.RSA_2048)
    verify_image(pack_image(signed(key)), [key.public])
    with pytest.raises(BadKey, match="RSA-2048"):
        ImagePrivateKey.from_pem(key.to_pem())
    with pytest.raises(BadKey):
        ImagePrivateKey.generate(ImageKeyKind.RSA_2048)


def test_rsa_signatures_have_exactly_the_salt_that_boot_loaders_accept() -> None:
    key = image_key(ImageKeyKind.RSA_3072)
    image = build_image(FIRMWARE, OPTIONS)
    digest = hashlib.sha256(pack_signed_part(image)).digest()
    raw = serialization.load_pem_private_key(key.to_pem(), None)
    assert isinstance(raw, rsa.RSAPrivateKey)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

    pss = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=20)
    assert key.public.is_signature_of(digest, key.sign(digest))
    assert not key.public.is_signature_of(digest, raw.sign(digest, pss, Prehashed(hashes.SHA256())))
    assert not key.public.is_signature_of(digest, raw.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256())))


def test_an_ecdsa_signature_padded_with_zeros_is_accepted() -> None:
    key = image_key(ImageKeyKind.P256)
    digest = bytes(range(32))
    assert key.public.is_signature_of(digest, key.sign(digest).ljust(72, b"\0"))
    assert not key.public.is_signature_of(digest, key.sign(digest) + b"\1")


@pytest.mark.parametrize("kind", SIGNING_KINDS)
def test_a_key_survives_its_file_and_names_itself_by_the_hash_of_what_boot_loaders_hold(kind: ImageKeyKind) -> None:
    key = image_key(kind)
    assert ImagePrivateKey.from_pem(key.to_pem()).public == key.public == ImagePublicKey.from_pem(key.public.pem)
    assert key.public.key_hash == hashlib.sha256(key.public.encoded).digest()
    assert key.public.key_hash.hex()[:16] in repr(key)
    assert len(repr(key)) < 60


def test_a_release_key_signs_images_too_under_the_same_name() -> None:
    release = PrivateKey.generate("ed25519")
    assert ImagePrivateKey.from_pem(release.to_pem()).public.key_hash.hex() == release.key_id


def test_locked_keys_and_wrong_passwords_say_so() -> None:
    locked = PrivateKey.generate().to_pem("right")
    with pytest.raises(PasswordNeeded):
        ImagePrivateKey.from_pem(locked)
    with pytest.raises(WrongPassword):
        ImagePrivateKey.from_pem(locked, "wrong")
    ImagePrivateKey.from_pem(locked, "right")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),
        lambda: rsa.generate_private_key(public_exponent=3, key_size=2048),
    ],
)
def test_keys_that_boot_loaders_do_not_have_are_refused(
    make: Callable[[], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey],
) -> None:
    key = make()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    with pytest.raises(BadKey, match="not supported"):
        ImagePublicKey.from_pem(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(BadKey):
        ImagePrivateKey.from_pem(private)


def test_a_private_key_where_a_public_one_belongs_is_refused() -> None:
    with pytest.raises(BadKey, match="private key"):
        ImagePublicKey.from_pem(image_key().to_pem())
