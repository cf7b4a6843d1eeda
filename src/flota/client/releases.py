"""The management API's operations on releases."""

from __future__ import annotations

from datetime import datetime

from flota.client.schemas import Release, ReleasePage
from flota.client.wire import WireClient, segment


class ReleaseCalls(WireClient):
    """From a draft to what devices are offered, and back."""

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
