"""Signatures over the exact manifest bytes, and the rule of how many of whose are enough.

A set of signatures is enough when `threshold` different trusted keys signed. What looks like an attempt to make one
key count twice is an error of its own even when enough others signed. Signatures by keys that are not trusted here are
ignored (that is how a release is signed with an old and a new key while keys change), but named when too few remain.
Source: docs/reference/manifest.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput, Refused
from flota.trust.canonical_json import Members, parse_strict
from flota.trust.manifest import Manifest, parse_manifest
from flota.trust.public_keys import Algorithm, PublicKey

SIGNATURES_MAX: Final = 16
SIGNATURE_MAX_BYTES: Final = 512
SIGNATURES_JSON_MAX_BYTES: Final = 16 * 1024


class BadSignatures(InvalidInput):
    """The signatures are not well formed."""

    code = "bad-signatures"


class SignatureRefused(Refused):
    """The signatures do not make the manifest trusted; each subclass is one way to try."""

    code = "signature-refused"


class UnknownKey(SignatureRefused):
    """Too few trusted keys signed, and at least one that is not trusted here did."""

    code = "signature-unknown-key"


class BelowThreshold(SignatureRefused):
    """Fewer different trusted keys signed than are needed."""

    code = "signature-below-threshold"


class BadSignature(SignatureRefused):
    """A signature does not belong to these bytes and this key."""

    code = "signature-wrong"


class DuplicateKeyId(SignatureRefused):
    """Two signatures name the same key."""

    code = "signature-duplicate-key-id"


class SameSignatureTwice(SignatureRefused):
    """The same signature bytes stand there twice."""

    code = "signature-twice"


class UnknownAlgorithm(SignatureRefused):
    """A trusted key's signature names an algorithm that Flota does not know."""

    code = "signature-unknown-algorithm"


class AlgorithmMismatch(SignatureRefused):
    """A signature names an algorithm that is not its key's."""

    code = "signature-algorithm-mismatch"


class BadTrustedKeys(SignatureRefused):
    """The trusted keys themselves are wrong, so nothing can be verified with them."""

    code = "trusted-keys-wrong"


class SameKeyUnderTwoIds(BadTrustedKeys):
    """One key is listed as trusted under two ids, so that it would count twice."""

    code = "trusted-key-under-two-ids"


class KeyIdMismatch(BadTrustedKeys):
    """A trusted key is listed under an id that is not its digest."""

    code = "trusted-key-id-mismatch"


class BadThreshold(BadTrustedKeys):
    """The threshold is below one, or above the number of trusted keys."""

    code = "threshold-wrong"


@dataclass(frozen=True, slots=True)
class Signature:
    """`signature` (bytes) by the key `key_id`; `algorithm` is a value of `public_keys.Algorithm` if we know it."""

    key_id: str
    algorithm: str
    signature: bytes


def check_signature(message: bytes, signature: Signature, public_pem: str) -> None:
    """Return if `signature` is the key's signature of exactly `message`.

    Raises `UnknownKey` (the signature names another key), `UnknownAlgorithm`, `AlgorithmMismatch`, `BadSignature`, or
    `BadKey` for a key that is none.
    """
    _check_with(message, signature, PublicKey.from_pem(public_pem))


def verify_manifest(
    manifest: bytes, signatures: Sequence[Signature], trusted: Mapping[str, str], threshold: int
) -> Manifest:
    """Return the manifest in the bytes `manifest` if at least `threshold` different trusted keys signed them.

    `trusted` maps key ids to public keys in PEM. Nothing is parsed before it is trusted. Raises a subclass of
    `SignatureRefused`, `BadSignatures` (more than 16), `BadKey` if a trusted key is none, and what `parse_manifest`
    raises if the signed bytes are no manifest.
    """
    check_threshold(manifest, signatures, trusted, threshold)
    return parse_manifest(manifest)


def check_threshold(
    message: bytes, signatures: Sequence[Signature], trusted: Mapping[str, str], threshold: int
) -> frozenset[str]:
    """Return the ids of the trusted keys that signed exactly `message`, at least `threshold` different ones.

    `trusted` maps key ids to public keys in PEM. Raises a subclass of `SignatureRefused`, `BadSignatures` (more than
    16), or `BadKey` if a trusted key is none.
    """
    keys = _trusted_keys(trusted, threshold)
    _check_nobody_counts_twice(signatures)
    signers: set[str] = set()
    unknown: list[str] = []
    for signature in signatures:
        key = keys.get(signature.key_id)
        if key is None:
            unknown.append(signature.key_id)
            continue
        _check_with(message, signature, key)
        signers.add(key.key_id)
    if len(signers) < threshold:
        _raise_too_few(len(signers), threshold, unknown)
    return frozenset(signers)


