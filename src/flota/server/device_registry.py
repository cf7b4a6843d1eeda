"""Device types and devices: declaring, registering, importing, deciding. What every device API shares is here too.

Every board name is also a device type: it comes into being when it is first used.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from flota.boards.catalogue import BOARDS, board
from flota.boards.fit_blynk import firmware_type_of
from flota.boards.model import Board, TypeProfile, VersionFrom
from flota.digests import parse_sha256_hex
from flota.errors import Conflict, InvalidInput, NotFound
from flota.fleet.devices import Device, DeviceState, DeviceType, TrustedSigner, UnknownDevices
from flota.fleet.maintenance_windows import ZONE_LABEL, is_zone
from flota.fleet.selectors import check_labels
from flota.fleet.storage import NewDevice, NewDeviceType
from flota.images.esp_idf_version import idf_release
from flota.images.esp_partitions import pack_table, parse_csv, require_valid
from flota.server.auth import digest_of_secret
from flota.trust.keys import key_id_of

if TYPE_CHECKING:
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction

NAME_RULE: Final = "1 to 128 of A-Z a-z 0-9 . _ : - beginning with a letter or digit"
_DEVICE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
TYPE_NAME_RULE: Final = "1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit"
_TYPE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MAC: Final = re.compile(r"(?:[0-9A-F]{2}:){5}[0-9A-F]{2}\Z")

DEVICE_TOKEN_BYTES: Final = 24
DEVICE_TOKEN_MIN_LEN: Final = 8
DEVICE_TOKEN_MAX_LEN: Final = 128
"""Characters; it travels in an Authorization header (docs/reference/hawkbit-ddi.md)."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]+\Z")
SIGNERS_MAX: Final = 16
PARTITION_CSV_MAX_BYTES: Final = 64 * 1024
IDF_VERSION_MAX_LEN: Final = 32
"""Characters, as in the descriptor of an image."""
SECURE_BOOT_KEYS_MAX: Final = 16
"""A chip has three at most; the devices of a type need not all have the same."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A device to be registered, checked. `token` is what it will show; None = one was not given."""

    name: str
    type_name: str
    mac: str | None = None
    token: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_device_name(text: str) -> str:
    """Return a device's name; raises `InvalidInput` unless it is 1 to 128 of `A-Za-z0-9._:-`.

    The names go into paths, topics and selectors of several dialects; this is what all of them can carry.
    """
    if not _DEVICE_NAME.match(text):
        raise InvalidInput("not a device name", expected=NAME_RULE, found=repr(text[:140]))
    return text


def parse_mac(text: str) -> str:
    """Return a MAC address as `AA:BB:CC:DD:EE:FF`; raises `InvalidInput`. Takes `-` between the bytes, or nothing."""
    plain = text.strip().upper().replace("-", ":")
    if re.fullmatch(r"[0-9A-F]{12}", plain):
        plain = ":".join(plain[i : i + 2] for i in range(0, 12, 2))
    if not _MAC.match(plain):
        raise InvalidInput("not a MAC address", expected="AA:BB:CC:DD:EE:FF", found=repr(text[:40]))
    return plain


def parse_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels that a selector can name; raises `InvalidInput`."""
    check_labels(labels)
    empty = [key for key, value in labels.items() if not value.strip()]
    if empty:
        raise InvalidInput(f"label {empty[0]} has no value", hint="Leave the label out instead.")
    zone = labels.get(ZONE_LABEL)
    if zone is not None and not is_zone(zone):
        raise InvalidInput(
            f"the label {ZONE_LABEL} is no time zone that this machine knows",
            expected="a name like Europe/Berlin, or UTC",
            found=repr(zone[:60]),
        )
    return dict(labels)


def parse_device_token(text: str) -> str:
    """Return a device's token; raises `InvalidInput`, without repeating it, unless an HTTP header can carry it."""
    if not (DEVICE_TOKEN_MIN_LEN <= len(text) <= DEVICE_TOKEN_MAX_LEN and _TOKEN.match(text)):
        raise InvalidInput(
            "a device token that cannot be used",
            expected=f"{DEVICE_TOKEN_MIN_LEN} to {DEVICE_TOKEN_MAX_LEN} printable ASCII characters without spaces",
            found=f"{len(text)} characters",
        )
    return text


