"""The file of `--trust FILE`: which signers a gateway or a virtual device believes, and how many of them have to agree.

It lives on the device's side and is never taken from the server. Source: docs/reference/manifest.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput
from flota.trust.canonical_json import Members, parse_strict
from flota.trust.manifest import Manifest
from flota.trust.public_keys import PublicKey
from flota.trust.signatures import Signature, verify_manifest

TRUST_FILE_KIND: Final = "flota-trust"
TRUST_FILE_SCHEMA: Final = 1
TRUST_FILE_MAX_BYTES: Final = 64 * 1024
TRUSTED_KEYS_MAX: Final = 32


class BadTrustFile(InvalidInput):
    """The trust file is not well formed, or what it says cannot be met."""

    code = "bad-trust-file"


@dataclass(frozen=True, slots=True)
class TrustedSigners:
    """Public keys (key id -> PEM) and how many different ones of them have to sign."""

    keys: Mapping[str, str]
    threshold: int = 1

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
        """Return the manifest in these bytes if enough of the signers signed; else raise as `verify_manifest` does."""
        return verify_manifest(manifest, tuple(signatures), self.keys, self.threshold)


def pack_trust_file(signers: TrustedSigners) -> bytes:
    """Return the file's content: indented JSON in UTF-8, for people to read and compare."""
    value = {
        "kind": TRUST_FILE_KIND,
        "schema": TRUST_FILE_SCHEMA,
        "threshold": signers.threshold,
        "keys": [{"key_id": key_id, "public_key": pem} for key_id, pem in signers.keys.items()],
    }
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
    pems = [_parse_trusted_key(item) for item in members.take("keys", list)]
    members.finish()
    return TrustedSigners.of(pems, threshold)


def _parse_trusted_key(item: object) -> str:
    members = Members(item, "a trusted key")
    key_id, pem = members.take("key_id", str), members.take("public_key", str)
    members.finish()
    key = PublicKey.from_pem(pem)
    if key.key_id != key_id:
        raise BadTrustFile("a trusted key's id is not its digest", expected=key.key_id, found=ascii(key_id[:72]))
    return key.pem
