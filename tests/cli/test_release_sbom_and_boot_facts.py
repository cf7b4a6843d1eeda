"""`flota release … --sbom`, `flota type … --bootloader-idf --secure-boot-key`, `flota image layout --type`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from flota.images.esp_secure_boot import public_key_digest
from tests.cli.conftest import Flota
from tests.cli.test_commands import TABLE
from tests.images.esp_samples import sample_app
from tests.images.sbom_samples import cyclonedx, spdx_2
from tests.images.signed_samples import p256_key, pem_of

pytestmark = pytest.mark.scenario


def test_an_sbom_goes_in_with_a_release_and_comes_out_byte_for_byte(flota: Flota, tmp_path: Path) -> None:
    firmware, listed, out = tmp_path / "fw.bin", tmp_path / "fw.cdx.json", tmp_path / "out.json"
    firmware.write_bytes(b"firmware with an SBOM")
    listed.write_bytes(cyclonedx("lwip", "mbedtls"))
    made = flota(
        "release", "create", firmware, "--type", "generic-linux", "--version", "7.0", "--sbom", listed
    )  # fmt: skip
    assert made.status == 0, made.err
    assert "sbom       CycloneDX 1.6, 2 components" in made.out
    digest = hashlib.sha256(listed.read_bytes()).hexdigest()
    assert digest in flota("release", "show", "generic-linux@7.0").out
    assert flota("release", "show", "generic-linux@7.0", "--json").json()["sbom"]["sha256"] == digest
    fetched = flota("release", "sbom", "generic-linux@7.0", "-o", out)
    assert (fetched.status, out.read_bytes()) == (0, listed.read_bytes())
    listed.write_bytes(spdx_2("lwip"))
    attached = flota("release", "sbom", "generic-linux@7.0", "--attach", listed)
    assert "fw.cdx.json, SPDX 2.3, 1 component\n" in attached.out


def test_a_file_that_is_no_sbom_is_refused_before_anything_is_uploaded(flota: Flota, tmp_path: Path) -> None:
    firmware, listed = tmp_path / "fw.bin", tmp_path / "sbom.spdx"
    firmware.write_bytes(b"never uploaded")
    listed.write_text("SPDXVersion: SPDX-2.2\n")
    refused = flota(
        "release", "create", firmware, "--type", "generic-linux", "--version", "7.1", "--sbom", listed
    )  # fmt: skip
    assert refused.status == 1
    assert "convert it to JSON" in refused.err
    assert "uploaded" not in refused.err
    assert flota("release", "sbom", "generic-linux@7.1", "-o", tmp_path / "x").status == 1
    assert flota("release", "sbom", "1", "-o", tmp_path / "x", "--attach", listed).status == 2


def test_shipping_again_with_the_same_sbom_is_done_once(flota: Flota, tmp_path: Path) -> None:
    firmware, listed, key = tmp_path / "fw.bin", tmp_path / "fw.spdx.json", tmp_path / "k.pem"
    firmware.write_bytes(b"shipped with an SBOM")
    listed.write_bytes(spdx_2("lwip", "mbedtls"))
    assert flota("key", "create", "-o", key).status == 0
    assert flota("device", "add", "with-sbom", "--type", "generic-linux").status == 0
    ship = (
        "ship", firmware, "--type", "generic-linux", "--version", "7.2", "--to", "with-sbom,", "--key", key,
        "--trust-key", "--no-wait", "--sbom", listed,
    )  # fmt: skip
    for _ in range(2):
        shipped = flota(*ship)
        assert shipped.status == 0, shipped.err
        assert "sbom       SPDX 2.3, 2 components" in shipped.out
    listed.write_bytes(spdx_2("another"))
    other = flota(*ship)
    assert (other.status, "does not change any more" in other.err) == (1, True)


def test_what_devices_boot_with_is_declared_by_version_key_file_or_digest(flota: Flota, tmp_path: Path) -> None:
    pub, raw = tmp_path / "boot.pub", tmp_path / "digest.bin"
    pub.write_text(pem_of(p256_key(1)))
    first, second = (public_key_digest(pem_of(p256_key(number))) for number in (1, 2))
    raw.write_bytes(bytes.fromhex(second))
    added = flota(
        "type", "add", "lock", "--board", "esp32-c3", "--bootloader-idf", "7.0", "--secure-boot-key", pub,
        "--secure-boot-key", raw,
    )  # fmt: skip
    assert added.status == 0, added.err
    assert "ESP-IDF 7.0" in added.out
    assert first in added.out
    assert second in added.out
    app = tmp_path / "app.bin"
    app.write_bytes(sample_app("esp32-c3"))
    refused = flota("release", "create", app, "--type", "lock", "--version", "1.2.3")
    assert refused.status == 1
    assert "start only signed images" in refused.err
    changed = flota("type", "set", "lock", "--bootloader-idf", "none", "--secure-boot-key", first, "--json").json()
    assert (changed["bootloader_idf_version"], changed["secure_boot_keys"]) == (None, [first])
    assert flota("type", "set", "lock", "--secure-boot-key", "none", "--json").json()["secure_boot_keys"] == []
    assert flota("release", "create", app, "--type", "lock", "--version", "1.2.3").status == 0
    assert "64 hex digits" in flota("type", "set", "lock", "--secure-boot-key", "no-such-key").err
    assert "no boot loader" in flota("type", "set", "lock", "--bootloader-idf", app).err


def test_the_layout_of_a_type_is_drawn_from_the_servers_table(flota: Flota, tmp_path: Path) -> None:
    table, picture = tmp_path / "partitions.csv", tmp_path / "layout.svg"
    table.write_text(TABLE)
    assert flota("type", "add", "valve", "--board", "esp32-c3", "--partitions", table).status == 0
    shown = flota("image", "layout", "--type", "valve", "--svg", picture)
    assert shown.status == 0, shown.err
    assert "0x1a0000" in shown.out
    assert "end 0x320000, size 0x400000" in shown.out
    assert "valve" in picture.read_text()
    regions = flota("image", "layout", "--type", "valve", "--json").json()["regions"]
    assert {
        "name": "ota_1",
        "kind": "app",
        "start": 0x1A0000,
        "size": 0x180000,
        "end": 0x320000,
        "used": None,
    } in regions
    assert "0x106000" in flota("image", "layout", "--type", "bw16").out
    assert flota("image", "layout", "--type", "valve", "--board", "esp32").status == 2
    missing = flota("image", "layout", "--type", "no-such-type")
    assert (missing.status, "no-such-type" in missing.err) == (1, True)
