"""A program of the user's own signs: what it gets, what it may answer, and how it may fail."""

import hashlib
import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.transports.exec_signer import SignerError, SignerTimeoutError, parse_signer, sign_with_program
from flota.trust.keys import PrivateKey
from flota.trust.signatures import check_signature

MESSAGE = b'{"kind":"flota-release"}'

SIGNER = """
import os, sys, json
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
given = sys.stdin.buffer.read()
key = serialization.load_pem_private_key(open(sys.argv[1], "rb").read(), None)
seen = {name: value for name, value in os.environ.items() if name.startswith("FLOTA_SIGN_")}
open(sys.argv[2], "w").write(json.dumps({"given": given.hex(), **seen}))
if os.environ["FLOTA_SIGN_INPUT"] == "sha256":
    answer = key.sign(given, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
else:
    answer = key.sign(given)
sys.stdout.buffer.write(answer)
"""


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, arguments))


@pytest.mark.parametrize(("kind", "given"), [("p256", hashlib.sha256(MESSAGE).digest()), ("ed25519", MESSAGE)])
def test_a_program_gets_the_digest_or_for_ed25519_the_message_and_its_signature_counts(
    tmp_path: Path, kind: str, given: bytes
) -> None:
    key = PrivateKey.generate(kind)
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    command = python(SIGNER, tmp_path / "key.pem", tmp_path / "seen")
    signature = sign_with_program(command, MESSAGE, key.public_pem)
    check_signature(MESSAGE, signature, key.public_pem)
    assert json.loads((tmp_path / "seen").read_text()) == {
        "given": given.hex(),
        "FLOTA_SIGN_ALGORITHM": key.public.algorithm,
        "FLOTA_SIGN_INPUT": "sha256" if kind == "p256" else "message",
        "FLOTA_SIGN_KEY_ID": key.key_id,
    }


def test_openssl_as_it_is_in_the_how_to_is_such_a_program(tmp_path: Path) -> None:
    import shutil

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key = PrivateKey.generate("p256")
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    command = parse_signer(f"exec:openssl pkeyutl -sign -inkey {shlex.quote(str(tmp_path / 'key.pem'))}")
    check_signature(MESSAGE, sign_with_program(command, MESSAGE, key.public_pem), key.public_pem)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(3)", "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("pass", "found nothing"),
        ("print('bm90IHNpZ25lZA==')", "base64"),
        ("import sys; sys.stdout.buffer.write(bytes(70))", "70 bytes"),
        ("import sys; sys.stdout.buffer.write(bytes(100_000_000))", "too much"),
        ("import sys; sys.stdin.close(); sys.exit(1)", "exit status 1"),
    ],
)
def test_a_program_that_gives_no_signature_fails_with_the_reason(code: str, message: str) -> None:
    with pytest.raises(SignerError, match=message):
        sign_with_program(python(code), MESSAGE, PrivateKey.generate("p256").public_pem)


def test_a_signature_of_another_key_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(PrivateKey.generate("p256").to_pem())
    with pytest.raises(SignerError, match="not a signature by the public key"):
        sign_with_program(
            python(SIGNER, tmp_path / "key.pem", tmp_path / "seen"), MESSAGE, PrivateKey.generate("p256").public_pem
        )


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "import os, time; os.close(1); time.sleep(60)"])
def test_a_program_that_hangs_is_ended_at_the_time_limit(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flota.transports.exec_signer.EXIT_GRACE_S", 0.1)
    started = time.monotonic()
    with pytest.raises(SignerTimeoutError):
        sign_with_program(python(code), MESSAGE, PrivateKey.generate("p256").public_pem, timeout_s=0.5)
    assert time.monotonic() - started < 10


def test_a_program_that_is_not_there_says_so() -> None:
    with pytest.raises(SignerError, match="could not be started: No such file"):
        sign_with_program(("/nowhere/signer",), MESSAGE, PrivateKey.generate("p256").public_pem)


def test_the_command_is_split_like_a_shell_does_but_no_shell_runs() -> None:
    assert parse_signer("exec:sign 'my key' $HOME;id") == ("sign", "my key", "$HOME;id")


@pytest.mark.parametrize("text", ["exec:", "exec:   ", "exec:'open", "pkcs11:token", ""])
def test_what_is_no_signer_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_signer(text)


def test_a_message_too_long_for_a_manifest_is_not_sent() -> None:
    with pytest.raises(InvalidInput, match="too long"):
        sign_with_program(("true",), bytes(20_000), PrivateKey.generate("ed25519").public_pem)
