"""`flota key rotate`, `flota key sign` and code-signing certificates, as a person uses them."""

import json
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.cli.signers import read_private_key
from flota.trust.code_signing import check_chain, parse_chain, public_pem_of
from flota.trust.trust_file import parse_trust_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own with the keys `old` and `new` and a trust file that believes `old`."""
    monkeypatch.setenv("FLOTA_KEYS", str(tmp_path / "keys"))
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        assert flota("key", "create", name) == 0
    return tmp_path


@pytest.fixture
def trust(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    capsys.readouterr()
    assert flota("key", "show", "old", "--trust", "--type", "pump") == 0
    (here / "trust.json").write_text(capsys.readouterr().out)
    return here / "trust.json"


def flota(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_a_key_is_replaced_by_propose_two_signatures_and_apply(trust: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = read_private_key("old").key_id, read_private_key("new").key_id
    assert flota("key", "rotate", "propose", "--trust", trust, "--add", "new", "--revoke", "old", "-o", "r.json") == 0
    assert "1 of the old and 1 of the new" in capsys.readouterr().out
    before = trust.read_bytes()
    for key, enough in (("old", False), ("new", True)):
        assert flota("key", "rotate", "apply", "r.json", "--trust", trust) == 1
        assert trust.read_bytes() == before
        assert flota("key", "rotate", "sign", "r.json", "--key", key) == 0
        assert flota("key", "rotate", "apply", "r.json", "--trust", trust, "--check") == (0 if enough else 1)
        assert trust.read_bytes() == before
    capsys.readouterr()
    assert flota("key", "rotate", "apply", "r.json", "--trust", trust, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "device_type": "pump",
        "version": 1,
        "threshold": 1,
        "keys": [new],
        "revoked": [old],
    }
    assert parse_trust_file(trust.read_bytes()).keys.keys() == {new}
    assert flota("key", "rotate", "apply", "r.json", "--trust", trust) == 1


def test_an_existing_file_is_not_overwritten_and_an_empty_change_not_proposed(trust: Path) -> None:
    assert flota("key", "rotate", "propose", "--trust", trust, "--add", "new", "-o", trust) == 1
    assert parse_trust_file(trust.read_bytes()).version == 0
    assert flota("key", "rotate", "propose", "--trust", trust, "-o", "r.json") == 1
    assert flota("key", "rotate", "apply", "nowhere.json", "--trust", trust) == 1
    assert flota("key", "rotate", "apply", trust, "--trust", trust) == 1


def test_a_trust_file_for_a_type_that_no_manifest_can_name_is_not_printed() -> None:
    assert flota("key", "show", "old", "--trust", "--type", " pump") == 1
    assert flota("key", "show", "old", "--trust", "--type", "") == 1
    assert flota("key", "show", "old", "--type", "pump") == 1


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(
    trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "/proc/none/r.json"
    assert flota("key", "rotate", "propose", "--trust", trust, "--add", "new", "-o", place) == 1
    assert place in capsys.readouterr().err


def test_a_code_signing_certificate_signs_a_file_that_verify_accepts(here: Path) -> None:
    assert flota("key", "create", "-o", "maker.pem", "--code-signing", "--subject", "Maker", "--days", 30) == 0
    (certificate,) = parse_chain((here / "maker.crt").read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=Maker"
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 31
    assert public_pem_of(check_chain([certificate], trusted=[certificate], now=None)) == Path("maker.pub").read_text()
    (here / "f.bin").write_bytes(b"firmware")
    assert flota("key", "sign", "f.bin", "--key", "maker.pem") == 0
    assert flota("key", "verify", "f.bin", "--public-key", "maker.pub") == 0
    assert flota("key", "verify", "f.bin", "--certificate", "maker.crt", "--trusted", "maker.crt") == 0
    assert flota("key", "verify", "f.bin", "--public-key", "new") == 1
    assert flota("key", "verify", "f.bin") == 1
    (here / "f.bin").write_bytes(b"Firmware")
    assert flota("key", "verify", "f.bin", "--public-key", "maker.pub") == 1


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--days", "3"], 1),
        (["--code-signing", "--days", "0"], 1),
        (["--code-signing", "--kind", "ed25519"], 2),
    ],
)
def test_a_certificate_that_cannot_be_made_leaves_no_key_behind(here: Path, arguments: list[str], status: int) -> None:
    assert flota("key", "create", "-o", "x.pem", *arguments) == status
    assert not list(here.glob("x.*"))
