"""The file of `--trust FILE`: which signers a gateway or a virtual device believes, and how many of them have to agree.

It lives on the device's side and is never taken from the server. Source: docs/reference/manifest.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flota.errors import InvalidInput
from flota.trust.canonical_json import Members, parse_strict
from flota.trust.manifest import Manifest
from flota.trust.public_keys import PublicKey
from flota.trust.signatures import Signature, SignatureRefused, verify_manifest

TRUST_FILE_KIND: Final = "flota-trust"
TRUST_FILE_SCHEMA: Final = 1
TRUST_FILE_MAX_BYTES: Final = 64 * 1024
TRUSTED_KEYS_MAX: Final = 32
REVOKED_KEYS_MAX: Final = 256
SIGNERS_VERSION_MAX: Final = 2**31 - 1
DEVICE_TYPE_MAX_BYTES: Final = 128

_KEY_ID = re.compile(r"[0-9a-f]{64}\Z")


class BadTrustFile(InvalidInput):
    """The trust file is not well formed, or what it says cannot be met."""

    code = "bad-trust-file"


class NotForThisType(SignatureRefused):
    """The signatures are right, but these signers are believed for another device type only."""

    code = "signers-of-another-type"


@dataclass(frozen=True, slots=True)
class TrustedSigners:
    """Public keys (key id -> PEM) and how many different ones of them have to sign.

    `device_type` None: for every type. `version` counts the changes of the signers (0 = as first installed), `revoked`
    are key ids that must never be trusted again.
    """

    keys: Mapping[str, str]
    threshold: int = 1
    device_type: str | None = None
    version: int = 0
    revoked: frozenset[str] = frozenset()

    @classmethod
    def of(cls, public_pems: Iterable[str], threshold: int = 1) -> TrustedSigners:
        """Return the value for these public keys in PEM. Raises `BadTrustFile` or `BadKey`."""
        keys: dict[str, str] = {}
        for pem in public_pems:
            key = PublicKey.from_pem(pem)
            if key.key_id in keys:
                raise BadTrustFile("the same key is listed twice", found=key.key_id)
            keys[key.key_id] = key.pem
        if not 1 <= len(keys) <= TRUSTED_KEYS_MAX:
            raise BadTrustFile("wrong number of keys", expected=f"1 to {TRUSTED_KEYS_MAX}", found=str(len(keys)))
        if not 1 <= threshold <= len(keys):
            raise BadTrustFile("the threshold cannot be met", expected=f"1 to {len(keys)}", found=str(threshold))
        return cls(keys, threshold)

    def verify(self, manifest: bytes, signatures: Iterable[Signature]) -> Manifest:
        """Return the manifest in these bytes if enough of the signers signed it and are believed for its type.

        Raises `NotForThisType`, and what `verify_manifest` raises.
        """
        verified = verify_manifest(manifest, tuple(signatures), self.keys, self.threshold)
        if self.device_type not in (None, verified.device_type):
            raise NotForThisType(
                "these signers are believed for another device type",
                expected=self.device_type,
                found=verified.device_type,
            )
        return verified


def pack_trust_file(signers: TrustedSigners) -> bytes:
    """Return the file's content: indented JSON in UTF-8, for people to read and compare."""
    value: dict[str, object] = {"kind": TRUST_FILE_KIND, "schema": TRUST_FILE_SCHEMA}
    if signers.device_type is not None:
        value["device_type"] = signers.device_type
    if signers.version:
        value["version"] = signers.version
    value["threshold"] = signers.threshold
    value["keys"] = [{"key_id": key_id, "public_key": pem} for key_id, pem in signers.keys.items()]
    if signers.revoked:
        value["revoked"] = sorted(signers.revoked)
    return (json.dumps(value, indent=2) + "\n").encode("ascii")


def parse_trust_file(data: bytes) -> TrustedSigners:
    """Return what a trust file says. Raises `BadTrustFile`, `BadJson` or `BadKey`.

    A `key_id` in the file has to be the digest of the key beside it, so that nobody reads one and trusts the other.
    """
    members = Members(
        parse_strict(data, max_bytes=TRUST_FILE_MAX_BYTES, max_depth=3, what="the trust file"), "the trust file"
    )
    kind, schema = members.take("kind", str), members.take("schema", int)
    if (kind, schema) != (TRUST_FILE_KIND, TRUST_FILE_SCHEMA):
        raise BadTrustFile(
            "not a trust file that this version reads",
            expected=f"{TRUST_FILE_KIND} {TRUST_FILE_SCHEMA}",
            found=f"{kind[:64]!a} {schema}",
        )
    threshold = members.take("threshold", int)
    device_type, version = members.take_absent("device_type", str), members.take_absent("version", int) or 0
    revoked = members.take_absent("revoked", list) or []
    pems = [_parse_trusted_key(item) for item in members.take("keys", list)]
    members.finish()
    if device_type is not None and not is_device_type(device_type):
        raise BadTrustFile("the device type is empty or not plain text", found=ascii(device_type[:72]))
    signers = replace(
        TrustedSigners.of(pems, threshold), device_type=device_type, version=version, revoked=parse_revoked(revoked)
    )
    if not 0 <= version <= SIGNERS_VERSION_MAX:
        raise BadTrustFile("the version is out of range", expected=f"0 to {SIGNERS_VERSION_MAX}", found=str(version))
    if wrong := signers.revoked & signers.keys.keys():
        raise BadTrustFile("a key is both trusted and revoked", found=min(wrong))
    return signers


def is_device_type(text: str) -> bool:
    """Say whether a manifest could name this device type: 1 to 128 bytes, printable, no white space around it."""
    return bool(text) and text == text.strip() and text.isprintable() and len(text.encode()) <= DEVICE_TYPE_MAX_BYTES


def parse_revoked(items: Sequence[object]) -> frozenset[str]:
    """Return the key ids in a JSON array of at most 256, each once. Raises `BadTrustFile`."""
    if len(items) > REVOKED_KEYS_MAX:
        raise BadTrustFile("too many revoked keys", expected=f"at most {REVOKED_KEYS_MAX}", found=str(len(items)))
    revoked: set[str] = set()
    for item in items:
        if not isinstance(item, str) or not _KEY_ID.match(item) or item in revoked:
            raise BadTrustFile(
                "not the id of a revoked key", expected="64 lower-case hex digits, once", found=ascii(item)[:72]
            )
        revoked.add(item)
    return frozenset(revoked)


def _parse_trusted_key(item: object) -> str:
    members = Members(item, "a trusted key")
    key_id, pem = members.take("key_id", str), members.take("public_key", str)
    members.finish()
    key = PublicKey.from_pem(pem)
    if key.key_id != key_id:
        raise BadTrustFile("a trusted key's id is not its digest", expected=key.key_id, found=ascii(key_id[:72]))
    return key.pem
