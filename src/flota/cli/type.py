"""`flota type`: products, their boards and partition tables, and whose signatures count for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect, read_text_file
from flota.cli.output import echo, echo_json, print_table
from flota.errors import WrongUse

if TYPE_CHECKING:
    from flota.client.schemas import DeviceType

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Device types: products, their boards and partition tables."
)

PARTITION_CSV_MAX_BYTES = 64 * 1024

UnknownDevices = Annotated[
    Literal["accept", "hold", "refuse"],
    typer.Option(
        "--unknown-devices",
        help="What happens to a device that nobody registered when it asks.",
    ),
]


BootloaderIdf = Annotated[
    str | None,
    typer.Option(
        "--bootloader-idf",
        metavar="VERSION|FILE",
        help="ESP-IDF of its devices' boot loader (5.1, or the file): apps built with an older one are refused.",
    ),
]
SecureBootKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--secure-boot-key",
        metavar="PUB|DIGEST",
        help="A Secure Boot v2 key in its devices' efuses: images that none of them signed are refused; repeat it.",
    ),
]


Maintenance = Annotated[
    str | None,
    typer.Option(
        "--maintenance",
        metavar="WINDOW",
        help="When devices may install: 'sat,sun 02:00 3h Europe/Berlin'; 'none': at any time.",
    ),
]
Confirm = Annotated[
    bool | None, typer.Option("--confirm/--no-confirm", help="Ask devices before they are told to update (DDI).")
]
DownloadAhead = Annotated[
    bool | None,
    typer.Option("--download-ahead/--no-download-ahead", help="Let devices download while their window is closed."),
]


@app.command("add")
def add_type(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The product's name.")],
    board: Annotated[str, typer.Option("--board", metavar="BOARD", help="Its board; `flota type list` names them.")],
    partitions: Annotated[
        Path | None,
        typer.Option("--partitions", metavar="CSV", help="Its own partition table (ESP-IDF CSV); else the board's."),
    ] = None,
    hardware_revision: Annotated[
        str | None, typer.Option("--hardware-revision", metavar="REV", help="Stands in every release's manifest.")
    ] = None,
    version_from: Annotated[
        Literal["release", "app_desc"],
        typer.Option(
            "--version-from",
            help="app_desc: a release's version must equal the one inside the image.",
        ),
    ] = "release",
    unknown_devices: UnknownDevices = "hold",
    signer: Annotated[
        list[str] | None,
        typer.Option("--signer", metavar="PUB", help="A public key (file or name) whose signatures count; repeat it."),
    ] = None,
    threshold: Annotated[
        int, typer.Option("--threshold", min=1, help="How many different signers a release needs.")
    ] = 1,
    poll_interval: Annotated[
        int, typer.Option("--poll-interval", min=1, metavar="SECONDS", help="How often its devices should ask.")
    ] = 300,
    description: Annotated[str, typer.Option("--description", metavar="TEXT")] = "",
    maintenance: Maintenance = None,
    confirm: Confirm = None,
    download_ahead: DownloadAhead = None,
    bootloader_idf: BootloaderIdf = None,
    secure_boot_key: SecureBootKeys = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Declare a product.

    flota type add pump --board esp32-c3 --partitions partitions.csv --signer release.pub

    flota type add valve --board esp32-s3 --version-from app_desc --unknown-devices accept

    flota type add lock --board esp32-c3 --bootloader-idf 5.1 --secure-boot-key board-maker.pub
    """
    from flota.cli.boot_facts import idf_version_of, key_digest_of
    from flota.cli.signers import read_public_key

    table = read_text_file(partitions, max_bytes=PARTITION_CSV_MAX_BYTES) if partitions is not None else None
    keys = [read_public_key(one) for one in signer or []]
    with connect(server, token, cacert) as client:
        made = client.add_type(
            name,
            board,
            partition_csv=table,
            hardware_revision=hardware_revision,
            version_from=version_from,
            unknown_devices=unknown_devices,
            signers=keys,
            signature_threshold=threshold,
            poll_interval_s=poll_interval,
            description=description,
            confirm=bool(confirm),
            maintenance=None if maintenance == "none" else maintenance,
            download_ahead=bool(download_ahead),
            bootloader_idf_version=idf_version_of(bootloader_idf) if bootloader_idf is not None else None,
            secure_boot_keys=[key_digest_of(one) for one in secure_boot_key or []],
        )
    _show(made, as_json)
    if not made.signers and not as_json:
        echo(f"no signer yet: flota type trust {made.name} --key PUBLIC_KEY")


@app.command("list")
def list_types(as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """List the declared types, then the boards that can be used as they are.

    flota type list --json
    """
    with connect(server, token, cacert) as client:
        found = client.list_types()
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["name", "board", "slot", "signers", "needed", "unknown devices", "description"],
        [
            (
                one.name,
                one.board,
                _smallest_slot(one),
                len(one.signers),
                one.signature_threshold,
                one.unknown_devices,
                "(built-in) " + one.description if one.builtin else one.description,
            )
            for one in found
        ],
    )