def new_device_token() -> str:
    """Return a new random device token."""
    return secrets.token_urlsafe(DEVICE_TOKEN_BYTES)


# device types


def builtin_type(name: str) -> NewDeviceType | None:
    """Return the type that a board's name stands for, None if no board has that name."""
    try:
        found = board(name)
    except NotFound:
        return None
    return NewDeviceType(name=found.name, board=found.name, description=found.title)


def is_builtin(device_type: DeviceType | NewDeviceType) -> bool:
    """Whether a type is a board under its own name."""
    return device_type.name in BOARDS


async def device_type_or_builtin(tx: Transaction, scope: Scope, name: str, now: datetime) -> DeviceType:
    """Return a declared type, or the built-in type of that board's name, made now if it was never used before.

    `tx` must be a writing transaction. Raises `NotFound`.
    """
    try:
        return await tx.device_type(scope, name)
    except NotFound:
        new = builtin_type(name)
        if new is None:
            raise NotFound(
                f"there is no device type {name[:80]!r}",
                hint="Declare it with `flota type add NAME --board BOARD`, or use a board's name: `flota type list`.",
            ) from None
    if new.name != name:
        return await device_type_or_builtin(tx, scope, new.name, now)
    try:
        return await tx.add_device_type(scope, new, now=now)
    except Conflict:  # another request was first: on PostgreSQL two writers can be here at once
        return await tx.device_type(scope, new.name)


def profile_of(device_type: DeviceType) -> TypeProfile:
    """Return what the fit check needs to know of a type. Raises `NotFound` if its board is no longer known."""
    return TypeProfile(
        board=board(device_type.board),
        partition_table=device_type.partition_table,
        version_from=device_type.version_from,
        hardware_revision=device_type.hardware_revision,
        firmware_type=firmware_type_of(device_type.name),
        bootloader_idf_version=device_type.bootloader_idf_version,
        secure_boot_keys=frozenset(device_type.secure_boot_keys),
    )


def signer_of(public_pem: str) -> TrustedSigner:
    """Return the signer that a PEM public key stands for. Raises `InvalidInput` for what is no usable public key."""
    if "PRIVATE KEY" in public_pem:
        raise InvalidInput(
            "that is a private key",
            hint="Keep it where it is, consider it seen by this server, and send the .pub file.",
        )
    return TrustedSigner(key_id=key_id_of(public_pem), public_key=public_pem)


def declared_type(
    *,
    name: str,
    board_name: str,
    partition_csv: str | None,
    hardware_revision: str | None,
    version_from: VersionFrom,
    unknown_devices: UnknownDevices,
    signers: Sequence[str],
    signature_threshold: int,
    poll_interval_s: int,
    description: str,
    confirm: bool = False,
    maintenance: str | None = None,
    download_ahead: bool = False,
    bootloader_idf_version: str | None = None,
    secure_boot_keys: Sequence[str] = (),
) -> NewDeviceType:
    """Return a checked declaration. Raises `InvalidInput`, `ImageError` (partition table), `NotFound` (board)."""
    if not _TYPE_NAME.match(name):
        raise InvalidInput("not a type name", expected=TYPE_NAME_RULE, found=repr(name[:80]))
    if name in BOARDS:
        raise Conflict(
            f"{name} is a board, and so a built-in type already",
            hint="Use it as it is, or give your product another name.",
        )
    its_board = board(board_name)
    table: bytes | None = None
    if partition_csv is not None:
        if its_board.boot != "esp-otadata":
            raise InvalidInput(f"board {its_board.name} has no partition table", hint="Leave out the partition table.")
        if len(partition_csv.encode()) > PARTITION_CSV_MAX_BYTES:
            raise InvalidInput("the partition table is too long", expected=f"at most {PARTITION_CSV_MAX_BYTES} bytes")
        table = _packed_table(partition_csv, its_board)
    trusted = _distinct(signer_of(pem) for pem in signers)
    _check_threshold(signature_threshold, len(trusted), enough_signers_needed=bool(trusted))
    return NewDeviceType(
        name=name,
        board=its_board.name,
        hardware_revision=hardware_revision,
        partition_table=table,
        partition_csv=partition_csv,
        version_from=version_from,
        unknown_devices=unknown_devices,
        signers=trusted,
        signature_threshold=signature_threshold,
        poll_interval_s=poll_interval_s,
        description=description,
        confirm=confirm,
        maintenance=maintenance,
        download_ahead=download_ahead,
        bootloader_idf_version=_checked_idf_version(bootloader_idf_version, its_board),
        secure_boot_keys=_checked_boot_keys(secure_boot_keys, its_board),
    )


