"""`flota key`: make and look at signing keys. They never leave the machine that they are made on."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import typer

from flota.cli.key_files import sign_file, verify_file
from flota.cli.key_rotation import app as rotation_app
from flota.cli.output import echo, echo_json, print_table
from flota.cli.signers import (
    PRIVATE_SUFFIX,
    PUBLIC_SUFFIX,
    find_key,
    keys_directory,
    named_key_path,
    read_key_file,
    read_key_text,
    read_password,
)
from flota.errors import Conflict, FlotaError, InvalidInput, WrongUse

if TYPE_CHECKING:
    from flota.trust.image_keys import ImagePrivateKey, ImagePublicKey
    from flota.trust.keys import PrivateKey, PublicKey

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Signing keys.")
app.command("sign")(sign_file)
app.command("verify")(verify_file)
app.add_typer(rotation_app, name="rotate")

CERTIFICATE_SUFFIX: Final = ".crt"

_LABELS: Final = {
    "kind": "kind",
    "key_id": "key id",
    "algorithm": "signatures",
    "mcuboot_key_hash": "MCUboot key hash",
    "secure_boot_digest": "Secure Boot digest",
}

_NAME = typer.Argument(None, metavar="NAME", help="Kept in the key directory under this name (FLOTA_KEYS).")
_OUT = typer.Option(None, "-o", "--output", metavar="FILE", help="Write the key here instead; FILE.pub beside it.")
_KIND = typer.Option("p256", "--kind", help="rsa-3072 is for MCUboot images, Secure Boot and files, not for releases.")
_PROMPT = typer.Option(False, "--password-prompt", help="Ask for a password on the terminal.")
_PASSWORD_FILE = typer.Option(None, "--password-file", metavar="FILE", help="The password is this file's first line.")
_JSON = typer.Option(False, "--json", help="Print as JSON.")


@app.command()
def create(
    name: str | None = _NAME,
    output: Path | None = _OUT,
    kind: Literal["p256", "ed25519", "rsa-3072"] = _KIND,
    password_prompt: bool = _PROMPT,
    password_file: Path | None = _PASSWORD_FILE,
    code_signing: bool = typer.Option(False, "--code-signing", help="Write a code-signing certificate too (P-256)."),
    subject: str | None = typer.Option(None, "--subject", metavar="CN", help="The certificate's common name."),
    days: int | None = typer.Option(
        None, "--days", metavar="N", help="The certificate ends after so many days (1095)."
    ),
    as_json: bool = _JSON,
) -> None:
    """Make a signing key: the private half with mode 0600, the public half beside it.

    flota key create release

    flota key create -o release.pem --kind ed25519 --password-prompt

    flota key create board-maker --code-signing --subject "Example GmbH firmware" --days 1095

    flota key create boot-loader --kind rsa-3072 --password-prompt
    """
    from flota.durable_files import PRIVATE_FILE_MODE, write_durably
    from flota.trust.keys import PrivateKey

    if code_signing and kind != "p256":
        raise WrongUse("code-signing certificates are for P-256 keys", found=kind, hint="Leave --kind out.")
    if (name is None) == (output is None):
        raise InvalidInput("where should the key go?", hint="Give a NAME, or a file with -o.")
    private_path = output if output is not None else named_key_path(name or "")
    public_path = private_path.with_suffix(PUBLIC_SUFFIX)
    certificate_path = private_path.with_suffix(CERTIFICATE_SUFFIX)
    if not code_signing and (subject is not None or days is not None):
        raise InvalidInput("--subject and --days are for a certificate", hint="Give --code-signing too.")
    for path in (private_path, public_path, certificate_path)[: 3 if code_signing else 2]:
        if path.exists():
            raise Conflict(
                "there is a file of that name already",
                found=str(path),
                hint="Nothing was changed; choose another.",
            )
    password = read_password(prompt=password_prompt, password_file=password_file, confirm=True)
    key = _new_key(kind)
    certificate = None
    if code_signing and isinstance(key, PrivateKey):
        certificate = _certificate_of(key, subject or private_path.stem, days)
    try:
        private_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(private_path, key.to_pem(password), mode=PRIVATE_FILE_MODE)
        write_durably(public_path, key.public.pem.encode("ascii"))
        if certificate is not None:
            write_durably(certificate_path, certificate)
    except OSError as error:
        raise InvalidInput(f"the key cannot be written: {error.strerror}", found=str(private_path)) from error
    if as_json:
        files = {"private_key": str(private_path), "public_key": str(public_path)}
        echo_json(_facts(key.public) | files | ({"certificate": str(certificate_path)} if certificate else {}))
        return
    echo(f"key id       {key.public.key_id}")
    echo(f"private key  {private_path} ({'encrypted' if password else 'not encrypted'}; back it up, show it to nobody)")
    echo(f"public key   {public_path}")
    if certificate is not None:
        echo(f"certificate  {certificate_path}")


@app.command("list")
def list_keys(as_json: bool = _JSON) -> None:
    """List the named keys."""
    rows = []
    directory = keys_directory()
    for path in sorted(directory.glob(f"*{PRIVATE_SUFFIX}")) if directory.is_dir() else []:
        try:
            public = _public_half(str(path), None)
            rows.append({"name": path.stem, **_facts(public), "path": str(path)})
        except FlotaError as error:
            rows.append({"name": path.stem, "kind": "?", "key_id": error.message, "path": str(path)})
    if as_json:
        echo_json(rows)
    elif rows:
        print_table(["name", "kind", "key id"], [(row["name"], row["kind"], row["key_id"]) for row in rows])
    else:
        echo(f"no keys in {directory}; `flota key create NAME` makes one")


@app.command()
def show(
    key: str = typer.Argument(..., metavar="KEY", help="Name or file of a private or public key."),
    public: bool = typer.Option(False, "--public", help="Print only the public key, in PEM."),
    trust: bool = typer.Option(False, "--trust", help="Print a trust file for devices and gateways (--trust FILE)."),
    type_name: str | None = typer.Option(None, "--type", metavar="T", help="The trust file is for this type only."),
    password_prompt: bool = _PROMPT,
    password_file: Path | None = _PASSWORD_FILE,
    as_json: bool = _JSON,
) -> None:
    """Show a key's id and public half.

    flota key show release

    flota key show release --trust > trust.json
    """
    if type_name is not None and not trust:
        raise InvalidInput("--type is for a trust file", hint="Give --trust too.")
    shown = _public_half(key, read_password(prompt=password_prompt, password_file=password_file))
    if public:
        echo(shown.pem.rstrip("\n"))
    elif trust:
        from flota.trust.trust_file import TrustedSigners, pack_trust_file, parse_trust_file

        packed = pack_trust_file(replace(TrustedSigners.of([shown.pem]), device_type=type_name))
        parse_trust_file(packed)  # refuses a type that no manifest can name
        echo(packed.decode("ascii").rstrip("\n"))
    elif as_json:
        echo_json(_facts(shown) | {"public_key": shown.pem})
    else:
        for fact, value in _facts(shown).items():
            echo(f"{_LABELS[fact]:<18} {value}")
        echo(shown.pem.rstrip("\n"))


def _new_key(kind: str) -> PrivateKey | ImagePrivateKey:
    from flota.trust.image_keys import ImagePrivateKey
    from flota.trust.keys import PrivateKey

    return ImagePrivateKey.generate(kind) if kind == "rsa-3072" else PrivateKey.generate(kind)


def _public_half(reference: str, password: str | None) -> ImagePublicKey:
    """Return the public key of a private or public key file; an encrypted key's from NAME.pub beside it."""
    from flota.trust.image_keys import ImagePrivateKey, ImagePublicKey
    from flota.trust.keys import PasswordNeeded

    path = find_key(reference)
    text = read_key_text(str(path)) if path.suffix == PUBLIC_SUFFIX else read_key_file(path)
    if b"PRIVATE KEY" not in text:
        return ImagePublicKey.from_pem(text)
    try:
        return ImagePrivateKey.from_pem(text, password).public
    except PasswordNeeded:
        beside = path.with_suffix(PUBLIC_SUFFIX)
        if not beside.is_file():
            raise
        return ImagePublicKey.from_pem(read_key_text(str(beside)))


