"""The management API's operations on things: certificates, templates, claims, code signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flota.client.schemas import DeviceType, Release
from flota.client.thing_schemas import (
    ProvisioningTemplate,
    ProvisioningTemplatePage,
    RegisteredThing,
    ThingCertificate,
    ThingCertificatePage,
    ThingEndpoint,
)
from flota.client.wire import WireClient, segment


class ThingCalls(WireClient):
    """Whom certificates let in, and what devices check files with. Certificates and requests (CSR) are PEM."""

    def thing_endpoint(self) -> ThingEndpoint:
        """Return where things connect; raises `NotFound` if the server does not listen for them."""
        return self._ask("GET", "/thing-endpoint", ThingEndpoint)

    def add_thing(
        self,
        name: str,
        type_name: str,
        csr: str,
        *,
        days: int | None = None,
        mac: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> RegisteredThing:
        """Register an accepted device with a certificate for the key of `csr`; it gets no token."""
        body = {"name": name, "type": type_name, "csr": csr, "days": days, "mac": mac, "labels": dict(labels or {})}
        return self._ask("POST", "/things", RegisteredThing, json=body)

    def device_certificates(self, name: str) -> list[ThingCertificate]:
        """Return a device's certificates, revoked ones too, oldest first."""
        return self._ask("GET", f"/devices/{segment(name)}/certificates", ThingCertificatePage).items

    def certificates(self, *, purpose: str | None = None) -> list[ThingCertificate]:
        """Return all certificates, oldest first; `purpose` is `thing` or `claim`."""
        return self._ask("GET", "/certificates", ThingCertificatePage, params={"purpose": purpose}).items

    def issue_certificate(
        self, name: str, csr: str, *, days: int | None = None, overlap_s: int | None = None
    ) -> ThingCertificate:
        """Return a new certificate of a device; with `overlap_s` those that it has end so many seconds from now."""
        body = {"csr": csr, "days": days, "overlap_s": overlap_s}
        return self._ask("POST", f"/devices/{segment(name)}/certificates", ThingCertificate, json=body)

    def register_certificate(self, name: str, certificate: str, *, overlap_s: int | None = None) -> ThingCertificate:
        """Let a device in by a certificate that another authority issued: AWS, a factory, a secure element's maker."""
        body = {"certificate": certificate, "overlap_s": overlap_s}
        return self._ask("POST", f"/devices/{segment(name)}/certificates", ThingCertificate, json=body)

    def revoke_certificate(self, reference: str, *, reason: str = "") -> ThingCertificate:
        """Revoke a certificate for ever, by its fingerprint or at least 8 digits of its beginning."""
        return self._ask(
            "POST", f"/certificates/{segment(reference)}/revoke", ThingCertificate, json={"reason": reason}
        )

    def list_templates(self) -> list[ProvisioningTemplate]:
        """Return the provisioning templates by name."""
        return self._ask("GET", "/provisioning-templates", ProvisioningTemplatePage).items

    def add_template(
        self, name: str, type_name: str, *, thing_name: str = "{SerialNumber}", unknown_devices: str = "hold"
    ) -> ProvisioningTemplate:
        """Make a template; `thing_name` has parameters of the device's request in braces."""
        body = {"name": name, "type": type_name, "thing_name": thing_name, "unknown_devices": unknown_devices}
        return self._ask("POST", "/provisioning-templates", ProvisioningTemplate, json=body)

    def remove_template(self, name: str) -> None:
        """Remove a template and revoke its claim certificates."""
        self._send("DELETE", f"/provisioning-templates/{segment(name)}")

    def issue_claim(self, template: str, csr: str, *, days: int | None = None) -> ThingCertificate:
        """Return a new claim certificate that leads to a template."""
        body = {"csr": csr, "days": days}
        return self._ask("POST", f"/provisioning-templates/{segment(template)}/claims", ThingCertificate, json=body)

    # code signatures

    def trust_code_certificates(
        self, type_name: str, certificates: Sequence[str], *, allow_expired: bool = False
    ) -> DeviceType:
        """Say with which certificates a type's devices check files themselves."""
        body = {"certificates": list(certificates), "allow_expired": allow_expired}
        return self._ask("POST", f"/types/{segment(type_name)}/code-certificates", DeviceType, json=body)

    def distrust_code_certificate(self, type_name: str, fingerprint: str) -> DeviceType:
        """Say that a type's devices have a certificate no longer."""
        return self._ask("DELETE", f"/types/{segment(type_name)}/code-certificates/{segment(fingerprint)}", DeviceType)

    def add_file_signature(self, reference: int | str, signature: str, *, certificate: str | None = None) -> Release:
        """Hand in a signature (base64) over a release's whole file; the server checks it with the certificate."""
        body = {"signature": signature, "certificate": certificate}
        return self._ask("POST", f"/releases/{segment(str(reference))}/file-signatures", Release, json=body)
