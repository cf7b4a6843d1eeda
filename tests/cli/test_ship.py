"""From a file to devices in one command, and each step of it on its own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from flota.cli.connection import comma_list
from tests.cli.conftest import DdiDevice, Flota, Result, Server

pytestmark = pytest.mark.scenario


@pytest.fixture
def key(flota: Flota, tmp_path: Path) -> Path:
    path = tmp_path / "release.pem"
    assert flota("key", "create", "-o", path).status == 0
    return path


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "app.bin"
    path.write_bytes(text.encode() * 100)
    return path


def _devices(flota: Flota, type_name: str, *names: str) -> dict[str, str]:
    assert flota("type", "add", type_name, "--board", "generic-linux").status == 0
    tokens = {}
    for name in names:
        added = flota("device", "add", name, "--type", type_name, "--json")
        assert added.status == 0, added.err
        tokens[name] = added.json()["token"]
    return tokens


def test_ship_follows_the_rollout_until_every_device_reports_success(
    flota: Flota, server: Server, key: Path, tmp_path: Path
) -> None:
    tokens = _devices(flota, "happy", "happy-1", "happy-2")
    with (
        DdiDevice(server, "happy-1", tokens["happy-1"]) as first,
        DdiDevice(server, "happy-2", tokens["happy-2"]) as second,
    ):
        shipped = flota(
            "ship", _file(tmp_path, "v2"), "--type", "happy", "--version", "2.0", "--to", "type=happy",
            "--key", key, "--trust-key", "--waves", "1,100%",
        )  # fmt: skip
    assert shipped.status == 0, shipped.err + shipped.out
    steps = [line.split()[0] for line in shipped.out.splitlines()]
    assert steps[:6] == ["trusted", "artifact", "release", "signed", "published", "rollout"]
    assert "rollout happy-2.0: succeeded, 2 of 2 devices run 2.0" in shipped.out
    assert first.installed == second.installed == ["2.0"]
    assert "happy-1  SUCCEEDED" in shipped.out


def test_ship_exits_1_with_the_reason_when_the_rollout_aborts(
    flota: Flota, server: Server, key: Path, tmp_path: Path
) -> None:
    tokens = _devices(flota, "sad", "sad-1", "sad-2", "sad-3")
    with DdiDevice(server, "sad-1", tokens["sad-1"], result="failure"):
        shipped = flota(
            "ship", _file(tmp_path, "v3"), "--type", "sad", "--version", "3.0", "--to", "sad-1,sad-2,sad-3",
            "--key", key, "--trust-key", "--waves", "1,100%",
        )  # fmt: skip
    assert shipped.status == 1, shipped.out
    assert "rollout sad-3.0: aborted, 0 of 3 devices run 3.0" in shipped.out
    assert "reason: " in shipped.err
    assert "sad-1  FAILED" in shipped.err
    assert "self-test says so" in shipped.err + shipped.out
    assert "2 devices in later waves were never touched" in shipped.err
    assert flota("rollout", "watch", "sad-3.0").status == 1


def test_an_untrusted_key_is_refused_before_anything_is_sent(flota: Flota, key: Path, tmp_path: Path) -> None:
    _devices(flota, "careful", "careful-1")
    arguments = ("ship", _file(tmp_path, "x"), "--type", "careful", "--version", "1", "--to", "careful-1", "--key", key)
    refused = flota(*arguments)
    assert refused.status == 1
    assert "not trusted" in refused.err
    assert "flota type trust careful" in refused.err
    assert flota("release", "list", "--type", "careful", "--json").json() == []
    assert flota("type", "trust", "careful", "--key", key.with_suffix(".pub")).status == 0
    assert flota(*arguments, "--no-wait").status == 0


def test_a_release_is_called_like_the_file_it_was_made_of(flota: Flota, key: Path, tmp_path: Path) -> None:
    _devices(flota, "names", "names-1")
    for number, name in enumerate(("firmware.bin", "update.swu"), 1):
        path = tmp_path / name
        path.write_bytes(b"bytes under two names")
        made = flota("release", "create", path, "--type", "names", "--version", f"{number}.0")
        assert made.status == 0, made.err
        assert name in flota("release", "show", f"names@{number}.0").out
    (tmp_path / "third.swu").write_bytes(b"bytes under two names")
    shipping = ("--type", "names", "--version", "3.0", "--to", "all", "--key", key, "--trust-key", "--no-wait")
    assert flota("ship", tmp_path / "third.swu", *shipping).status == 0
    listed = flota("release", "list", "--type", "names", "--json").json()
    assert [one["filename"] for one in listed] == ["firmware.bin", "update.swu", "third.swu"]


def test_shipping_again_does_no_step_twice(flota: Flota, key: Path, tmp_path: Path) -> None:
    _devices(flota, "again", "again-1")
    path = _file(tmp_path, "same")
    created = flota("release", "create", path, "--type", "again", "--version", "1.0", "--json")
    assert created.json()["artifact"]["already_stored"] is False
    shipped = flota(
        "ship", path, "--type", "again", "--version", "1.0", "--to", "all", "--key", key, "--trust-key", "--no-wait"
    )
    assert shipped.status == 0, shipped.err
    assert "stored already" in shipped.out
    assert "is there already (draft)" in shipped.out
    assert len(flota("release", "list", "--type", "again", "--json").json()) == 1
    other = tmp_path / "other.bin"
    other.write_bytes(b"other bytes")
    refused = flota("ship", other, "--type", "again", "--version", "1.0", "--to", "all", "--key", key, "--no-wait")
    assert refused.status == 1
    assert "has a release 1.0 already" in refused.err


def test_a_rollout_that_is_open_or_done_is_not_made_twice(
    flota: Flota, server: Server, key: Path, tmp_path: Path
) -> None:
    tokens = _devices(flota, "once", "once-1", "once-2")

    def ship(*more: str) -> Result:
        return flota(
            "ship", _file(tmp_path, "once"), "--type", "once", "--version", "1.0", "--to", "once-1,once-2",
            "--key", key, "--trust-key", *more,
        )  # fmt: skip

    def rollouts() -> list[str]:
        return [one["name"] for one in flota("rollout", "list", "--json").json() if one["type"] == "once"]

    assert ship("--no-wait").status == 0
    again = ship("--no-wait")
    assert again.status == 0, again.err
    assert "rollout    once-1.0 (" in again.out
    assert "is there already (active)" in again.out
    assert rollouts() == ["once-1.0"]
    with DdiDevice(server, "once-1", tokens["once-1"]), DdiDevice(server, "once-2", tokens["once-2"]):
        followed = ship()
        assert followed.status == 0, followed.out + followed.err
        assert "rollout once-1.0: succeeded, 2 of 2 devices run 1.0" in followed.out
    done = ship()
    assert (done.status, rollouts()) == (0, ["once-1.0"])
    assert "all selected devices run 1.0 already" in done.out
    assert flota("rollout", "cancel", ship("--no-wait", "--name", "once-more", "--json").json()["id"]).status == 0
    assert rollouts() == ["once-1.0", "once-more"]
    after_cancel = ship("--no-wait")
    assert "rollout once-more" in after_cancel.out
    assert "ended canceled: it is tried again" in after_cancel.out
    assert rollouts() == ["once-1.0", "once-more", "once-1.0-2"]


def test_devices_that_came_later_and_long_lists_of_names_are_told_apart(
    flota: Flota, server: Server, key: Path, tmp_path: Path
) -> None:
    names = [f"many-{number:02}" for number in range(11)]
    tokens = _devices(flota, "many", *names)

    def ship(to: str, *more: str) -> Result:
        return flota(
            "ship", _file(tmp_path, "many"), "--type", "many", "--version", "1.0", "--to", to,
            "--key", key, "--trust-key", *more,
        )  # fmt: skip

    with DdiDevice(server, names[0], tokens[names[0]]):
        assert ship(f"type=many name={names[0]}").status == 0
    assert ship(f"{names[0]},{names[1]}", "--no-wait").status == 0
    waves = ("--waves", "1,100%", "--no-wait")
    assert ship(",".join(names), *waves).status == 0
    unclear = ship(",".join(names), *waves)
    assert unclear.status == 1
    assert "may be of the same devices" in unclear.err
    assert "flota rollout watch" in unclear.err
    assert "--name NAME" in unclear.err
    assert ship(",".join(names[:-1]), "--no-wait").status == 0
    made = [one["devices"] for one in _rollouts_of(flota, "many")]
    assert made == [1, 2, 11, 10]


def _rollouts_of(flota: Flota, type_name: str) -> list[dict[str, int]]:
    found = [one for one in flota("rollout", "list", "--json").json() if one["type"] == type_name]
    return [{"id": one["id"], "devices": sum(wave["size"] for wave in one["waves"])} for one in found]


def test_each_step_can_be_done_on_its_own(flota: Flota, key: Path, tmp_path: Path) -> None:
    _devices(flota, "steps", "steps-1", "steps-2")
    path = _file(tmp_path, "steps")
    release = flota("release", "create", path, "--type", "steps", "--version", "1.0", "--json").json()
    number = release["id"]
    early = flota("release", "publish", number)
    assert early.status == 1
    assert f"flota release sign {number}" in early.err
    assert flota("release", "sign", number, "--key", key, "--trust-key", "--file", path).status == 0
    assert flota("release", "publish", "steps@1.0").status == 0
    created = flota(
        "rollout", "create", "--release", number, "--devices", "steps-2,steps-1", "--name", "by-hand", "--json"
    )
    assert created.json()["waves"] == [{"number": 1, "state": "waiting", "size": 2, "counts": {}}]
    assert flota("rollout", "pause", "by-hand").status == 0
    assert "paused" in flota("rollout", "show", "by-hand").out
    assert flota("rollout", "resume", "by-hand").status == 0
    assert flota("rollout", "cancel", "by-hand", "--reason", "enough").status == 0
    assert "canceled" in flota("rollout", "list").out
    manifest = tmp_path / "manifest.json"
    assert flota("release", "show", "steps@1.0", "--manifest", manifest).status == 0
    assert release["artifact"]["sha256"] in manifest.read_text()
    assert flota("release", "withdraw", number, "--reason", "done").status == 0


def test_nobody_signs_a_manifest_of_another_file(flota: Flota, key: Path, tmp_path: Path) -> None:
    _devices(flota, "swapped", "swapped-1")
    path = _file(tmp_path, "meant")
    number = flota("release", "create", path, "--type", "swapped", "--version", "1", "--json").json()["id"]
    path.write_bytes(b"what is on this machine now")
    refused = flota("release", "sign", number, "--key", key, "--trust-key", "--file", path)
    assert refused.status == 1
    assert "was not signed" in refused.err
    assert "is not the file that release" in refused.err.splitlines()[0]
    assert "Is --file the file that was uploaded?" in refused.err
    assert flota("release", "show", number, "--json").json()["signatures"] == []


def test_a_program_can_sign(flota: Flota, tmp_path: Path, key: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    _devices(flota, "hsm", "hsm-1")
    path = _file(tmp_path, "hsm")
    number = flota("release", "create", path, "--type", "hsm", "--version", "1", "--json").json()["id"]
    script = tmp_path / "sign.py"
    script.write_text(
        "import sys\n"
        "from cryptography.hazmat.primitives import hashes\n"
        "from cryptography.hazmat.primitives.asymmetric import ec, utils\n"
        "from cryptography.hazmat.primitives.serialization import load_pem_private_key\n"
        f"key = load_pem_private_key(open({str(key)!r}, 'rb').read(), None)\n"
        "digest = sys.stdin.buffer.read()\n"
        "digest = bytes.fromhex(digest.decode()) if len(digest) != 32 else digest\n"
        "sys.stdout.buffer.write(key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256()))))\n"
    )
    signed = flota(
        "release", "sign", number, "--signer", f"exec:{sys.executable} {script}",
        "--public-key", key.with_suffix(".pub"), "--trust-key",
    )  # fmt: skip
    assert signed.status == 0, signed.err
    assert flota("release", "publish", number).status == 0


def test_names_between_commas_are_a_list() -> None:
    assert comma_list(" a, b,,c ") == ["a", "b", "c"]
    assert comma_list(None) is None
