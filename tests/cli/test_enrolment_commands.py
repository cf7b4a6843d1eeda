"""Gateway tokens, expiry, rotation and rules for updates: from the command line to the wire."""

from __future__ import annotations

import httpx
import pytest

from tests.cli.conftest import Flota, Server


def poll(server: Server, device: str, secret: str, scheme: str = "GatewayToken") -> int:
    url = f"{server.url}/DEFAULT/controller/v1/{device}"
    return httpx.get(url, headers={"authorization": f"{scheme} {secret}"}, trust_env=False).status_code


def test_a_gateways_token_from_its_making_to_its_end(flota: Flota, server: Server) -> None:
    for name in ("g-1", "g-2"):
        assert flota("device", "add", name, "--type", "generic-linux").status == 0
    made = flota("token", "create", "--gateway", "hall", "--devices", "g-1, g-9", "--expires", "30d", "--json").json()
    assert (made["device_count"], made["all_devices"], made["selector"]) == (2, False, None)
    assert made["expires_at"] is not None
    assert [poll(server, name, made["secret"]) for name in ("g-1", "g-2", "g-9")] == [200, 401, 401]
    listed = flota("token", "list", "--gateway").out
    assert "hall" in listed
    assert "2 devices" in listed
    assert made["secret"] not in listed
    assert flota("token", "create", "--gateway", "hall", "--select", "all").status == 1  # the name is taken
    assert flota("token", "revoke", "--gateway", made["id"]).status == 0
    assert poll(server, "g-1", made["secret"]) == 401
    assert flota("token", "revoke", "--gateway", 99_999).status == 1


def test_a_token_for_all_devices_is_made_with_a_warning(flota: Flota, server: Server) -> None:
    flota("type", "set", "generic-linux", "--unknown-devices", "hold")
    made = flota("token", "create", "--gateway", "any", "--all-devices", "--type", "generic-linux")
    assert made.status == 0
    assert "any device" in made.err
    secret = next(line.split()[1] for line in made.out.splitlines() if line.startswith("secret"))
    assert poll(server, "newcomer", secret) == 200
    assert "newcomer" in flota("device", "list", "--state", "pending").out
    assert flota("device", "accept", "newcomer").status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gateway", "x"),
        ("--gateway", "x", "--devices", "a", "--all-devices"),
        ("--gateway", "x", "--all-devices", "--role", "admin"),
        ("name", "--devices", "a"),
        (),
        ("name", "--expires", "soon"),
    ],
)
def test_what_does_not_go_together_is_wrong_use(flota: Flota, arguments: tuple[str, ...]) -> None:
    refused = flota("token", "create", *arguments)
    assert refused.status in (1, 2)
    assert refused.err
    assert "Traceback" not in refused.err


def test_a_token_that_has_expired_is_refused_at_its_making_and_shown_with_its_end(flota: Flota) -> None:
    made = flota("token", "create", "short", "--role", "viewer", "--expires", "12h", "--json").json()
    assert made["expires_at"] > made["created_at"]
    assert "EXPIRES" in flota("token", "list").out


def test_a_devices_token_is_rotated_without_a_gap(flota: Flota, server: Server) -> None:
    old = flota("device", "add", "r-1", "--type", "generic-linux", "--json").json()["token"]
    new = flota("device", "token", "rotate", "r-1", "--overlap", "7d").out.strip()
    assert new != old
    assert poll(server, "r-1", old, "TargetToken") == 200
    assert poll(server, "r-1", new, "TargetToken") == 200
    assert poll(server, "r-1", old, "TargetToken") == 401
    last = flota("device", "token", "r-1").out.strip()
    assert poll(server, "r-1", new, "TargetToken") == 401
    assert poll(server, "r-1", last, "TargetToken") == 200
    assert flota("device", "token", "turn", "r-1").status == 2


def test_a_type_says_when_and_how_its_devices_update(flota: Flota) -> None:
    made = flota(
        "type", "add", "night", "--board", "generic-linux", "--maintenance", "Sat,sun 02:00 180m Europe/Berlin"
    )
    assert made.status == 0
    shown = flota("type", "show", "night", "--json").json()
    assert (shown["confirm"], shown["download_ahead"]) == (False, False)
    assert shown["maintenance"] is not None
    assert flota("type", "set", "night", "--confirm", "--download-ahead").status == 0
    text = flota("type", "show", "night").out
    assert "asks first" in text
    assert "02:00" in text
    changed = flota("type", "set", "night", "--maintenance", "none", "--no-confirm", "--json").json()
    assert (changed["maintenance"], changed["confirm"], changed["download_ahead"]) == (None, False, True)
    assert flota("type", "set", "night", "--poll-interval", "60", "--json").json()["poll_interval_s"] == 60
    assert "60 s" in flota("type", "show", "night").out
    assert flota("type", "set", "night", "--poll-interval", "0").status == 2
    refused = flota("type", "set", "night", "--maintenance", "whenever")
    assert refused.status == 1
    assert "sat,sun 02:00" in refused.err


def test_a_rollout_says_how_urgent_it_is(flota: Flota) -> None:
    refused = flota("rollout", "create", "--release", "x@1", "--devices", "a", "--urgency", "timeforced")
    assert refused.status != 0
    assert "Traceback" not in refused.err