def _certificate_of(key: PrivateKey, subject: str, days: int | None) -> bytes:
    import secrets
    from datetime import UTC, datetime, timedelta

    from flota.trust.certificates import pack_certificates
    from flota.trust.code_signing import DEFAULT_LIFETIME, LIFETIME_MAX, SERIAL_MAX, make_code_signing_certificate

    if days is not None and not 1 <= days <= LIFETIME_MAX.days:
        raise InvalidInput("--days is out of range", expected=f"1 to {LIFETIME_MAX.days}", found=str(days))
    lifetime = DEFAULT_LIFETIME if days is None else timedelta(days=days)
    serial = secrets.randbelow(SERIAL_MAX) + 1
    return pack_certificates(
        make_code_signing_certificate(key, subject=subject, serial=serial, now=datetime.now(UTC), lifetime=lifetime)
    )


def _facts(key: PublicKey | ImagePublicKey) -> dict[str, object]:
    """Return what can be said of a key: which it is, and how images of boot loaders name it."""
    from flota.images.esp_secure_boot import BadPublicKey, public_key_digest
    from flota.trust.image_keys import ImagePublicKey

    facts: dict[str, object] = {"kind": key.kind.value, "key_id": key.key_id, "algorithm": str(key.algorithm)}
    facts["mcuboot_key_hash"] = ImagePublicKey.from_pem(key.pem).key_hash.hex()
    with contextlib.suppress(BadPublicKey):
        facts["secure_boot_digest"] = public_key_digest(key.pem)
    return facts
