"""NVS partitions and signed images of vendors: our reading is that of the independent parser."""

from __future__ import annotations

import pytest

from flota.images.esp_app import walk_image
from flota.images.esp_nvs import VIAM_NAMESPACE, VIAM_VERSION_KEY, looks_like_nvs, parse_nvs, read_string
from flota.images.esp_nvs_writing import create_nvs, write_string
from flota.images.esp_secure_boot import UntrustedKey, find_signature_blocks, public_key_digest, require_signed
from tests.golden.vendor_data import vendor_bytes, vendor_json, vendor_names

pytestmark = pytest.mark.golden

SIGNED = "esp32/signed/bootloader_signed_v2_rsa.bin"
MULTI = "esp32/signed/bootloader_multi_signed_v2_rsa.bin"
P256 = "esp32/signed/bootloader_signed_v2_ecdsa256.bin"


@pytest.mark.parametrize("name", vendor_names("esp32/nvs/*.bin"))
def test_pages_and_items_are_those_of_the_independent_parser(name: str) -> None:
    data = vendor_bytes(name)
    expected = vendor_json("esp32/parsed.json")[name.removeprefix("esp32/")]
    partition = parse_nvs(data)
    assert looks_like_nvs(data)
    for page, wanted in zip(partition.pages, expected, strict=True):
        assert page.blank == (wanted == "EMPTY")
        if not page.blank:
            assert (hex(page.state), page.seq, hex(page.version)) == (
                wanted["state"],
                wanted["seq"],
                wanted["version"],
            )
            assert [(i.entry, i.namespace_index, hex(i.type), i.span, i.chunk, i.name) for i in page.items] == [
                (row["i"], row["ns"], row["type"], row["span"], row["chunk"], row["key"]) for row in wanted["items"]
            ]
            assert not page.damaged
    namespaces = {index: name.decode() for name, index in partition.namespaces.items()}
    for row in (row for page in expected if page != "EMPTY" for row in page["items"] if row["type"] == "0x21"):
        assert read_string(data, namespaces[row["ns"]], row["key"]) == row["value"]


def test_the_version_tag_of_micro_rdk_is_read_and_the_partition_made_from_it_is_the_same() -> None:
    data = vendor_bytes("esp32/nvs/generated_viam_ns_0x6000.bin")
    assert read_string(data, VIAM_NAMESPACE, VIAM_VERSION_KEY) == "v1.2.3-rc4"
    values = {VIAM_VERSION_KEY: "v1.2.3-rc4", "ROBOT_ID": "00000000-0000-0000-0000-000000000000"}
    assert create_nvs(0x6000, {VIAM_NAMESPACE: values}) == data
    assert read_string(write_string(data, VIAM_NAMESPACE, VIAM_VERSION_KEY, "v2"), VIAM_NAMESPACE, "ROBOT_ID")


@pytest.mark.parametrize("name", [SIGNED, MULTI, P256])
def test_signature_blocks_hold_and_their_key_digests_are_those_of_the_independent_parser(name: str) -> None:
    data = vendor_bytes(name)
    expected = vendor_json("esp32/parsed.json")[name.removeprefix("esp32/")]["sb_v2"]
    blocks = find_signature_blocks(data, walk_image(data).image_size)
    assert [(b.offset, b.key_digest) for b in blocks] == [(row["offset"], row["keydigest"]) for row in expected]
    assert all(block.verified for block in blocks)


def test_key_files_have_the_digests_of_the_blocks_that_they_made() -> None:
    rsa = public_key_digest(vendor_bytes("esp32/signed/rsa_secure_boot_signing_pubkey.pem"))
    second = public_key_digest(vendor_bytes("esp32/signed/rsa_secure_boot_signing_pubkey2.pem"))
    stranger = public_key_digest(vendor_bytes("esp32/signed/rsa_secure_boot_signing_pubkey4.pem"))
    p256 = public_key_digest(vendor_bytes("esp32/signed/ecdsa256_secure_boot_signing_pubkey.pem"))
    assert rsa.startswith("cb2791a371b0c032")
    assert p256.startswith("f35cc5dbdde67f94")
    for name, key in ((SIGNED, rsa), (MULTI, rsa), (MULTI, second), (P256, p256)):
        data = vendor_bytes(name)
        assert require_signed(data, walk_image(data).image_size, trusted=[key]).key_digest == key
        with pytest.raises(UntrustedKey):
            require_signed(data, walk_image(data).image_size, trusted=[stranger])
