"""Signing keys as commands name them: a file, a name in the user's key directory, or a program with a public key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flota.cli.output import warn
from flota.errors import InvalidInput, NotFound, WrongUse

if TYPE_CHECKING:
    from flota.images.mcuboot import ImageSigner
    from flota.trust.keys import PrivateKey
    from flota.trust.signatures import Signature

PRIVATE_SUFFIX: Final = ".pem"
PUBLIC_SUFFIX: Final = ".pub"
PASSWORD_FILE_MAX_BYTES: Final = 4096

_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class Signer:
    """Somebody who can sign: the public key, its id, and a function from message to signature."""

    key_id: str
    public_pem: str
    sign: Callable[[bytes], Signature]


def keys_directory() -> Path:
    """Return where named keys are kept: `FLOTA_KEYS`, else `flota/keys` in the user's configuration directory."""
    if named := os.environ.get("FLOTA_KEYS"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "flota" / "keys"


def named_key_path(name: str) -> Path:
    """Return the path of the named private key, whether it exists or not. Raises `InvalidInput` for a bad name."""
    if not _KEY_NAME.match(name):
        raise InvalidInput(
            "not a name for a key",
            expected="letters, digits, dot, dash and underscore, at most 64",
            found=repr(name[:72]),
            hint="Give a path with -o for a key file somewhere else.",
        )
    return keys_directory() / f"{name.removesuffix(PRIVATE_SUFFIX).removesuffix(PUBLIC_SUFFIX)}{PRIVATE_SUFFIX}"


def find_key(reference: str) -> Path:
    """Return the file that `reference` means: a path, else a name in the key directory. Raises `NotFound`."""
    path = Path(reference)
    if path.is_file():
        return path
    if _KEY_NAME.match(reference) and (named := named_key_path(reference)).is_file():
        return named
    raise NotFound(
        "no such key",
        found=repr(reference),
        hint="`flota key list` shows the named keys, `flota key create NAME` makes one.",
    )


def read_password(*, prompt: bool = False, password_file: Path | None = None, confirm: bool = False) -> str | None:
    """Return the key's password from the terminal or from a file's first line; None if neither was asked for."""
    if prompt and password_file is not None:
        raise WrongUse("two sources for one password", hint="Give --password-prompt or --password-file, not both.")
    if password_file is not None:
        return _password_in(password_file)
    if prompt:
        import typer

        return str(typer.prompt("Password of the key", hide_input=True, confirmation_prompt=confirm, err=True))
    return None


def read_private_key(reference: str, password: str | None = None) -> PrivateKey:
    """Return the private key that a path or a name means. Raises `NotFound` or a kind of `BadKey`."""
    from flota.trust.keys import PrivateKey

    return PrivateKey.from_pem(read_key_file(_checked_key_path(reference)), password)


def read_public_key(reference: str) -> str:
    """Return the public key (PEM) that a path or a name means: NAME.pub beside a named key, or the file itself."""
    from flota.trust.keys import PublicKey

    return PublicKey.from_pem(read_key_file(_public_key_path(reference))).pem


def read_key_text(reference: str) -> bytes:
    """Return the text of the public key that a path or a name means, of whatever kind it is. Raises `NotFound`."""
    return read_key_file(_public_key_path(reference))


def signer_from_options(
    *,
    key: str | None = None,
    signer: str | None = None,
    public_key: str | None = None,
    password_prompt: bool = False,
    password_file: Path | None = None,
) -> Signer:
    """Return the signer that a command's options name.

    Either `key` (path or name of a private key), or `signer` (`exec:COMMAND`) with `public_key` (path or name).
    Raises `WrongUse` for other combinations, and what reading the keys raises. Signing with a program may raise
    `SignerError`.
    """
    if (key is None) == (signer is None):
        raise WrongUse("who signs?", hint="Give either --key KEY or --signer exec:COMMAND with --public-key FILE.")
    if key is not None:
        private = read_private_key(key, read_password(prompt=password_prompt, password_file=password_file))
        return Signer(private.key_id, private.public_pem, private.sign)
    if public_key is None:
        raise WrongUse(
            "--signer needs the public key", hint="Give --public-key FILE: what the program answers is checked with it."
        )
    from flota.transports.exec_signer import parse_signer, sign_with_program
    from flota.trust.keys import key_id_of

    command, pem = parse_signer(signer or ""), read_public_key(public_key)
    return Signer(key_id_of(pem), pem, lambda message: sign_with_program(command, message, pem))


def image_signer_from_options(
    *,
    key: str | None = None,
    signer: str | None = None,
    public_key: str | None = None,
    password_prompt: bool = False,
    password_file: Path | None = None,
) -> ImageSigner:
    """Return who signs MCUboot images: as `signer_from_options`, and RSA-3072 keys too."""
    from flota.images.mcuboot import ImageKeyKind, ImageSigner
    from flota.trust.image_keys import ImagePrivateKey, ImagePublicKey

    if (key is None) == (signer is None):
        raise WrongUse("who signs?", hint="Give either --key KEY or --signer exec:COMMAND with --public-key FILE.")
    if key is not None:
        path = _checked_key_path(key)
        password = read_password(prompt=password_prompt, password_file=password_file)
        return ImagePrivateKey.from_pem(read_key_file(path), password).signer
    if public_key is None:
        raise WrongUse(
            "--signer needs the public key", hint="Give --public-key FILE: what the program answers is checked with it."
        )
    from flota.transports.exec_signer import parse_signer, sign_digest_with_program

    command = parse_signer(signer or "")
    public = ImagePublicKey.from_pem(read_key_file(_public_key_path(public_key)))

    def sign(digest: bytes) -> bytes:
        return sign_digest_with_program(
            command,
            digest,
            algorithm=public.algorithm,
            takes="message" if public.kind is ImageKeyKind.ED25519 else "sha256",
            key_id=public.key_hash.hex(),
            is_signature=lambda answer: public.is_signature_of(digest, answer),
        )

    return ImageSigner(public.kind, public.encoded, sign)


def _checked_key_path(reference: str) -> Path:
    path = find_key(reference)
    if path.stat().st_mode & 0o077:
        warn(f"warning: others on this machine can read {path}; `chmod 600 {path}`")
    return path


def _public_key_path(reference: str) -> Path:
    path = Path(reference)
    if path.is_file():
        return path
    path = find_key(reference)
    public = path.with_suffix(PUBLIC_SUFFIX)
    return public if public.is_file() else path


def read_key_file(path: Path) -> bytes:
    """Return a key file's bytes, one more than the longest key at most. Raises `NotFound`."""
    from flota.trust.public_keys import KEY_FILE_MAX_BYTES

    try:
        with path.open("rb") as file:
            return file.read(KEY_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"the key cannot be read: {error.strerror}", found=str(path)) from error


def _password_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(PASSWORD_FILE_MAX_BYTES)
        password = data.decode("utf-8").split("\n", 1)[0].rstrip("\r")
    except OSError as error:
        raise NotFound(f"the password file cannot be read: {error.strerror}", found=str(path)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput("the password is not UTF-8", found=str(path), offset=error.start) from error
    if not password:
        raise InvalidInput("the password file's first line is empty", found=str(path))
    return password
