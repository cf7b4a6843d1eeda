"""What the management API answers about things, as typed values (docs/reference/api.md)."""

from __future__ import annotations

from datetime import datetime

from flota.client.schemas import Answer, Device


class ThingCertificate(Answer, frozen=True, kw_only=True):
    """A client certificate that is known. `status` is `ACTIVE`, `PENDING_ACTIVATION` or `REVOKED`.

    `device` is None for claims, which lead to `template`, and for those that wait for their thing. `ends_at`: it was
    replaced. `certificate` is PEM.
    """

    fingerprint: str
    purpose: str
    status: str
    issued_here: bool
    subject: str
    not_before: datetime
    not_after: datetime
    created_at: datetime
    certificate: str
    device: str | None
    template: str | None
    ends_at: datetime | None

    def state_in_words(self, *, now: datetime) -> str:
        """Return what people need to know: active, expired, replaced or revoked."""
        if self.status == "ACTIVE" and now >= self.not_after:
            return "expired"
        if self.status == "ACTIVE" and self.ends_at is not None:
            return "replaced" if now >= self.ends_at else f"ends {self.ends_at.isoformat(' ', 'seconds')}"
        return self.status.lower().replace("_", " ")


class ThingCertificatePage(Answer, frozen=True, kw_only=True):
    """A listing of certificates."""

    items: list[ThingCertificate]


class RegisteredThing(Answer, frozen=True, kw_only=True):
    """A device that was registered with a certificate of its own."""

    device: Device
    certificate: ThingCertificate


class ThingEndpoint(Answer, frozen=True, kw_only=True):
    """Where things connect. `root_ca` (PEM) is what they trust the server by; None if only its operator knows."""

    host: str
    port: int
    root_ca: str | None


class ProvisioningTemplate(Answer, frozen=True, kw_only=True):
    """What becomes of a device that shows a claim certificate."""

    name: str
    type: str
    thing_name: str
    unknown_devices: str
    created_at: datetime


class ProvisioningTemplatePage(Answer, frozen=True, kw_only=True):
    """A listing of templates."""

    items: list[ProvisioningTemplate]