def _checked_idf_version(text: str | None, its_board: Board) -> str | None:
    """Return the ESP-IDF version of a boot loader; raises `InvalidInput` for what names no release of ESP-IDF."""
    if text is None:
        return None
    _require_esp(its_board, "an ESP-IDF boot loader")
    if idf_release(text) is None or len(text) > IDF_VERSION_MAX_LEN or not text.isprintable():
        raise InvalidInput(
            "not a version of ESP-IDF",
            expected="a release such as 5.1 or v5.1.2",
            found=repr(text[: IDF_VERSION_MAX_LEN + 1]),
            hint="`flota image inspect bootloader.bin` shows a boot loader's.",
        )
    return text


def _checked_boot_keys(digests: Sequence[str], its_board: Board) -> tuple[str, ...]:
    if not digests:
        return ()
    _require_esp(its_board, "Secure Boot v2")
    keys = tuple(sorted({parse_sha256_hex(digest) for digest in digests}))
    if len(keys) > SECURE_BOOT_KEYS_MAX:
        raise InvalidInput("too many Secure Boot keys", expected=f"at most {SECURE_BOOT_KEYS_MAX}", found=len(keys))
    return keys


def _require_esp(its_board: Board, what: str) -> None:
    if its_board.boot != "esp-otadata":
        raise InvalidInput(
            f"board {its_board.name} does not have {what}", expected="a board with an ESP chip", found=its_board.name
        )


async def set_boot_facts(
    tx: Transaction, scope: Scope, type_name: str, changes: Mapping[str, Any], *, now: datetime
) -> DeviceType:
    """Change what is known about how a type's devices boot; what `changes` does not name stays as it is.

    It may name `bootloader_idf_version` (None: not known) and `secure_boot_keys`. Raises `InvalidInput`, `NotFound`.
    """
    device_type = await device_type_or_builtin(tx, scope, type_name, now)
    its_board = board(device_type.board)
    wanted = {
        "bootloader_idf_version": device_type.bootloader_idf_version,
        "secure_boot_keys": device_type.secure_boot_keys,
        **changes,
    }
    return await tx.set_boot_facts(
        scope,
        device_type.name,
        bootloader_idf_version=_checked_idf_version(wanted["bootloader_idf_version"], its_board),
        secure_boot_keys=_checked_boot_keys(wanted["secure_boot_keys"], its_board),
        now=now,
    )


def _packed_table(csv_text: str, its_board: Board) -> bytes:
    """Return the binary form of a product's own table. Its flash may be larger than the board's usual one."""
    table = require_valid(parse_csv(csv_text, bootloader_offset=its_board.bootloader_offset))
    if not table.ota_slots:
        raise InvalidInput(
            "the partition table has no slot for updates",
            expected="app partitions of subtype ota_0 and ota_1",
            found=", ".join(row.label for row in table.partitions) or "no partition",
        )
    return pack_table(table)


