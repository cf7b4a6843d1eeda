"""What callers may send about things: every field named, bounded, and nothing else accepted."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from flota.fleet.devices import UnknownDevices
from flota.fleet.things import DEFAULT_THING_NAME, CertificatePurpose
from flota.server.api.management.inputs import DAY_S, CertificatePem, Input, Line, Name

DAYS_MAX: Final = 36_500

Csr = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]
Days = Annotated[int, Field(ge=1, le=DAYS_MAX)]


class ThingInput(Input):
    """Registers a device with a certificate for the key of `csr` (PEM); `days` None: to the end of 2049."""

    name: Name
    type: Name
    csr: Csr
    days: Days | None = None
    mac: Annotated[str, StringConstraints(max_length=40)] | None = None
    labels: dict[str, str] = Field(default={}, max_length=64)


class CertificateInput(Input):
    """One more certificate: for the key of `csr` (PEM), or `certificate` (PEM), which another authority issued.

    With `overlap_s` the device's other ones end so many seconds from now.
    """

    csr: Csr | None = None
    certificate: CertificatePem | None = None
    days: Days | None = None
    overlap_s: int | None = Field(default=None, ge=0, le=365 * DAY_S)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.csr is None) == (self.certificate is None):
            raise ValueError("give either csr or certificate")
        if self.certificate is not None and self.days is not None:
            raise ValueError("days are for a certificate that is made here")
        return self


class RevocationInput(Input):
    """Why, in one line, for the audit trail."""

    reason: Line = ""


class TemplateInput(Input):
    """Makes a provisioning template. `thing_name` has parameters of the device's request in braces.

    `unknown_devices`: what happens to names that nobody registered; `refuse` lets only registered ones in.
    """

    name: Name
    type: Name
    thing_name: Annotated[str, StringConstraints(min_length=1, max_length=256)] = DEFAULT_THING_NAME
    unknown_devices: UnknownDevices = UnknownDevices.HOLD


class ClaimInput(Input):
    """Makes a claim certificate for the key of `csr` (PEM)."""

    csr: Csr
    days: Days | None = None


class CertificateQuery(Input):
    """Which certificates to list."""

    purpose: CertificatePurpose | None = None
