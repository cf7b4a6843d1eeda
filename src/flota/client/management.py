"""A typed, synchronous client of the management API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import httpx
import msgspec

from flota.client.problems import error_from_answer
from flota.client.schemas import (
    AccessToken,
    AccessTokenPage,
    Artifact,
    AuditEntry,
    AuditPage,
    Device,
    DevicePage,
    DeviceType,
    DeviceTypePage,
    Execution,
    ExecutionEvent,
    ExecutionEventPage,
    ExecutionPage,
    GatewayToken,
    GatewayTokenPage,
    ImportAnswer,
    ImportedDevice,
    Release,
    ReleasePage,
    Rollout,
    RolloutPage,
    Shipment,
    ViamLinks,
    WhoAmI,
)
from flota.client.things import ThingCalls
from flota.client.wire import WireClient, no_server, percent_encoded, segment
from flota.errors import InvalidInput, PeerError

UPLOAD_CHUNK_BYTES: Final = 256 * 1024
DEVICE_PAGE_SIZE: Final = 1000

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all) while a file goes up."""


class ManagementClient(ThingCalls, WireClient):
    """One server, one token. Use as a context manager, or call `close()`; see `WireClient`."""

    def whoami(self) -> WhoAmI:
        """Return whose token this is, and the server's version."""
        return self._ask("GET", "/whoami", WhoAmI)

    # artifacts

    def upload_artifact(self, path: Path, *, filename: str | None = None, progress: Progress | None = None) -> Artifact:
        """Stream the file at `path` into the artifact store; returns what was stored and read out of it.

        The same bytes twice are one artifact: then `already_stored` is set.
        """
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                return self._upload(_chunks(file, size, progress), size, filename or path.name)
        except OSError as error:
            raise InvalidInput(
                f"cannot read {path}", found=error.strerror or str(error), hint="Check the path and its permissions."
            ) from error

    def upload_bytes(self, data: bytes, filename: str) -> Artifact:
        """Like `upload_artifact`, for bytes in memory."""
        pieces = (data[start : start + UPLOAD_CHUNK_BYTES] for start in range(0, len(data), UPLOAD_CHUNK_BYTES))
        return self._upload(pieces, len(data), filename)

    def _upload(self, pieces: Iterable[bytes], size: int, filename: str) -> Artifact:
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(size),
            "x-filename": percent_encoded(filename, what="a file name", hint="Rename the file."),
        }
        return self._ask("POST", "/artifacts", Artifact, content=pieces, headers=headers)

    # device types

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
    ) -> DeviceType:
        """Change how a type's devices take updates; None leaves a rule, `none` as `maintenance` means at any time."""
        body = {"confirm": confirm, "maintenance": maintenance, "download_ahead": download_ahead}
        return self._ask("POST", f"/types/{segment(type_name)}/update-rules", DeviceType, json=body)

    # releases

    def create_release(
        self,
        type_name: str,
        version: str,
        artifact_sha256: str,
        *,
        notes: str = "",
        expires_at: datetime | None = None,
        filename: str | None = None,
        sbom_sha256: str | None = None,
        sbom_filename: str | None = None,
        certfile: str | None = None,
        filepath: str | None = None,
    ) -> Release:
        """Record a draft for a stored artifact; raises `Refused` with reasons if it does not fit the type's board.

        `filename` is what devices are told the file is called; None takes the name of the bytes' first upload.
        `sbom_sha256` is that of an uploaded SBOM (CycloneDX or SPDX as JSON), which goes with the release.
        `certfile` and `filepath` are what things call the certificate that they check the file with, and the file.
        """
        body = {
            "type": type_name,
            "version": version,
            "artifact": artifact_sha256,
            "notes": notes,
            "expires_at": expires_at.isoformat() if expires_at else None,
            "filename": filename,
            "sbom": {"artifact": sbom_sha256, "filename": sbom_filename} if sbom_sha256 else None,
        }
        body |= {key: value for key, value in (("certfile", certfile), ("filepath", filepath)) if value is not None}
        return self._ask("POST", "/releases", Release, json=body)

    def list_releases(self, *, type_name: str | None = None, state: str | None = None) -> list[Release]:
        """Return releases, oldest first."""
        return self._ask("GET", "/releases", ReleasePage, params={"type": type_name, "state": state}).items

    def release(self, reference: int | str) -> Release:
        """Return one release by its number, or by `TYPE@VERSION`; raises `NotFound`."""
        return self._ask("GET", f"/releases/{segment(str(reference))}", Release)

    def manifest(self, reference: int | str) -> bytes:
        """Return the exact bytes that are to be signed (docs/reference/manifest.md)."""
        return self._send("GET", f"/releases/{segment(str(reference))}/manifest").content

    def set_sbom(self, reference: int | str, sbom_sha256: str, *, filename: str | None = None) -> Release:
        """Give a draft an uploaded SBOM, or another one; raises `Conflict` once the release is signed."""
        body = {"artifact": sbom_sha256, "filename": filename}
        return self._ask("PUT", f"/releases/{segment(str(reference))}/sbom", Release, json=body)

    def sbom(self, reference: int | str) -> bytes:
        """Return a release's SBOM as it was uploaded; raises `NotFound` if it has none."""
        return self._send("GET", f"/releases/{segment(str(reference))}/sbom").content

    def add_signature(self, reference: int | str, key_id: str, algorithm: str, signature: str) -> Release:
        """Hand in a signature (base64) over the manifest; the server checks it against the type's signers."""
        body = {"key_id": key_id, "algorithm": algorithm, "signature": signature}
        return self._ask("POST", f"/releases/{segment(str(reference))}/signatures", Release, json=body)

    def publish(self, reference: int | str) -> Release:
        """Publish a release that has its signatures."""
        return self._ask("POST", f"/releases/{segment(str(reference))}/publish", Release, json={})

    def withdraw(self, reference: int | str, *, reason: str = "") -> Release:
        """Withdraw a release: nobody is offered it any more."""
        return self._ask("POST", f"/releases/{segment(str(reference))}/withdraw", Release, json={"reason": reason})

    # devices

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

    def remove_device(self, name: str) -> None:
        """Forget a device; its executions stay in the history."""
        self._send("DELETE", f"/devices/{segment(name)}")

    # rollouts and executions

    def create_rollout(
        self,
        release: int | str,
        *,
        devices: Sequence[str] | None = None,
        select: str | None = None,
        name: str | None = None,
        waves: str = "100%",
        abort_after: int = 1,
        silence_limit_s: int | None = None,
        attempts: int | None = None,
        count_inferred: bool | None = None,
        continuous: bool = False,
        urgency: str = "forced",
        forced_at: datetime | None = None,
        confirm: bool | None = None,
        maintenance: str | None = None,
    ) -> Rollout:
        """Offer a published release to the named devices, or to those that `select` picks now.

        `waves` lists rising totals, as counts or percentages of the whole: `2,50%,100%`.
        """
        body: dict[str, object] = {
            "release": str(release),
            "devices": list(devices) if devices is not None else None,
            "select": select,
            "name": name,
            "waves": waves,
            "abort_after_failures": abort_after,
        }
        limits = {
            "silence_limit_s": silence_limit_s,
            "attempts": attempts,
            "count_inferred": count_inferred,
            "continuous": continuous,
            "urgency": urgency if urgency != "forced" else None,
            "forced_at": forced_at.isoformat() if forced_at else None,
            "confirm": confirm,
            "maintenance": maintenance,
        }
        body.update({key: value for key, value in limits.items() if value is not None})
        return self._ask("POST", "/rollouts", Rollout, json=body)

    def viam_links(
        self,
        release: int | str | None = None,
        *,
        device: str | None = None,
        rollout: int | str | None = None,
        base_url: str | None = None,
    ) -> ViamLinks:
        """Return the service configuration of micro-RDK devices.

        With `device`, of that device; with `rollout`, of every device with an open execution in it; with neither, a
        shared one. `base_url` is the address that devices shall use, else the server chooses.
        """
        body = {
            "release": None if release is None else str(release),
            "device": device,
            "rollout": None if rollout is None else str(rollout),
            "base_url": base_url,
        }
        return self._ask("POST", "/viam/links", ViamLinks, json=body)

    def add_evidence(self, execution_id: int, *, last_online_at: datetime, source: str) -> Execution:
        """Say when another system last heard of a device; its inferred success becomes a reported one."""
        body = {"last_online_at": last_online_at.isoformat(), "source": source}
        return self._ask("POST", f"/executions/{execution_id}/evidence", Execution, json=body)

    def list_rollouts(self, *, open_only: bool = False) -> list[Rollout]:
        """Return rollouts, oldest first."""
        return self._ask("GET", "/rollouts", RolloutPage, params={"open": "true" if open_only else None}).items

    def rollout(self, reference: int | str) -> Rollout:
        """Return one rollout by its number or name; raises `NotFound`."""
        return self._ask("GET", f"/rollouts/{segment(str(reference))}", Rollout)

    def pause(self, reference: int | str, *, reason: str = "") -> Rollout:
        """Offer nothing more to devices that have not started yet."""
        return self._ask("POST", f"/rollouts/{segment(str(reference))}/pause", Rollout, json={"reason": reason})

    def resume(self, reference: int | str) -> Rollout:
        """Go on with a paused rollout."""
        return self._ask("POST", f"/rollouts/{segment(str(reference))}/resume", Rollout, json={})

    def cancel(self, reference: int | str, *, reason: str = "") -> Rollout:
        """End a rollout: queued executions are canceled, running ones are asked to stop."""
        return self._ask("POST", f"/rollouts/{segment(str(reference))}/cancel", Rollout, json={"reason": reason})

    def executions(self, rollout: int | str) -> list[Execution]:
        """Return the executions of a rollout, those of opened waves only."""
        return self._ask("GET", f"/rollouts/{segment(str(rollout))}/executions", ExecutionPage).items

    def shipment(self, rollout: int | str) -> Shipment:
        """Return a rollout as Blynk's console shows it; raises `NotFound`."""
        return self._ask("GET", f"/rollouts/{segment(str(rollout))}/shipment", Shipment)

    def device_executions(self, device: str) -> list[Execution]:
        """Return a device's executions, oldest first."""
        return self._ask("GET", f"/devices/{segment(device)}/executions", ExecutionPage).items

    def execution(self, execution_id: int) -> Execution:
        """Return one execution; raises `NotFound`."""
        return self._ask("GET", f"/executions/{execution_id}", Execution)

    def execution_events(self, execution_id: int) -> list[ExecutionEvent]:
        """Return the history of an execution, oldest first."""
        return self._ask("GET", f"/executions/{execution_id}/events", ExecutionEventPage).items

    # audit, events, tokens

    def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """Return up to `limit` audit entries with a sequence number above `after`, in order."""
        return self._ask("GET", "/audit", AuditPage, params={"after": after, "limit": limit}).items

    def last_audit_sequence(self) -> int:
        """Return the sequence number of the newest audit entry; 0 if there is none."""
        return self._ask("GET", "/audit", AuditPage, params={"after": 0, "limit": 1}).last

    def follow_events(self, after: int = 0) -> Iterator[AuditEntry]:
        """Yield audit entries above `after` as they come, without end; raises `PeerError` when the stream breaks."""
        decoder = msgspec.json.Decoder(AuditEntry)
        headers = {"accept": "text/event-stream", "last-event-id": str(after)}
        try:
            with self._http.stream("GET", "/events", headers=headers, timeout=httpx.Timeout(60.0)) as answer:
                if answer.status_code >= 400:
                    raise error_from_answer(answer.status_code, answer.read())
                data: list[str] = []
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        data.append(line[5:].removeprefix(" "))
                    elif not line and data:
                        yield decoder.decode("\n".join(data))
                        data = []
        except httpx.HTTPError as error:
            raise no_server(self.base_url, error) from error
        except msgspec.DecodeError as error:
            raise PeerError("the server's event is not what this client knows", found=str(error)) from error

    def list_tokens(self) -> list[AccessToken]:
        """Return the tenant's tokens, revoked ones included."""
        return self._ask("GET", "/tokens", AccessTokenPage).items

    def create_token(self, name: str, role: str, *, expires_at: datetime | None = None) -> AccessToken:
        """Make a token; its `secret` is shown this once."""
        body = {"name": name, "role": role, "expires_at": expires_at.isoformat() if expires_at else None}
        return self._ask("POST", "/tokens", AccessToken, json=body)

    def list_gateway_tokens(self) -> list[GatewayToken]:
        """Return the tenant's gateway tokens, revoked ones included."""
        return self._ask("GET", "/gateway-tokens", GatewayTokenPage).items

    def create_gateway_token(
        self,
        name: str,
        *,
        devices: Sequence[str] | None = None,
        select: str | None = None,
        all_devices: bool = False,
        type_name: str | None = None,
        expires_at: datetime | None = None,
    ) -> GatewayToken:
        """Make a gateway's token for named devices, those that `select` picks at any moment, or all of them.

        `type_name` is what devices become that nobody has registered. The `secret` is shown this once.
        """
        body = {
            "name": name,
            "devices": list(devices) if devices is not None else None,
            "select": select,
            "all_devices": all_devices,
            "type": type_name,
            "expires_at": expires_at.isoformat() if expires_at else None,
        }
        return self._ask("POST", "/gateway-tokens", GatewayToken, json=body)

    def revoke_gateway_token(self, token_id: int) -> None:
        """Make a gateway's token useless from now on."""
        self._send("DELETE", f"/gateway-tokens/{token_id}")

    def revoke_token(self, token_id: int) -> None:
        """Make a token useless from now on."""
        self._send("DELETE", f"/tokens/{token_id}")


def _chunks(file: BinaryIO, size: int, progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    while sent < size and (piece := file.read(min(UPLOAD_CHUNK_BYTES, size - sent))):
        yield piece
        sent += len(piece)
        if progress is not None:
            progress(sent, size)
