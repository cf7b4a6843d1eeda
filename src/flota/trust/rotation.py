"""New signers for old: the signed document that changes whom a device or gateway believes. Pure.

The rules, in the order in which they are checked (they are those of a TUF root):

1. Enough of the *old* keys signed the document, by the old threshold. Nothing of it is parsed before.
2. It is for the same device type, and its version is exactly one higher: no going back, no skipping.
3. What was revoked stays revoked, and no revoked key is among the new ones.
4. Enough of the *new* keys signed it, by the new threshold: nobody can be locked out by keys that no one has.

Source: docs/reference/code-signing.md; theupdateframework/specification:tuf-spec.md 5.3.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flota.errors import InvalidInput, Refused
from flota.trust.canonical_json import Members, NotCanonical, pack_canonical, parse_strict
from flota.trust.public_keys import PublicKey
from flota.trust.signatures import (
    BelowThreshold,
    KeyIdMismatch,
    SameKeyUnderTwoIds,
    Signature,
    UnknownKey,
    check_threshold,
    parse_signatures,
    signatures_as_json,
)
from flota.trust.trust_file import (
    SIGNERS_VERSION_MAX,
    TRUSTED_KEYS_MAX,
    BadTrustFile,
    TrustedSigners,
    is_device_type,
    parse_revoked,
)

SIGNERS_KIND: Final = "flota-signers"
SIGNERS_SCHEMA: Final = 1
SIGNERS_MAX_BYTES: Final = 64 * 1024
ROTATION_KIND: Final = "flota-rotation"
ROTATION_SCHEMA: Final = 1
ROTATION_MAX_BYTES: Final = 128 * 1024
ROTATIONS_MAX: Final = 256
"""Steps that are followed in one go (as python-tuf: ngclient/config.py, max_root_rotations)."""


class BadSigners(InvalidInput):
    """The document of signers, or the file that carries it, is not well formed."""

    code = "bad-signers"


class RotationRefused(Refused):
    """The signers must not be replaced by these; each subclass is one reason."""

    code = "rotation-refused"


class OldThresholdNotMet(RotationRefused):
    """Too few of the keys that are trusted now signed."""

    code = "rotation-old-threshold"


class NewThresholdNotMet(RotationRefused):
    """Too few of the keys that shall be trusted signed."""

    code = "rotation-new-threshold"


class SignersRollback(RotationRefused):
    """The version is not above the present one."""

    code = "rotation-rollback"


class SignersVersionSkipped(RotationRefused):
    """The version is more than one above the present one; the steps between are missing."""

    code = "rotation-version-skipped"


class SignersForAnotherType(RotationRefused):
    """The signers are for another device type."""

    code = "rotation-wrong-device-type"


class RevokedKey(RotationRefused):
    """A revoked key shall be trusted again, or signed."""

    code = "rotation-revoked-key"


class RevocationForgotten(RotationRefused):
    """A key that is revoked now would not be any more."""

    code = "rotation-revocation-forgotten"


@dataclass(frozen=True, slots=True)
class Rotation:
    """`document`: the canonical bytes of the new signers; `signatures` over exactly these, by old and new keys."""

    document: bytes
    signatures: tuple[Signature, ...] = ()

    def signed(self, signature: Signature) -> Rotation:
        """Return the rotation with one more signature; one of the same key is replaced."""
        others = tuple(item for item in self.signatures if item.key_id != signature.key_id)
        return replace(self, signatures=(*others, signature))


def next_signers(
    trusted: TrustedSigners,
    *,
    add: Iterable[str] = (),
    remove: Iterable[str] = (),
    revoke: Iterable[str] = (),
    threshold: int | None = None,
) -> TrustedSigners:
    """Return the signers that shall follow `trusted`, one version up.

    `add` are public keys in PEM; `remove` and `revoke` key ids. Removed keys may come back, revoked ones never, and a
    key that was never trusted may be revoked too. Raises `BadSigners`, `BadTrustFile`, `BadKey` or `RevokedKey`.
    """
    added = {key.key_id: key.pem for key in map(PublicKey.from_pem, add)}
    removed, revoked = frozenset(remove), parse_revoked(sorted(trusted.revoked | frozenset(revoke)))
    if unknown := removed - trusted.keys.keys():
        raise BadSigners("a key that shall go is not trusted", found=min(unknown)[:72])
    if known := added.keys() & trusted.keys.keys():
        raise BadSigners("a key that shall come is trusted already", found=min(known))
    if wrong := added.keys() & revoked:
        raise RevokedKey("a revoked key cannot be trusted again", found=min(wrong))
    kept = [pem for key_id, pem in trusted.keys.items() if key_id not in removed | revoked]
    signers = TrustedSigners.of([*kept, *added.values()], trusted.threshold if threshold is None else threshold)
    return replace(signers, device_type=trusted.device_type, version=trusted.version + 1, revoked=revoked)


def pack_signers(signers: TrustedSigners) -> bytes:
    """Return the bytes that are signed: canonical JSON, keys sorted by id."""
    return pack_canonical(
        {
            "kind": SIGNERS_KIND,
            "schema": SIGNERS_SCHEMA,
            "device_type": signers.device_type,
            "version": signers.version,
            "threshold": signers.threshold,
            "keys": [{"key_id": key_id, "public_key": signers.keys[key_id]} for key_id in sorted(signers.keys)],
            "revoked": sorted(signers.revoked),
        }
    )


def parse_signers(document: bytes) -> TrustedSigners:
    """Return the signers in a document. Checks no signature: for that, `accept_rotation`.

    Raises `BadJson`, `BadSigners`, `BadTrustFile`, `BadKey`, `SameKeyUnderTwoIds`, `KeyIdMismatch` or `RevokedKey`.
    """
    members = _members(document, SIGNERS_MAX_BYTES, "the signers", SIGNERS_KIND, SIGNERS_SCHEMA)
    device_type = members.take_optional("device_type", str)
    if device_type is not None and not is_device_type(device_type):
        raise BadSigners("the device type is empty or not plain text", found=ascii(device_type[:72]))
    version = members.take("version", int)
    if not 1 <= version <= SIGNERS_VERSION_MAX:
        raise BadSigners("the version is out of range", expected=f"1 to {SIGNERS_VERSION_MAX}", found=str(version))
    threshold, items = members.take("threshold", int), members.take("keys", list)
    revoked = parse_revoked(members.take("revoked", list))
    members.finish()
    if not 1 <= len(items) <= TRUSTED_KEYS_MAX:
        raise BadTrustFile("wrong number of keys", expected=f"1 to {TRUSTED_KEYS_MAX}", found=str(len(items)))
    keys = _parse_keys(items)
    if wrong := revoked & keys.keys():
        raise RevokedKey("a key is both trusted and revoked", found=min(wrong))
    signers = replace(
        TrustedSigners.of(keys.values(), threshold), device_type=device_type, version=version, revoked=revoked
    )
    if pack_signers(signers) != document:
        raise NotCanonical("the signers are not in their canonical spelling")
    return signers


def accept_rotation(trusted: TrustedSigners, rotation: Rotation) -> TrustedSigners:
    """Return the new signers if the rotation follows from `trusted` by all rules of this module.

    Raises a subclass of `RotationRefused` or `SignatureRefused` (a wrong or doubled signature), `BadSignatures`, or
    what `parse_signers` raises.
    """
    if wrong := {item.key_id for item in rotation.signatures} & trusted.revoked:
        raise RevokedKey(
            "a revoked key signed",
            found=min(wrong),
            hint="A rotation that revoked one of its own signers is refused like this when it is applied again.",
        )
    try:
        check_threshold(rotation.document, rotation.signatures, trusted.keys, trusted.threshold)
    except (BelowThreshold, UnknownKey) as error:
        raise OldThresholdNotMet(
            "not enough of the keys trusted now signed", expected=error.expected, found=error.found
        ) from error
    new = parse_signers(rotation.document)
    _check_follows(trusted, new)
    try:
        check_threshold(rotation.document, rotation.signatures, new.keys, new.threshold)
    except (BelowThreshold, UnknownKey) as error:
        raise NewThresholdNotMet(
            "not enough of the new keys signed", expected=error.expected, found=error.found
        ) from error
    return new


def accept_rotations(trusted: TrustedSigners, rotations: Sequence[Rotation]) -> TrustedSigners:
    """Return the signers after all rotations, in the given order (at most 256); all are accepted, or it raises."""
    if len(rotations) > ROTATIONS_MAX:
        raise BadSigners("too many rotations at once", expected=f"at most {ROTATIONS_MAX}", found=len(rotations))
    for rotation in rotations:
        trusted = accept_rotation(trusted, rotation)
    return trusted


def missing_signatures(trusted: TrustedSigners, rotation: Rotation) -> tuple[int, int]:
    """Return how many signatures of old and of new keys are still missing, by name only: none is verified here."""
    named = {item.key_id for item in rotation.signatures}
    new = parse_signers(rotation.document)
    old_left = trusted.threshold - len(named & trusted.keys.keys())
    new_left = new.threshold - len(named & new.keys.keys())
    return max(0, old_left), max(0, new_left)


def pack_rotation(rotation: Rotation) -> bytes:
    """Return the file that carries a rotation: indented JSON with the document in base64 and the signatures."""
    value = {
        "kind": ROTATION_KIND,
        "schema": ROTATION_SCHEMA,
        "document": base64.b64encode(rotation.document).decode("ascii"),
        "signatures": json.loads(signatures_as_json(rotation.signatures)),
    }
    return (json.dumps(value, indent=2) + "\n").encode("ascii")


def parse_rotation(data: bytes) -> Rotation:
    """Return the rotation in a file of at most 128 KiB, believing nothing.

    Raises `BadJson`, `BadSigners` or `BadSignatures`.
    """
    members = _members(data, ROTATION_MAX_BYTES, "the rotation", ROTATION_KIND, ROTATION_SCHEMA)
    encoded, items = members.take("document", str), members.take("signatures", list)
    members.finish()
    try:
        document = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise BadSigners("the document in a rotation is not base64", found=ascii(encoded[:40])) from error
    return Rotation(document, parse_signatures(json.dumps(items)))


def _check_follows(trusted: TrustedSigners, new: TrustedSigners) -> None:
    if new.device_type != trusted.device_type:
        raise SignersForAnotherType(
            "the signers are for another device type",
            expected=trusted.device_type or "every type",
            found=new.device_type or "every type",
        )
    if new.version <= trusted.version:
        raise SignersRollback(
            "the signers are not newer than the present ones",
            expected=f"version {trusted.version + 1}",
            found=f"version {new.version}",
        )
    if new.version != trusted.version + 1:
        raise SignersVersionSkipped(
            "signers between the present ones and these are missing",
            expected=f"version {trusted.version + 1}",
            found=f"version {new.version}",
            hint="Apply the rotations one after the other, oldest first.",
        )
    if back := new.keys.keys() & trusted.revoked:
        raise RevokedKey("a revoked key shall be trusted again", found=min(back))
    if forgotten := trusted.revoked - new.revoked:
        raise RevocationForgotten("a revoked key is not listed any more", found=min(forgotten))


def _parse_keys(items: Sequence[object]) -> Mapping[str, str]:
    keys: dict[str, str] = {}
    for item in items:
        members = Members(item, "a signer")
        key_id, pem = members.take("key_id", str), members.take("public_key", str)
        members.finish()
        key = PublicKey.from_pem(pem)
        if key.key_id in keys:
            raise SameKeyUnderTwoIds("one key is listed twice", found=f"{key.key_id} and {key_id[:72]!a}")
        keys[key.key_id] = key.pem
        if key_id != key.key_id:
            raise KeyIdMismatch("a signer's id is not its key's digest", expected=key.key_id, found=ascii(key_id[:72]))
    return keys


def _members(data: bytes, max_bytes: int, what: str, kind: str, schema: int) -> Members:
    members = Members(parse_strict(data, max_bytes=max_bytes, max_depth=3, what=what), what)
    found = members.take("kind", str), members.take("schema", int)
    if found != (kind, schema):
        raise BadSigners(
            f"not {what} that this version reads",
            expected=f"{kind} {schema}",
            found=f"{found[0][:64]!a} {found[1]}",
        )
    return members
