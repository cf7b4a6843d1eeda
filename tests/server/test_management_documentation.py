"""docs/reference/api.md and cli.md say what the code does."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from flota.fleet.scope import Role
from flota.server.api.management import build_management_api
from flota.server.api.management.guard import GuardedRoute
from flota.server.auth import PERMISSIONS
from tests.server.management_api import an_api

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


async def test_every_operation_stands_in_the_reference_with_its_permission_and_role(tmp_path: Path) -> None:
    page = (REFERENCE / "api.md").read_text()
    async with an_api(tmp_path) as api:
        application = build_management_api(api.context)
    for route in application.routes:
        if isinstance(route, GuardedRoute):
            role = next(role for role in Role if route.permission in PERMISSIONS[role])
            for method in route.methods:
                assert f"| `{method} {route.path}` | `{route.permission}` | {role} |" in page


@pytest.mark.parametrize("noun", ["type", "release", "device", "rollout", "token", "audit"])
def test_every_command_stands_in_the_reference(noun: str) -> None:
    page = (REFERENCE / "cli.md").read_text()
    application = importlib.import_module(f"flota.cli.{noun}").app
    for command in application.registered_commands:
        name = command.name or command.callback.__name__
        assert re.search(rf"^flota {noun} {name}\b", page, re.MULTILINE), f"flota {noun} {name}"