@app.command("show")
def show_type(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Show one type: its slots, its signers, its partition table.

    flota type show pump
    """
    with connect(server, token, cacert) as client:
        found = client.device_type(name)
    _show(found, as_json)


@app.command("trust")
def trust(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device type.")],
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="PUB", help="A public key: file or name; repeat it.")
    ] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", min=1, help="How many different signers a release needs.")
    ] = None,
    code_certificate: Annotated[
        list[str] | None,
        typer.Option("--code-certificate", metavar="CERT", help="One that the devices check files with; repeat it."),
    ] = None,
    allow_expired: Annotated[
        bool, typer.Option("--allow-expired", help="Even if it has ended: devices in the field still have it.")
    ] = False,
    remove_code_certificate: Annotated[
        str | None,
        typer.Option("--remove-code-certificate", metavar="SHA256", help="No device of the type has it any more."),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Let a key's signatures count for a type's releases, or a certificate's over the files for its devices.

    flota type trust pump --key release.pub

    flota type trust pump --key second.pub --threshold 2

    flota type trust meter --code-certificate ecdsasigner.crt
    """
    from flota.cli.code_signers import find_certificate, read_certificate_file
    from flota.cli.signers import read_public_key

    if not key and threshold is None and not code_certificate and remove_code_certificate is None:
        raise typer.BadParameter("give --key PUB, --threshold N, --code-certificate CERT, or several of them")
    keys = [read_public_key(one) for one in key or []]
    certificates = [read_certificate_file(find_certificate(one)) for one in code_certificate or []]
    with connect(server, token, cacert) as client:
        changed = client.trust(name, keys, threshold=threshold) if keys or threshold is not None else None
        if certificates:
            changed = client.trust_code_certificates(name, certificates, allow_expired=allow_expired)
        if remove_code_certificate is not None:
            changed = client.distrust_code_certificate(name, remove_code_certificate)
    if changed is not None:
        _show(changed, as_json)


@app.command("set")
def set_policy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device type.")],
    unknown_devices: Annotated[
        Literal["accept", "hold", "refuse"] | None,
        typer.Option("--unknown-devices", help="What happens to a device that nobody registered when it asks."),
    ] = None,
    bootloader_idf: BootloaderIdf = None,
    secure_boot_key: SecureBootKeys = None,
    maintenance: Maintenance = None,
    confirm: Confirm = None,
    download_ahead: DownloadAhead = None,
    poll_interval: Annotated[
        int | None,
        typer.Option("--poll-interval", min=1, max=86_400, metavar="SECONDS", help="How often its devices should ask."),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Change what happens to devices that nobody registered, when devices ask and install, or how they boot.

    The Secure Boot keys given take the place of those that the type had; `none` clears a fact.

    flota type set pump --unknown-devices accept

    flota type set pump --maintenance 'sat,sun 02:00 3h Europe/Berlin' --download-ahead

    flota type set pump --poll-interval 60

    flota type set lock --bootloader-idf 5.2 --secure-boot-key old.pub --secure-boot-key new.pub
    """
    from flota.cli.boot_facts import NONE, idf_version_of, key_digest_of

    facts: dict[str, Any] = {}
    if bootloader_idf is not None:
        facts["bootloader_idf_version"] = None if bootloader_idf == NONE else idf_version_of(bootloader_idf)
    if secure_boot_key:
        facts["secure_boot_keys"] = [] if secure_boot_key == [NONE] else [key_digest_of(one) for one in secure_boot_key]
    rules: dict[str, Any] = {
        "maintenance": maintenance,
        "confirm": confirm,
        "download_ahead": download_ahead,
        "poll_interval_s": poll_interval,
    }
    rules = {key: value for key, value in rules.items() if value is not None}
    if unknown_devices is None and not facts and not rules:
        raise WrongUse(
            "nothing to change", hint="Give --unknown-devices, --maintenance, --bootloader-idf or another option."
        )
    with connect(server, token, cacert) as client:
        changed = client.set_unknown_devices(name, unknown_devices) if unknown_devices is not None else None
        if rules:
            changed = client.set_update_rules(name, **rules)
        if facts or changed is None:
            changed = client.set_boot_facts(name, **facts)
    _show(changed, as_json)


def _show(one: DeviceType, as_json: bool) -> None:
    if as_json:
        echo_json(one.as_dict())
        return
    rows: list[tuple[str, Any]] = [
        ("type", one.name + (" (built-in)" if one.builtin else "")),
        ("board", one.board),
        ("hardware revision", one.hardware_revision or "any"),
        ("version from", one.version_from),
        ("unknown devices", one.unknown_devices),
        ("signatures needed", one.signature_threshold),
        ("asks every", f"{one.poll_interval_s} s"),
        ("maintenance", one.maintenance or "at any time"),
    ]
    rows += [("asks first", "yes: the device over DDI, or `flota device confirm`")] if one.confirm else []
    rows += [("downloads ahead", "yes")] if one.download_ahead else []
    rows += [("signer", signer.key_id) for signer in one.signers] or [("signer", "none")]
    rows += [
        ("code certificate", f"{code.fingerprint}, {code.subject}, {code.name}, until {code.not_after.date()}")
        for code in one.code_certificates
    ]
    if one.code_signatures and not one.code_certificates:
        rows.append(("code certificate", f"none; releases need {' or '.join(one.code_signatures)}"))
    if one.bootloader_idf_version is not None:
        rows.append(("boot loader", f"ESP-IDF {one.bootloader_idf_version}"))
    rows += [("secure boot key", digest) for digest in one.secure_boot_keys]
    rows += [("slot", f"{slot.name}{_at(slot.offset)}, {slot.size} bytes") for slot in one.slots]
    for name, value in rows:
        echo(f"{name:<18} {value}")


def _at(offset: int | None) -> str:
    return f" at {offset:#x}" if offset is not None else ""


def _smallest_slot(one: DeviceType) -> str:
    return str(min((slot.size for slot in one.slots), default=0)) if one.slots else "-"
