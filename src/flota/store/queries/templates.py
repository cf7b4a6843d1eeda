"""Provisioning templates: by which new things come into being."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.errors import Conflict, NotFound
from flota.fleet.devices import UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.things import ProvisioningTemplate
from flota.store.queries.device_types import DeviceTypeQueries
from flota.store.tables import device_types, provisioning_templates

_SELECT_TEMPLATE: Final = sa.select(provisioning_templates, device_types.c.name.label("type_name")).join(
    device_types, device_types.c.id == provisioning_templates.c.type_id
)


class TemplateQueries(DeviceTypeQueries):
    """What becomes of devices that show a claim certificate. A removed template keeps its row: certificates name it."""

    async def add_template(
        self,
        scope: Scope,
        name: str,
        type_name: str,
        *,
        thing_name: str,
        unknown_devices: UnknownDevices,
        now: datetime,
    ) -> ProvisioningTemplate:
        """Return a new template; raises `NotFound` for its type, `Conflict` if the name is taken."""
        device_type = await self.device_type(scope, type_name)
        template_id = await self._insert_unique(
            provisioning_templates,
            {
                "tenant_id": scope.tenant_id,
                "name": name,
                "type_id": device_type.id,
                "thing_name": thing_name,
                "unknown_devices": unknown_devices.value,
                "created_at": now,
            },
            Conflict("there is a provisioning template of this name", found=name, hint="Remove it first."),
        )
        details = {"type": type_name, "thing_name": thing_name, "unknown_devices": unknown_devices.value}
        self._audit(scope, "template.created", f"template:{name}", details, now=now)
        return ProvisioningTemplate(template_id, name, device_type.name, thing_name, unknown_devices, now)

    async def template(self, scope: Scope, name: str) -> ProvisioningTemplate:
        """Return the template called `name`; raises `NotFound`."""
        row = await self._row(
            _SELECT_TEMPLATE.where(
                provisioning_templates.c.tenant_id == scope.tenant_id,
                provisioning_templates.c.name == name,
                provisioning_templates.c.removed_at.is_(None),
            )
        )
        if row is None:
            raise NotFound("no such provisioning template", found=repr(name[:80]))
        return _template(row)

    async def list_templates(self, scope: Scope) -> Sequence[ProvisioningTemplate]:
        """Return the tenant's templates by name."""
        rows = await self._rows(
            _SELECT_TEMPLATE.where(
                provisioning_templates.c.tenant_id == scope.tenant_id, provisioning_templates.c.removed_at.is_(None)
            ).order_by(provisioning_templates.c.name)
        )
        return tuple(_template(row) for row in rows)


def _template(row: sa.Row[Any]) -> ProvisioningTemplate:
    return ProvisioningTemplate(
        id=row.id,
        name=row.name,
        type_name=row.type_name,
        thing_name=row.thing_name,
        unknown_devices=UnknownDevices(row.unknown_devices),
        created_at=row.created_at,
    )
