"""`flota lab run`: one virtual device, alive until Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flota.cli.lab_arguments import State, boot_keys, choice, read_file, read_table
from flota.cli.output import echo, warn

if TYPE_CHECKING:
    from flota.lab.fleet import DeviceSpec, RunningDevice
    from flota.virtual.events import DeviceEvent


def run(
    board: Annotated[str, typer.Argument(help="Board name, see `flota lab boards`.")],
    state: State,
    name: Annotated[str | None, typer.Option("--name", help="The device's name; default: its directory's.")] = None,
    server: Annotated[str | None, typer.Option("--server", metavar="URL", help="Where it looks for updates.")] = None,
    token: Annotated[str | None, typer.Option("--token", envvar="FLOTA_DEVICE_TOKEN", help="Its own token.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Its device type; default: the board's name.")] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            "--dialect",
            help="http-update, esp-https-ota, ddi, viam, espota; amebad: ameba-push, anchorota, http-update-ota, "
            "ota-http, update-ota-local. Default by board.",
        ),
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant in DDI addresses.")] = "DEFAULT",
    speed: Annotated[
        float, typer.Option("--speed", help="Poll, erase, program, reboot and self-test that much faster.")
    ] = 1,
    cacert: Annotated[
        Path | None, typer.Option("--cacert", metavar="FILE", help="CA that it trusts for https.")
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option("--trust", metavar="FILE", help="Signers that it trusts (ddi); else unsigned is fine."),
    ] = None,
    poll_interval: Annotated[
        float | None, typer.Option("--poll-interval", metavar="S", help="Seconds between polls, before --speed.")
    ] = None,
    firmware: Annotated[
        Path | None,
        typer.Option("--firmware", metavar="FILE", help="Put into it if it is blank; default: our sample 1.0.0."),
    ] = None,
    partitions: Annotated[
        Path | None, typer.Option("--partitions", metavar="CSV", help="Partition table for a blank device.")
    ] = None,
    build: Annotated[
        str | None,
        typer.Option(
            "--boot-build",
            help="plain (esp32; m487: the vendor's loader and Cloner), rollback (others) or anti-rollback; kept in the "
            "directory.",
        ),
    ] = None,
    fetch: Annotated[str, typer.Option("--fetch", help="esp-https-ota: plain, resume or partial.")] = "resume",
    mac: Annotated[str | None, typer.Option("--mac", help="Its MAC; default: made from the name.")] = None,
    hardware_revision: Annotated[str | None, typer.Option("--hardware-revision", help="Its hardware revision.")] = None,
    viam_config: Annotated[
        str | None,
        typer.Option(
            "--viam-config",
            metavar="FILE|URL",
            help="A micro-RDK's machine configuration, looked at every 10 s: stands for Viam's cloud.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="H:P",
            help="Where it takes a push or trigger; default: loopback, 8082 (amebad), 5000 (ota-http), 3232 (espota).",
        ),
    ] = None,
    announce: Annotated[
        bool, typer.Option("--announce/--no-announce", help="amebad, espota: announce itself by mDNS.")
    ] = True,
    password: Annotated[
        str | None, typer.Option("--password", envvar="FLOTA_OTA_PASSWORD", help="espota: what a sender has to know.")
    ] = None,
    quirk: Annotated[
        list[str] | None,
        typer.Option("--quirk", help="amebad: force-ota1 (the pin), legacy-target (old cores), old-log; repeatable."),
    ] = None,
    tells_version: Annotated[
        bool, typer.Option("--tells-version", help="amebad: add its version to announcements and state posts.")
    ] = False,
    mqtt: Annotated[
        str | None, typer.Option("--mqtt", metavar="H:P", help="aws-iot: the MQTT server; default: the credentials'.")
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials", metavar="DIR", help="aws-iot: certificate and key, of `flota device add --certificate`."
        ),
    ] = None,
    code_certificate: Annotated[
        Path | None,
        typer.Option("--code-certificate", metavar="FILE", help="aws-iot: what it checks files with (PEM)."),
    ] = None,
    data_path: Annotated[str, typer.Option("--data-path", help="aws-iot: mqtt or http, where a job offers both.")] = (
        "mqtt"
    ),
    block_size: Annotated[
        int, typer.Option("--block-size", metavar="BYTES", help="aws-iot: 256 to 131072, a power of two.")
    ] = 4096,
    boot_key: Annotated[
        Path | None,
        typer.Option("--boot-key", metavar="FILE", help="m2354: public key that its boot loader is built with (PEM)."),
    ] = None,
    serial: Annotated[
        Path | None,
        typer.Option(
            "--serial", metavar="PATH", help="dual-mcu: line to its NCP; a pseudo-terminal is made if none is there."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="dual-mcu: like the vendor's reference firmware, weaknesses included.")
    ] = False,
    confirm_window: Annotated[
        float | None,
        typer.Option("--confirm-window", metavar="S", min=0.1, help="dual-mcu-ab: time for a self-test. [60]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Run a virtual device until Ctrl-C. Killing the process is a power cut; start it again and it boots.

    Examples:
        flota lab run esp32-c3 --name pump-1 --state ./pump-1 --server http://127.0.0.1:8080 --speed 20

        flota lab run esp32 --name rover-1 --state ./rover-1 --viam-config rover-1.json --speed 20

        flota lab run amebad --name lamp-1 --state ./lamp-1 --listen 127.0.0.1:8082

        flota lab run m487 --name pump-1 --state ./pump-1 --credentials ./pump-1-credentials --boot-build plain

        flota lab run aws-reference --name meter-1 --state ./meter-1 --credentials ./meter-1-credentials --speed 20

        flota lab run dual-mcu-ab --name pump-1 --state ./pump-1 --serial ./pump-1.uart

        echo 'ATWO=127.0.0.1[8082]' | flota lab run amebad --dialect update-ota-local --state ./lamp-2
    """
    import asyncio

    from flota.lab.ameba_agents import AmebaQuirk
    from flota.lab.fleet import DeviceSpec, Dialect
    from flota.virtual.agents.ameba_pull import ORDERS_WAITING_MAX
    from flota.virtual.agents.esp_https_ota import FetchMode
    from flota.virtual.boot.esp_idf import BootBuild

    spec = DeviceSpec(
        name=name or state.resolve().name,
        board=board,
        state=state,
        server=server,
        token=token,
        device_type=type_,
        dialect=None if dialect is None else choice(Dialect, dialect, "--dialect"),
        tenant=tenant,
        speed=speed,
        cacert=cacert,
        signers=_read_trust(trust),
        poll_interval_s=poll_interval,
        firmware=_factory_firmware(board, firmware, state, type_),
        firmware_version="1.0.0" if firmware is None else None,
        table=read_table(board, partitions),
        build=None if build is None else choice(BootBuild, build, "--boot-build"),
        fetch_mode=choice(FetchMode, fetch, "--fetch"),
        mac=_checked_mac(mac),
        hardware_revision=hardware_revision,
        viam_config=viam_config,
        push=None if listen is None or dialect in {"espota", "ota-http"} else _push_settings(listen),
        trigger=None if listen is None or dialect != "ota-http" else _trigger_address(listen),
        tells_version=tells_version,
        quirks=frozenset(choice(AmebaQuirk, each, "--quirk") for each in quirk or []),
        orders=asyncio.Queue(ORDERS_WAITING_MAX) if dialect == "update-ota-local" else None,
        espota=_espota_settings(listen, password) if dialect == "espota" else None,
        announce=announce,
        aws=_aws_options(mqtt, credentials, code_certificate, data_path, block_size),
        boot_keys=boot_keys(board, boot_key, state),
        mcu=_mcu_options(serial, strict, speed, confirm_window),
    )
    _run(spec, as_json=as_json)


