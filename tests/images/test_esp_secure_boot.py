from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from flota.images.esp_secure_boot import (
    BLOCK_SIZE,
    BadPublicKey,
    BadSignatureBlock,
    NotSigned,
    SecureBootError,
    UntrustedKey,
    WrongContentDigest,
    WrongSignature,
    find_signature_blocks,
    parse_block,
    public_key_digest,
    require_signed,
)
from flota.images.model import ImageError, TruncatedImage
from tests.images.esp_samples import sample_app
from tests.images.signed_samples import p256_block, p256_key, padded, pem_of, signed

SCHEMES = {
    "rsa3072": "RSA-3072",
    "ecdsa192": "ECDSA P-192",
    "ecdsa256": "ECDSA P-256",
    "ecdsa384": "ECDSA P-384",
}

ED25519_PEM = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""


def with_crc(block: bytearray) -> bytes:
    block[1196:1200] = struct.pack("<I", zlib.crc32(block[:1196]))
    return bytes(block)


def espsecure(directory: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "espsecure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    if "No module named" in done.stderr:
        pytest.skip("espsecure is not installed")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


APP = sample_app()


@pytest.mark.program
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_espsecure_signs_holds_and_the_key_digest_is_the_one_it_burns(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(APP)
    espsecure(tmp_path, "generate-signing-key", "--version", "2", "--scheme", scheme, "key.pem")
    espsecure(tmp_path, "sign-data", "--version", "2", "--keyfile", "key.pem", "--output", "signed.bin", "app.bin")
    espsecure(tmp_path, "extract-public-key", "--version", "2", "--keyfile", "key.pem", "public.pem")
    espsecure(tmp_path, "digest-sbv2-public-key", "--keyfile", "key.pem", "--output", "digest.bin")
    digest = (tmp_path / "digest.bin").read_bytes().hex()
    data = (tmp_path / "signed.bin").read_bytes()
    (block,) = find_signature_blocks(data, len(APP))
    assert (block.scheme, block.key_digest, block.verified) == (SCHEMES[scheme], digest, True)
    assert public_key_digest((tmp_path / "public.pem").read_bytes()) == digest
    assert require_signed(data, len(APP), trusted=[digest]) == block
    changed = bytearray(data)
    changed[200] ^= 1
    assert find_signature_blocks(bytes(changed), len(APP))[0].verified is False


@pytest.mark.program
def test_espsecure_verifies_what_we_call_signed(tmp_path: Path) -> None:
    (tmp_path / "signed.bin").write_bytes(signed(APP, p256_key()))
    (tmp_path / "public.pem").write_text(pem_of(p256_key()))
    espsecure(tmp_path, "verify-signature", "--version", "2", "--keyfile", "public.pem", "signed.bin")
    assert require_signed(signed(APP, p256_key()), len(APP)).verified


def test_up_to_three_blocks_are_read_each_with_its_own_key() -> None:
    keys = [p256_key(number) for number in (1, 2, 3)]
    for count in (1, 2, 3):
        blocks = find_signature_blocks(signed(APP, *keys[:count]), len(APP))
        assert [block.key_digest for block in blocks] == [public_key_digest(pem_of(key)) for key in keys[:count]]
        assert all(block.verified for block in blocks)
    assert len(find_signature_blocks(signed(APP, *keys, p256_key(4)), len(APP))) == 3


def test_one_good_block_among_bad_ones_is_enough() -> None:
    data = bytearray(signed(APP, p256_key(1), p256_key(2)))
    data[len(padded(APP)) + 500] ^= 1
    assert [block.verified for block in find_signature_blocks(bytes(data), len(APP))] == [False, True]
    assert require_signed(bytes(data), len(APP)).key_digest == public_key_digest(pem_of(p256_key(2)))


def test_an_unsigned_image_is_refused_with_what_to_do() -> None:
    for data in (APP, padded(APP), padded(APP) + b"\xff" * 4096):
        with pytest.raises(NotSigned, match="espsecure"):
            require_signed(data, len(APP))


def test_changed_content_is_told_from_a_wrong_signature_and_from_a_wrong_key() -> None:
    data, start = signed(APP, p256_key()), len(padded(APP))
    changed = bytearray(data)
    changed[40] ^= 1
    with pytest.raises(WrongContentDigest):
        require_signed(bytes(changed), len(APP))
    forged = bytearray(data[start : start + BLOCK_SIZE])
    forged[101] ^= 1
    with pytest.raises(WrongSignature):
        require_signed(data[:start] + with_crc(forged), len(APP))
    other = bytearray(data[start : start + BLOCK_SIZE])
    other[37:101] = signed(APP, p256_key(2))[start + 37 : start + 101]
    with pytest.raises(WrongSignature):
        require_signed(data[:start] + with_crc(other), len(APP))
    with pytest.raises(UntrustedKey) as caught:
        require_signed(data, len(APP), trusted=["00" * 32])
    assert caught.value.found == public_key_digest(pem_of(p256_key()))


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [(1, 1, "version"), (1, 4, "version"), (2, 2, "hash"), (2, 1, "curve"), (36, 0, "curve"), (36, 3, "curve")],
)
def test_blocks_of_unknown_kinds_are_bad_blocks(offset: int, value: int, what: str) -> None:
    block = bytearray(p256_block(b"content", p256_key()))
    block[offset] = value
    with pytest.raises(BadSignatureBlock, match=what):
        parse_block(with_crc(block))


def test_a_key_that_is_no_point_of_its_curve_is_a_bad_block() -> None:
    content = padded(APP)
    block = bytearray(p256_block(content, p256_key()))
    block[37:101] = b"\xff" * 64
    with pytest.raises(BadSignatureBlock, match="no point"):
        require_signed(content + with_crc(block), len(APP))


def test_rsa_keys_that_no_device_could_use_are_bad_blocks() -> None:
    content = padded(APP)
    digest = hashlib.sha256(content).digest()
    for modulus in (0, 1, 1 << 3071, (1 << 3072) - 1, 1 << 3000 | 1):
        for exponent in (0, 1, 65537):
            key = modulus.to_bytes(384, "little") + struct.pack("<I", exponent) + bytes(388)
            body = bytearray(b"\xe7\x02\0\0" + digest + key + bytes(384) + bytes(20))
            with pytest.raises(BadSignatureBlock):
                require_signed(content + with_crc(body), len(APP))


def test_a_block_cut_anywhere_is_truncated_or_bad() -> None:
    block = p256_block(b"content", p256_key())
    for length in range(0, BLOCK_SIZE, 37):
        with pytest.raises(TruncatedImage):
            parse_block(block[:length])
    data = signed(APP, p256_key())
    for length in range(len(padded(APP)), len(padded(APP)) + BLOCK_SIZE, 97):
        with pytest.raises(ImageError):
            require_signed(data[:length], len(APP))


def test_any_bit_of_the_signed_part_matters() -> None:
    data, start = signed(APP, p256_key()), len(padded(APP))
    for position in (*range(0, start, 211), *range(start, start + 1200, 61)):
        changed = bytearray(data)
        changed[position] ^= 0x10
        with pytest.raises(SecureBootError):
            require_signed(bytes(changed), len(APP))


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "not a key",
        "x" * 100_000,
        pem_of(ec.derive_private_key(7, ec.SECP256K1())),
        pem_of(ec.derive_private_key(7, ec.SECP521R1())),
        ED25519_PEM,
    ],
    ids=["empty", "text", "long", "secp256k1", "p521", "ed25519"],
)
def test_keys_that_secure_boot_cannot_use_are_refused(pem: str) -> None:
    with pytest.raises(BadPublicKey):
        public_key_digest(pem)