def signatures_as_json(signatures: Sequence[Signature]) -> str:
    """Return the signatures as a compact JSON array, the form that travels beside a manifest."""
    return json.dumps(
        [
            {
                "key_id": item.key_id,
                "algorithm": item.algorithm,
                "signature": base64.b64encode(item.signature).decode("ascii"),
            }
            for item in signatures
        ],
        separators=(",", ":"),
    )


def parse_signatures(text: str | bytes) -> tuple[Signature, ...]:
    """Return the signatures in a JSON array of at most 16. Raises `BadJson` or `BadSignatures`."""
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    items = parse_strict(data, max_bytes=SIGNATURES_JSON_MAX_BYTES, max_depth=2, what="the list of signatures")
    if not isinstance(items, list):
        raise BadSignatures("not a list of signatures", expected="a JSON array")
    if len(items) > SIGNATURES_MAX:
        raise BadSignatures("too many signatures", expected=f"at most {SIGNATURES_MAX}", found=str(len(items)))
    return tuple(_parse_signature(item) for item in items)


def _parse_signature(item: object) -> Signature:
    members = Members(item, "a signature")
    key_id, algorithm, encoded = (members.take(name, str) for name in ("key_id", "algorithm", "signature"))
    members.finish()
    for name, text in (("key_id", key_id), ("algorithm", algorithm)):
        if not 1 <= len(text) <= 64 or not text.isascii() or not text.isprintable():
            raise BadSignatures(f"`{name}` of a signature is out of range", found=ascii(text[:72]))
    try:
        signature = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise BadSignatures("a signature is not base64", found=ascii(encoded[:72])) from error
    if not 1 <= len(signature) <= SIGNATURE_MAX_BYTES:
        raise BadSignatures(
            "a signature's length is out of range",
            expected=f"1 to {SIGNATURE_MAX_BYTES} bytes",
            found=f"{len(signature)} bytes",
        )
    return Signature(key_id, algorithm, signature)


def _check_with(message: bytes, signature: Signature, key: PublicKey) -> None:
    if signature.key_id != key.key_id:
        raise UnknownKey("the signature names another key", expected=key.key_id, found=ascii(signature.key_id[:72]))
    if signature.algorithm not in set(Algorithm):
        raise UnknownAlgorithm(
            "the signature's algorithm is unknown", expected=key.algorithm.value, found=ascii(signature.algorithm[:64])
        )
    if signature.algorithm != key.algorithm:
        raise AlgorithmMismatch(
            "the signature's algorithm is not the key's", expected=key.algorithm.value, found=str(signature.algorithm)
        )
    if not key.is_signature_of(message, signature.signature):
        raise BadSignature("the signature is wrong for these bytes", found=f"key {key.key_id}")


def _trusted_keys(trusted: Mapping[str, str], threshold: int) -> dict[str, PublicKey]:
    keys: dict[str, PublicKey] = {}
    seen: dict[str, str] = {}
    for key_id, pem in trusted.items():
        key = PublicKey.from_pem(pem)
        if key.key_id in seen:
            raise SameKeyUnderTwoIds("one key is trusted under two ids", found=f"{seen[key.key_id]} and {key_id}")
        seen[key.key_id] = key_id
        keys[key_id] = key
    for key_id, key in keys.items():
        if key_id != key.key_id:
            raise KeyIdMismatch("a trusted key's id is not its digest", expected=key.key_id, found=ascii(key_id[:72]))
    if threshold < 1:
        raise BadThreshold("the threshold is below one", expected="at least 1", found=str(threshold))
    if threshold > len(keys):
        raise BadThreshold(
            "the threshold is above the number of trusted keys", expected=f"at most {len(keys)}", found=str(threshold)
        )
    return keys


def _check_nobody_counts_twice(signatures: Sequence[Signature]) -> None:
    if len(signatures) > SIGNATURES_MAX:
        raise BadSignatures("too many signatures", expected=f"at most {SIGNATURES_MAX}", found=str(len(signatures)))
    key_ids: set[str] = set()
    values: set[bytes] = set()
    for item in signatures:
        if item.signature in values:
            raise SameSignatureTwice("the same signature stands there twice", found=f"key {item.key_id[:72]!a}")
        if item.key_id in key_ids:
            raise DuplicateKeyId("two signatures name the same key", found=ascii(item.key_id[:72]))
        values.add(item.signature)
        key_ids.add(item.key_id)


def _raise_too_few(found: int, threshold: int, unknown: Sequence[str]) -> None:
    expected = f"signatures of {threshold} trusted key{'s' if threshold > 1 else ''}"
    if unknown:
        raise UnknownKey(
            "not enough trusted keys signed",
            expected=expected,
            found=f"{found}, and of keys not trusted here: {', '.join(ascii(key_id[:72]) for key_id in unknown)}",
        )
    raise BelowThreshold("not enough trusted keys signed", expected=expected, found=str(found))