def _run(spec: DeviceSpec, *, as_json: bool) -> None:
    import asyncio
    import json

    from flota.cli.lab_console import type_lines
    from flota.lab.fleet import open_device

    said = ""

    def tell(event: DeviceEvent) -> None:
        nonlocal said
        if event.text == said and not as_json:
            return  # a poll like the one before is not worth a line
        said = event.text
        echo(json.dumps(event.as_dict(), ensure_ascii=False) if as_json else f"{event.device}: {event.text}")

    async def live() -> None:
        device = open_device(spec, tell)
        if spec.orders is not None:
            type_lines(spec.orders, sys.stdin.fileno())
        try:
            await _until_told_to_stop(device)
        finally:
            await device.close()

    asyncio.run(live())


async def _until_told_to_stop(running: RunningDevice) -> None:
    import asyncio
    import signal

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, running.device.press_reset)
    await running.device.run(stop)


def _push_settings(text: str) -> Any:
    from flota.cli.push import parse_target
    from flota.virtual.agents.ameba_push import PushSettings

    host, port = parse_target(text)
    return PushSettings(host=host) if port is None else PushSettings(host=host, port=port)


def _trigger_address(text: str) -> tuple[str, int]:
    from flota.cli.push import parse_target
    from flota.protocols.ameba_http import TRIGGER_PORT

    host, port = parse_target(text)
    return host, TRIGGER_PORT if port is None else port


