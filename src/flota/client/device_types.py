"""The management API's operations on device types."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flota.client.schemas import DeviceType, DeviceTypePage
from flota.client.wire import WireClient, segment


class DeviceTypeCalls(WireClient):
    """Products: board, partition table, signers, what their boot loaders do, how they update."""

    def add_type(
        self,
        name: str,
        board: str,
        *,
        partition_csv: str | None = None,
        hardware_revision: str | None = None,
        version_from: str = "release",
        unknown_devices: str = "hold",
        signers: Sequence[str] = (),
        signature_threshold: int = 1,
        poll_interval_s: int = 300,
        description: str = "",
        confirm: bool = False,
        maintenance: str | None = None,
        download_ahead: bool = False,
        bootloader_idf_version: str | None = None,
        secure_boot_keys: Sequence[str] = (),
    ) -> DeviceType:
        """Declare a product. `signers` are public keys in PEM; `partition_csv` is the text of an ESP-IDF table.

        `secure_boot_keys` are the digests (hex) of the Secure Boot v2 keys that its devices trust.
        """
        body = {
            "name": name,
            "board": board,
            "partition_csv": partition_csv,
            "hardware_revision": hardware_revision,
            "version_from": version_from,
            "unknown_devices": unknown_devices,
            "signers": list(signers),
            "signature_threshold": signature_threshold,
            "poll_interval_s": poll_interval_s,
            "description": description,
            "confirm": confirm,
            "maintenance": maintenance,
            "download_ahead": download_ahead,
            "bootloader_idf_version": bootloader_idf_version,
            "secure_boot_keys": list(secure_boot_keys),
        }
        return self._ask("POST", "/types", DeviceType, json=body)

    def list_types(self) -> list[DeviceType]:
        """Return all device types, built-in ones included."""
        return self._ask("GET", "/types", DeviceTypePage).items

    def device_type(self, name: str) -> DeviceType:
        """Return one device type; raises `NotFound`."""
        return self._ask("GET", f"/types/{segment(name)}", DeviceType)

    def trust(self, type_name: str, public_keys: Sequence[str], *, threshold: int | None = None) -> DeviceType:
        """Add public keys (PEM) to a type's signers; `threshold` also changes how many a release needs."""
        body = {"public_keys": list(public_keys), "threshold": threshold}
        return self._ask("POST", f"/types/{segment(type_name)}/trust", DeviceType, json=body)

    def set_unknown_devices(self, type_name: str, policy: str) -> DeviceType:
        """Set what happens to devices that nobody registered: `accept`, `hold` or `refuse`."""
        return self._ask(
            "POST", f"/types/{segment(type_name)}/unknown-devices", DeviceType, json={"unknown_devices": policy}
        )

    def set_boot_facts(
        self,
        type_name: str,
        *,
        bootloader_idf_version: str | msgspec.UnsetType | None = msgspec.UNSET,
        secure_boot_keys: Sequence[str] | msgspec.UnsetType = msgspec.UNSET,
    ) -> DeviceType:
        """Say what a type's devices boot with; what is left out stays, None and an empty list clear a fact."""
        facts = {"bootloader_idf_version": bootloader_idf_version, "secure_boot_keys": secure_boot_keys}
        body = {name: value for name, value in facts.items() if value is not msgspec.UNSET}
        return self._ask("POST", f"/types/{segment(type_name)}/boot-facts", DeviceType, json=body)

    def set_update_rules(
        self,
        type_name: str,
        *,
        confirm: bool | None = None,
        maintenance: str | None = None,
        download_ahead: bool | None = None,
        poll_interval_s: int | None = None,
    ) -> DeviceType:
        """Change how a type's devices take updates; None leaves a rule, `none` as `maintenance` means at any time.

        `poll_interval_s`: how often they shall ask, in seconds.
        """
        body = {
            "confirm": confirm,
            "maintenance": maintenance,
            "download_ahead": download_ahead,
            "poll_interval_s": poll_interval_s,
        }
        return self._ask("POST", f"/types/{segment(type_name)}/update-rules", DeviceType, json=body)
