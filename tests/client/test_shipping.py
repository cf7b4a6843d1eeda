"""Nobody signs what was not meant."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flota.client.shipping import check_manifest, digests_of_file
from flota.digests import digests_of
from flota.errors import InvalidInput, Refused
from flota.trust.manifest import Manifest, ManifestComponent

DIGESTS = digests_of(b"firmware")
MANIFEST = Manifest(
    device_type="pump",
    board="esp32-c3",
    hardware_revision=None,
    version="2.0",
    sequence=3,
    expires_at=None,
    components=(ManifestComponent("app", "raw", DIGESTS.size, DIGESTS.sha256),),
    issued_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def test_a_manifest_of_what_was_meant_is_signed() -> None:
    check_manifest(MANIFEST, type_name="pump", version="2.0", digests=DIGESTS)
    check_manifest(MANIFEST, type_name="pump", version=" 2.0 ", digests=None)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"device_type": "valve"}, "device type"),
        ({"version": "1.0"}, "version"),
        ({"components": (ManifestComponent("app", "raw", DIGESTS.size, "0" * 64),)}, "SHA-256"),
        ({"components": (ManifestComponent("app", "raw", 9, DIGESTS.sha256),)}, "size"),
        ({"components": (*MANIFEST.components, ManifestComponent("more", "raw", 1, "0" * 64))}, "components"),
    ],
)
def test_a_manifest_of_anything_else_is_not_signed(change: dict[str, object], word: str) -> None:
    other = dataclasses.replace(MANIFEST, **change)  # type: ignore[arg-type]
    with pytest.raises(Refused, match=word):
        check_manifest(other, type_name="pump", version="2.0", digests=DIGESTS)


def test_a_local_file_is_read_or_the_error_says_why(tmp_path: Path) -> None:
    path = tmp_path / "app.bin"
    with pytest.raises(InvalidInput, match=r"app\.bin"):
        digests_of_file(path)
    path.touch()
    with pytest.raises(InvalidInput, match="empty"):
        digests_of_file(path)
    path.write_bytes(b"firmware")
    assert digests_of_file(path) == DIGESTS