def _aws_options(
    mqtt: str | None, credentials: Path | None, code_certificate: Path | None, data_path: str, block_size: int
) -> Any:
    """Return how the device reaches its MQTT server, None if it has none."""
    from flota.cli.push import parse_target
    from flota.errors import InvalidInput
    from flota.lab.aws_agents import MQTT_PORT, AwsOptions, ThingDirectory
    from flota.protocols.aws_ota import DataProtocol
    from flota.protocols.aws_streams import BLOCK_SIZE_MAX, BLOCK_SIZE_MIN
    from flota.virtual.agents.aws_ota.ports import AgentBuild

    if mqtt is None and credentials is None:
        if code_certificate is not None:
            raise InvalidInput("--code-certificate is for devices that have an MQTT server", hint="Add --mqtt H:P.")
        return None
    if not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX or block_size & (block_size - 1):
        message = f"{block_size} is no power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}"
        raise typer.BadParameter(message, param_hint="--block-size")
    host, port = (None, None) if mqtt is None else parse_target(mqtt)
    return AwsOptions(
        host=host,
        port=MQTT_PORT if mqtt is not None and port is None and credentials is None else port,
        credentials=None if credentials is None else ThingDirectory.read(credentials),
        code_certificate=None if code_certificate is None else read_file(code_certificate),
        build=AgentBuild(block_size=block_size, primary=choice(DataProtocol, data_path.upper(), "--data-path")),
    )


def _mcu_options(serial: Path | None, strict: bool, speed: float, confirm_window: float | None) -> Any:
    """Return the line and the build of a primary MCU, None without a line."""
    from flota.errors import InvalidInput
    from flota.lab.mcu_agents import McuOptions
    from flota.protocols.blynk.ncp_job import CONFIRM_WINDOW_S
    from flota.virtual.agents.blynk_firmware import McuBuild

    if serial is None:
        if strict or confirm_window is not None:
            raise InvalidInput(
                "--strict and --confirm-window are for devices with an NCP", hint="Give the line with --serial PATH."
            )
        return None
    return McuOptions(
        serial.absolute(), McuBuild(is_strict=strict, speed=speed, confirm_window_s=confirm_window or CONFIRM_WINDOW_S)
    )


def _espota_settings(listen: str | None, password: str | None) -> Any:
    from flota.cli.push import parse_target
    from flota.virtual.agents.espota import EspotaSettings

    if listen is None:
        return EspotaSettings(password=password)
    host, port = parse_target(listen)
    default = EspotaSettings()
    return EspotaSettings(host=host, port=default.port if port is None else port, password=password)


def _checked_mac(text: str | None) -> str | None:
    from flota.protocols.http_update import parse_mac

    return None if text is None else parse_mac(text)


def _read_trust(path: Path | None) -> Any:
    from flota.trust.trust_file import parse_trust_file

    return None if path is None else parse_trust_file(read_file(path))


def _factory_firmware(board: str, path: Path | None, state: Path, type_name: str | None = None) -> bytes | None:
    from flota.boards.catalogue import board as board_named
    from flota.boards.fit_blynk import firmware_type_of
    from flota.boards.model import BOOT_AB_RECORD, BOOT_MCUBOOT_OVERWRITE, BOOT_NUVOTON_CLONER, Route
    from flota.lab.nuvoton_programmer import own_boot_key
    from flota.lab.sample_firmware import (
        sample_ameba,
        sample_app,
        sample_linux_file,
        sample_m487,
        sample_m2354,
        sample_versioned_file,
    )
    from flota.lab.sample_mcu import SAMPLE_FW_TYPE, sample_mcu

    if path is not None:
        return read_file(path)
    if (state / "device.json").exists():
        return None
    declared = board_named(board)
    if sys.stderr.isatty():
        warn("a blank device: our sample firmware 1.0.0 is put into it")
    if Route.AMEBA_PUSH in declared.routes:
        return sample_ameba("1.0.0")
    if declared.boot == BOOT_AB_RECORD:
        return sample_versioned_file("1.0.0")
    if Route.BLYNK_NCP in declared.routes:
        fw_type = firmware_type_of(type_name or "") or SAMPLE_FW_TYPE
        return sample_mcu("1.0.0", fw_type=fw_type)
    if declared.boot == BOOT_NUVOTON_CLONER:
        return sample_m487("1.0.0")
    if declared.boot == BOOT_MCUBOOT_OVERWRITE:
        return sample_m2354("1.0.0", own_boot_key(state).signer)
    return sample_linux_file("1.0.0") if declared.chip is None else sample_app("1.0.0", chip=declared.chip)
