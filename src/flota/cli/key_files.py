"""`flota key sign` and `flota key verify`: signatures over a whole file, as `openssl dgst` makes and checks them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from flota.cli.output import echo
from flota.cli.signers import find_key, read_password
from flota.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from flota.trust.file_signatures import FileAlgorithm, FilePublicKey

SIGNATURE_SUFFIX = ".sig"
SIGNATURE_FILE_MAX_BYTES = 1024

_FILE = typer.Argument(..., metavar="FILE", help="The file.")
_ALGORITHM = typer.Option(None, "--algorithm", help="For RSA keys: PKCS#1 v1.5 (usual) or PSS.")

_Algorithm = Literal["ecdsa-p256-sha256", "rsa-pkcs1-sha256", "rsa-pss-sha256"]


def sign_file(
    file: Path = _FILE,
    key: str = typer.Option(..., "--key", metavar="KEY", help="Name or file of a P-256 or RSA private key."),
    output: Path | None = typer.Option(None, "-o", "--output", metavar="SIG", help="Else FILE.sig."),
    algorithm: _Algorithm | None = _ALGORITHM,
    password_prompt: bool = typer.Option(False, "--password-prompt", help="Ask for a password on the terminal."),
    password_file: Path | None = typer.Option(None, "--password-file", metavar="FILE", help="Its first line."),
) -> None:
    """Sign a whole file, for devices that check it with their vendor's code.

    flota key sign firmware.bin --key board-maker
    """
    from flota.durable_files import write_durably
    from flota.trust.file_signatures import FilePrivateKey

    path = find_key(key)
    password = read_password(prompt=password_prompt, password_file=password_file)
    signature = FilePrivateKey.from_pem(_read(path), password).sign(_sha256_of(file), _named(algorithm))
    target = output if output is not None else Path(f"{file}{SIGNATURE_SUFFIX}")
    try:
        write_durably(target, signature)
    except OSError as error:
        raise InvalidInput(f"the signature cannot be written: {error.strerror}", found=str(target)) from error
    echo(f"{target}  {len(signature)} bytes")


def verify_file(
    file: Path = _FILE,
    public_key: str | None = typer.Option(None, "--public-key", metavar="PUB", help="Name or file of a public key."),
    certificate: Path | None = typer.Option(None, "--certificate", metavar="PEM", help="Or: the signer's chain."),
    trusted: Path | None = typer.Option(None, "--trusted", metavar="PEM", help="Certificates that you believe."),
    signature: Path | None = typer.Option(None, "--signature", metavar="SIG", help="Else FILE.sig."),
    algorithm: _Algorithm | None = _ALGORITHM,
) -> None:
    """Check a file's signature with a public key, or with a code-signing certificate and those you trust.

    flota key verify firmware.bin --public-key board-maker.pub

    flota key verify firmware.bin --certificate chain.crt --trusted root.crt
    """
    key = _verifier(public_key, certificate, trusted)
    sig_path = signature if signature is not None else Path(f"{file}{SIGNATURE_SUFFIX}")
    key.check(_sha256_of(file), _read(sig_path, SIGNATURE_FILE_MAX_BYTES), _named(algorithm))
    echo(f"{file}  signature is right")


def _verifier(public_key: str | None, certificate: Path | None, trusted: Path | None) -> FilePublicKey:
    from flota.trust.file_signatures import FilePublicKey

    if public_key is not None and certificate is None and trusted is None:
        path = find_key(public_key)
        beside = path.with_suffix(".pub")
        return FilePublicKey.from_pem(_read(beside if path.suffix == ".pem" and beside.is_file() else path))
    if public_key is None and certificate is not None and trusted is not None:
        from datetime import UTC, datetime

        from flota.trust.code_signing import CERTIFICATE_FILE_MAX_BYTES, check_chain, parse_chain, public_pem_of

        chain, anchors = (parse_chain(_read(path, CERTIFICATE_FILE_MAX_BYTES)) for path in (certificate, trusted))
        return FilePublicKey.from_pem(public_pem_of(check_chain(chain, trusted=anchors, now=datetime.now(UTC))))
    raise InvalidInput(
        "with what should it be checked?", hint="Give --public-key PUB, or --certificate PEM with --trusted PEM."
    )


def _named(algorithm: str | None) -> FileAlgorithm | None:
    from flota.trust.file_signatures import FileAlgorithm

    return None if algorithm is None else FileAlgorithm(algorithm)


def _sha256_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}", found=str(path)) from error


def _read(path: Path, max_bytes: int = 16 * 1024) -> bytes:
    """Return the file's bytes, one more than `max_bytes` at most, so that parsers see that it is too long."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}", found=str(path)) from error
