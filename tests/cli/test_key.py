"""`flota key`: keys on disk, and the options with which other commands sign."""

import hashlib
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from flota.cli.app import main
from flota.cli.signers import read_password, read_private_key, signer_from_options
from flota.errors import InvalidInput, NotFound
from flota.images.esp_secure_boot import public_key_digest
from flota.trust.keys import BadKey, PasswordNeeded, PrivateKey, WrongPassword
from flota.trust.signatures import check_signature
from flota.trust.trust_file import parse_trust_file


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key directory of the test's own."""
    monkeypatch.setenv("FLOTA_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


def flota(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_named_key_is_kept_private_and_its_public_half_beside_it(keys: Path, kind: str) -> None:
    assert flota("key", "create", "release", "--kind", kind) == 0
    assert stat.S_IMODE((keys / "release.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    key = read_private_key("release")
    assert key.kind == kind
    assert (keys / "release.pub").read_text() == key.public_pem


def test_a_key_file_goes_where_it_is_told(tmp_path: Path) -> None:
    assert flota("key", "create", "-o", tmp_path / "k.pem", "--json") == 0
    assert read_private_key(str(tmp_path / "k.pem")).kind == "p256"


def test_an_existing_key_is_never_overwritten(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flota("key", "create", "release")
    before = (keys / "release.pem").read_bytes()
    assert flota("key", "create", "release") == 1
    assert (keys / "release.pem").read_bytes() == before
    assert "Nothing was changed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "-o", "b"], ["../escape"], ["-o", "/nowhere/x/../../proc/k.pem"]])
def test_a_key_without_a_fitting_place_is_not_made(arguments: list[str]) -> None:
    assert flota("key", "create", *arguments) == 1


def test_an_unknown_kind_is_wrong_use() -> None:
    assert flota("key", "create", "x", "--kind", "rsa") == 2


def test_a_password_from_a_file_locks_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "password").write_text("open sesame\nsecond line\n")
    assert flota("key", "create", "locked", "--password-file", tmp_path / "password") == 0
    with pytest.raises(PasswordNeeded):
        read_private_key("locked")
    with pytest.raises(WrongPassword):
        read_private_key("locked", "second line")
    key = read_private_key("locked", "open sesame")
    capsys.readouterr()
    assert flota("key", "show", "locked", "--json") == 0  # the public half needs no password
    assert json.loads(capsys.readouterr().out)["key_id"] == key.key_id


def test_keys_are_listed_with_their_ids(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flota("key", "create", "b")
    flota("key", "create", "a", "--kind", "ed25519")
    (keys / "broken.pem").write_text("no key")
    capsys.readouterr()
    assert flota("key", "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["kind"]) for row in rows] == [("a", "ed25519"), ("b", "p256"), ("broken", "?")]
    assert rows[0]["key_id"] == read_private_key("a").key_id
    assert flota("key", "list") == 0


def test_no_keys_are_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("key", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_key_is_shown_as_public_key_and_as_trust_file(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flota("key", "create", "release")
    key = read_private_key("release")
    capsys.readouterr()
    for reference in ("release", keys / "release.pem", keys / "release.pub"):
        assert flota("key", "show", reference, "--public") == 0
        assert capsys.readouterr().out == key.public_pem
    assert flota("key", "show", "release", "--trust") == 0
    assert parse_trust_file(capsys.readouterr().out.encode()).keys == {key.key_id: key.public_pem}


def test_no_command_ever_prints_the_private_half(capsys: pytest.CaptureFixture[str], keys: Path) -> None:
    flota("key", "create", "release")
    for options in ([], ["--public"], ["--trust"], ["--json"]):
        flota("key", "show", "release", *options)
    flota("key", "list", "--json")
    text = capsys.readouterr()
    secret = (keys / "release.pem").read_text().splitlines()[1]
    assert secret not in text.out + text.err
    assert "PRIVATE" not in text.out + text.err


def test_a_key_that_others_can_read_is_warned_of(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flota("key", "create", "release")
    (keys / "release.pem").chmod(0o644)
    read_private_key("release")
    assert "chmod 600" in capsys.readouterr().err


def test_an_unknown_key_says_where_to_look() -> None:
    with pytest.raises(NotFound, match="flota key list"):
        read_private_key("nobody")


def test_a_signer_is_a_key_or_a_program_with_a_public_key(tmp_path: Path) -> None:
    key = PrivateKey.generate("p256")
    (tmp_path / "k.pem").write_bytes(key.to_pem())
    (tmp_path / "k.pub").write_text(key.public_pem)
    (tmp_path / "k.pem").chmod(0o600)
    by_key = signer_from_options(key=str(tmp_path / "k.pem"))
    check_signature(b"m", by_key.sign(b"m"), by_key.public_pem)
    by_program = signer_from_options(signer="exec:false", public_key=str(tmp_path / "k.pub"))
    assert by_program.key_id == by_key.key_id == key.key_id


@pytest.mark.parametrize(
    "options", [{}, {"key": "a", "signer": "exec:b", "public_key": "c"}, {"signer": "exec:b"}], ids=str
)
def test_other_combinations_of_signing_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        signer_from_options(**options)  # type: ignore[arg-type]


def test_one_password_has_one_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="two sources"):
        read_password(prompt=True, password_file=tmp_path / "p")
    (tmp_path / "empty").write_text("\nsecret on the second line")
    with pytest.raises(InvalidInput, match="empty"):
        read_password(password_file=tmp_path / "empty")
    (tmp_path / "latin1").write_bytes(b"p\xe4ss")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_password(password_file=tmp_path / "latin1")


@pytest.fixture(scope="module")
def rsa_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RSA-3072 key with the password `open sesame`, made by the command."""
    directory = tmp_path_factory.mktemp("rsa")
    (directory / "password").write_text("open sesame\n")
    arguments = ["-o", directory / "boot.pem", "--kind", "rsa-3072", "--password-file", directory / "password"]
    assert flota("key", "create", *arguments) == 0
    return directory / "boot.pem"


def test_an_rsa_key_is_made_locked_and_listed(rsa_key: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rsa_key.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert stat.S_IMODE(rsa_key.stat().st_mode) == 0o600
    keys.mkdir()
    for suffix in (".pem", ".pub"):
        (keys / f"boot{suffix}").write_bytes(rsa_key.with_suffix(suffix).read_bytes())
    capsys.readouterr()
    assert flota("key", "list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    public = load_pem_public_key(rsa_key.with_suffix(".pub").read_bytes())
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (listed["name"], listed["kind"]) == ("boot", "rsa-3072")
    assert listed["key_id"] == hashlib.sha256(der).hexdigest()
    pkcs1 = public.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    assert listed["mcuboot_key_hash"] == hashlib.sha256(pkcs1).hexdigest()
    assert listed["secure_boot_digest"] == public_key_digest(rsa_key.with_suffix(".pub").read_bytes())


def test_an_rsa_key_signs_files_and_mcuboot_images(rsa_key: Path, tmp_path: Path) -> None:
    firmware, image = tmp_path / "fw.bin", tmp_path / "image.bin"
    firmware.write_bytes(bytes(range(256)) * 8)
    password = ["--password-file", rsa_key.with_name("password")]
    assert flota("key", "sign", firmware, "--key", rsa_key, *password) == 0
    assert flota("key", "verify", firmware, "--public-key", rsa_key.with_suffix(".pub")) == 0
    pack = [
        "--version",
        "1.2.3",
        "--header-size",
        "0x200",
        "--slot-size",
        "0x10000",
        "--pad-header",
        "--key",
        rsa_key,
        *password,
    ]
    assert flota("image", "pack", "mcuboot", firmware, "-o", image, *pack) == 0
    assert flota("image", "verify", image, "--public-key", rsa_key.with_suffix(".pub")) == 0


def test_a_key_of_the_wrong_kind_is_refused_with_the_kind_that_is_needed(
    rsa_key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flota("key", "show", rsa_key.with_suffix(".pub"), "--trust") == 1
    shown = capsys.readouterr().err
    assert "signs no releases" in shown
    assert "RSA-3072" in shown
    with pytest.raises(BadKey, match="RSA keys are for MCUboot images"):
        signer_from_options(key=str(rsa_key), password_file=rsa_key.with_name("password"))
    assert flota("key", "create", "-o", tmp_path / "x.pem", "--kind", "rsa-3072", "--code-signing") == 2
    assert not (tmp_path / "x.pem").exists()
    assert flota("key", "create", "-o", tmp_path / "ed.pem", "--kind", "ed25519") == 0
    (tmp_path / "file").write_bytes(b"a file")
    assert flota("key", "sign", tmp_path / "file", "--key", tmp_path / "ed.pem") == 1
    assert "--kind rsa-3072" in capsys.readouterr().err