async def add_signers(
    tx: Transaction, scope: Scope, type_name: str, public_keys: Sequence[str], threshold: int | None, *, now: datetime
) -> DeviceType:
    """Add public keys to those whose signatures count, and perhaps change how many are needed."""
    device_type = await device_type_or_builtin(tx, scope, type_name, now)
    signers = _distinct([*device_type.signers, *(signer_of(pem) for pem in public_keys)])
    if len(signers) > SIGNERS_MAX:
        raise InvalidInput("too many signers", expected=f"at most {SIGNERS_MAX}", found=len(signers))
    wanted = device_type.signature_threshold if threshold is None else threshold
    _check_threshold(wanted, len(signers), enough_signers_needed=threshold is not None)
    return await tx.set_signers(scope, device_type.name, signers, wanted, now=now)


def _check_threshold(threshold: int, signers: int, *, enough_signers_needed: bool) -> None:
    if threshold < 1 or threshold > SIGNERS_MAX or (enough_signers_needed and threshold > signers):
        raise InvalidInput(
            "a threshold that these signers can never reach or that needs none",
            expected=f"1 to {signers}" if signers else "1 or more",
            found=threshold,
            hint="The threshold is how many different signers a release needs.",
        )


def _distinct(signers: Iterable[TrustedSigner]) -> tuple[TrustedSigner, ...]:
    by_id: dict[str, TrustedSigner] = {}
    for signer in signers:
        by_id.setdefault(signer.key_id, signer)
    return tuple(by_id.values())


# devices


async def register_device(tx: Transaction, scope: Scope, wanted: Registration, *, now: datetime) -> tuple[Device, str]:
    """Register an accepted device; returns it and its token, given or drawn, which nobody can read again later.

    A device of that name that waits to be accepted is accepted, if it is of the same type. Raises `Conflict` for a name
    or MAC that is taken.
    """
    device_type = await device_type_or_builtin(tx, scope, wanted.type_name, now)
    known = await tx.find_device(scope, wanted.name)
    return await register_as(tx, scope, wanted, device_type, known, now=now)


async def register_as(
    tx: Transaction, scope: Scope, wanted: Registration, device_type: DeviceType, known: Device | None, *, now: datetime
) -> tuple[Device, str]:
    """Like `register_device`, for a caller that has looked up the type and the device of that name (`known`)."""
    token = wanted.token or new_device_token()
    if known is not None:
        return await _adopt(tx, scope, known, wanted, device_type, token, now=now), token
    try:
        return await tx.add_device(scope, new_device(wanted, device_type, token), now=now), token
    except Conflict:
        holder = await tx.find_device_by_mac(scope, wanted.mac) if wanted.mac is not None else None
        if holder is None:
            raise
        raise Conflict(
            f"MAC address {wanted.mac} belongs to another device",
            found=holder.name,
            hint=f"See it with `flota device show {holder.name}`; once that one is removed, the address is free.",
        ) from None


def new_device(wanted: Registration, device_type: DeviceType, token: str) -> NewDevice:
    """Return what is stored of an accepted device that nobody knew before."""
    return NewDevice(
        name=wanted.name,
        type_name=device_type.name,
        state=DeviceState.ACCEPTED,
        token_sha256=digest_of_secret(token),
        mac=wanted.mac,
        labels=dict(wanted.labels),
    )


async def _adopt(
    tx: Transaction,
    scope: Scope,
    known: Device,
    wanted: Registration,
    device_type: DeviceType,
    token: str,
    *,
    now: datetime,
) -> Device:
    """Accept a pending device that was registered under its name while it waited."""
    if known.state is not DeviceState.PENDING or known.type_name != device_type.name:
        raise Conflict(
            f"there is a device {wanted.name} already",
            found=f"{known.state}, type {known.type_name}",
            hint=f"See it with `flota device show {wanted.name}`.",
        )
    if wanted.mac is not None and known.mac not in (None, wanted.mac):
        raise Conflict(f"device {known.name} has another MAC address", expected=known.mac, found=wanted.mac)
    await tx.set_device_token(scope, known.name, digest_of_secret(token), now=now)
    if wanted.labels:
        await tx.set_device_labels(scope, known.name, dict(wanted.labels), now=now)
    return await tx.set_device_state(scope, known.name, DeviceState.ACCEPTED, now=now)
