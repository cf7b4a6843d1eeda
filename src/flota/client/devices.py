"""The management API's operations on devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flota.client.schemas import Device, DevicePage, Execution, ImportAnswer, ImportedDevice, Ping
from flota.client.wire import WireClient, segment
from flota.errors import PeerError

DEVICE_PAGE_SIZE: Final = 1000


class DeviceCalls(WireClient):
    """Single devices, their tokens, and what they are told beside their updates."""

    def add_device(
        self,
        name: str,
        type_name: str,
        *,
        mac: str | None = None,
        labels: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> Device:
        """Register an accepted device. The answer's `token` is shown this once; without one given, it is drawn."""
        body = {"name": name, "type": type_name, "mac": mac, "labels": dict(labels or {}), "token": token}
        return self._ask("POST", "/devices", Device, json=body)

    def import_devices(self, csv_text: str) -> list[ImportedDevice]:
        """Register many devices from CSV (`name,type,mac,token,labels`): all of them or, on any error, none."""
        return self._ask(
            "POST",
            "/devices/import",
            ImportAnswer,
            content=csv_text.encode(),
            headers={"content-type": "text/csv; charset=utf-8"},
        ).items

    def list_devices(
        self,
        *,
        type_name: str | None = None,
        state: str | None = None,
        select: str | None = None,
        text: str | None = None,
    ) -> list[Device]:
        """Return all devices that meet every given condition; `select` is e.g. `type=pump label.site=berlin`."""
        found: list[Device] = []
        after: int | None = 0
        while after is not None:
            params = {
                "type": type_name,
                "state": state,
                "select": select,
                "text": text,
                "after": after,
                "limit": DEVICE_PAGE_SIZE,
            }
            page = self._ask("GET", "/devices", DevicePage, params=params)
            found.extend(page.items)
            after = page.next
        return found

    def device(self, name: str) -> Device:
        """Return one device; raises `NotFound`."""
        return self._ask("GET", f"/devices/{segment(name)}", Device)

    def accept_device(self, name: str) -> Device:
        """Let a pending or refused device take part."""
        return self._ask("POST", f"/devices/{segment(name)}/accept", Device, json={})

    def refuse_device(self, name: str) -> Device:
        """Keep a device out."""
        return self._ask("POST", f"/devices/{segment(name)}/refuse", Device, json={})

    def new_device_token(self, name: str, *, token: str | None = None, overlap_s: int = 0) -> str:
        """Replace a device's token and return the new one.

        The old one stops working at once, or `overlap_s` seconds from now, or when the device has used the new one.
        """
        body = {"token": token, "overlap_s": overlap_s}
        answer = self._ask("POST", f"/devices/{segment(name)}/token", Device, json=body)
        if answer.token is None:
            raise PeerError("the server's answer has no token")
        return answer.token

    def set_labels(self, name: str, labels: Mapping[str, str]) -> Device:
        """Replace a device's labels."""
        return self._ask("POST", f"/devices/{segment(name)}/labels", Device, json={"labels": dict(labels)})

    def reboot_device(self, name: str) -> Device:
        """Send a connected Blynk device that it is to restart. Raises `Conflict` if it is not connected."""
        return self._ask("POST", f"/devices/{segment(name)}/reboot", Device, json={})

    def ping_device(self, name: str) -> Ping:
        """Ask a connected Blynk device for a sign of life. Raises `Conflict` if it is not connected."""
        return self._ask("POST", f"/devices/{segment(name)}/ping", Ping, json={})

    def redirect_device(self, name: str, to: str) -> Device:
        """Send a connected Blynk device to another MQTT endpoint, `HOST:PORT`. Raises `Conflict` if it is not there."""
        return self._ask("POST", f"/devices/{segment(name)}/redirect", Device, json={"to": to})

    def confirm_update(self, name: str) -> Execution:
        """Agree to the update that waits for the device's agreement. Raises `Conflict` if none does."""
        return self._ask("POST", f"/devices/{segment(name)}/confirm", Execution, json={})

    def remove_device(self, name: str) -> None:
        """Forget a device; its executions stay in the history."""
        self._send("DELETE", f"/devices/{segment(name)}")
