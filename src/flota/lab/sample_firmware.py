"""Sample firmware for virtual devices and demonstrations: real images, small code, generated filling.

The code is the C program in `examples/firmware`, whose built ELF files come with the package. Packing goes through
`images`, so a board can run the ESP32-C3 images, and the vendor's own tool accepts them. The filling makes an image
long enough to be interrupted in the middle; from 256 KiB up every 4 KiB sector differs from version to version, so that
a mix of two versions can be told from either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Final

from flota.errors import NotFound
from flota.images.ameba.image2 import KM0, KM4, PSRAM_ADDRESS, RAM_ADDRESS, XIP_ADDRESS, join_cores
from flota.images.ameba.segment import HEADER_SIZE, IMAGE2_SIGNATURE, SECTOR_SIZE, SegmentHeader, rounded_up
from flota.images.elf_file import parse_elf as parse_any_elf
from flota.images.esp_app import pack_app
from flota.images.esp_chips import EspChip, chip_named
from flota.images.esp_elf import parse_elf
from flota.images.esp_layout import AppIdentity, MemoryPiece, PackOptions, build_app
from flota.images.markers import pack_marker
from flota.images.mcuboot import ImageSigner, pack_image, sign_image
from flota.images.memory_map import flatten
from flota.images.model import ImageError
from flota.images.nuvoton import AppVersion
from flota.images.nuvoton import pack_app as pack_m487_app
from flota.images.nuvoton.update import build_update, update_version

SAMPLE_PROJECT: Final = "flota-sample"
SAMPLE_CHIP: Final = "esp32-c3"
"""The chip that the code is linked for."""
SAMPLE_APP_BYTES: Final = 1 << 20
SAMPLE_FILE_BYTES: Final = 256 * 1024
SAMPLE_AMEBA_BYTES: Final = 256 * 1024
SAMPLE_NUVOTON_BYTES: Final = 128 * 1024

BUILT_VERSIONS: Final = MappingProxyType(
    {"1.0.0": "healthy", "2.0.0": "healthy", "3.0.0": "crash", "4.0.0": "never-confirm", "5.0.0": "lose-network"}
)
"""Version -> behaviour of the ELF files that are built (`examples/firmware/build.sh`)."""

AMEBA_BUILT_VERSIONS: Final = MappingProxyType({"1.0.0": "healthy", "2.0.0": "healthy", "3.0.0": "crash"})
"""The same for KM4 of AmebaD; KM0 has one build for all, as in the Arduino core."""

NUVOTON_BUILT_VERSIONS: Final = MappingProxyType(
    {"1.0.0": "healthy", "1.0.1": "healthy", "1.0.2": "crash", "1.0.3": "never-confirm"}
)
"""The same for the application of the M487 and of the M2354."""

BEHAVIOURS: Final = tuple(dict.fromkeys(BUILT_VERSIONS.values()))

_LAST_BUILT: Final = MappingProxyType({behaviour: version for version, behaviour in BUILT_VERSIONS.items()})
_PAGE: Final = 64 * 1024
_SECTOR: Final = 4096
_SCRIPT: Final = """#!/bin/sh
# {project} {version}: a file with the size of a firmware image. {marker}
echo "{project} {version}"
{action}
exit {status}
"""
_ACTIONS: Final = MappingProxyType(
    {
        "healthy": ("echo confirmed", 0),
        "crash": ("kill -ILL $$", 1),
        "never-confirm": ("echo running", 0),
        "lose-network": ('echo "self-test: no network"', 1),
        "fail-self-test": ('echo "self-test: failed"', 1),
    }
)


def sample_app(
    version: str, *, chip: str = SAMPLE_CHIP, size: int = SAMPLE_APP_BYTES, behaviour: str | None = None
) -> bytes:
    """Return an ESP app image of exactly `size` bytes (a multiple of 16) with this version; the same each time.

    `behaviour` is one of `BEHAVIOURS`; None means that of the built version, and healthy for versions that are not
    built: those are a built one with another descriptor. For chips other than the ESP32-C3 the image is well formed and
    at that chip's addresses, but its machine code stays that of the C3: for virtual devices only.
    Raises `NotFound` for unknown behaviours and chips, `ImageError` if `size` is too small or not a multiple of 16.
    """
    wanted = behaviour or BUILT_VERSIONS.get(version, "healthy")
    base = version if BUILT_VERSIONS.get(version) == wanted else _LAST_BUILT[_known_behaviour(wanted)]
    target = chip_named(chip)
    program = parse_elf(built_elf(base))
    pieces, entry = program.pieces, program.entry
    if target.name != SAMPLE_CHIP:
        pieces, entry = _at_addresses_of(target, pieces)
    filling = _filling(version, wanted, size)
    # The filling extends the mapped data up to just below a page boundary, where the code has to start; a segment that
    # is not loaded takes up the rest.
    pages = max(size // _PAGE - 2, 0)
    mapped = max(pages * _PAGE - _SECTOR, 0)
    return pack_app(
        build_app(
            _with_more_data(pieces, target, filling[:mapped]),
            chip=target,
            entry=entry,
            identity=AppIdentity(version=version, project=SAMPLE_PROJECT, elf_sha256=program.sha256),
            options=PackOptions(pad_to=size, padding=filling[mapped:] or b"\0"),
        )
    )


def sample_ameba(version: str, *, size: int = SAMPLE_AMEBA_BYTES, behaviour: str | None = None) -> bytes:
    """Return a `km0_km4_image2.bin` of exactly `size` bytes (whole sectors of 4096) with this version; always the same.

    `behaviour` as with `sample_app`; what is not built is a built one with another marker: for virtual devices only.
    Raises `NotFound` for an unknown behaviour, `ImageError` if `size` is too small or not whole sectors.
    """
    wanted = _known_behaviour(behaviour or AMEBA_BUILT_VERSIONS.get(version, "healthy"))
    built = AMEBA_BUILT_VERSIONS.get(version) == wanted
    code = _ameba_segments(KM4, built_program(f"ameba-km4-{version if built else '1.0.0'}"))
    km0 = _ameba_image(KM0, *_ameba_segments(KM0, built_program("ameba-km0")))
    overhead = rounded_up(len(km0)) + 3 * HEADER_SIZE + sum(len(part) for part in code)
    marker = b"" if built else pack_marker({"version": _plain(version), "behaviour": wanted})
    room = size - overhead
    if size % SECTOR_SIZE or room < len(marker):
        smallest = rounded_up(overhead + len(marker))
        raise ImageError(
            "not a size for the sample image", expected=f"a multiple of {SECTOR_SIZE} from {smallest}", found=size
        )
    more = (marker + _filling(f"ameba {version}", wanted, room))[: room // 4 * 4]
    xip, ram = code
    return join_cores(km0, _ameba_image(KM4, xip + more, ram))


def sample_m487(version: str, *, size: int = SAMPLE_NUVOTON_BYTES, behaviour: str | None = None) -> bytes:
    """Return the APROM image of a NuMaker M487 of exactly `size` bytes (whole pages of 4096); always the same.

    `version` is major.minor.build; `behaviour` as with `sample_ameba`. Raises `NotFound` for an unknown behaviour,
    `ImageError` for another kind of version or if `size` does not do.
    """
    image = _nuvoton_program("m487", version, behaviour, size)
    if size % SECTOR_SIZE:
        raise ImageError("not a size for the sample image", expected=f"a multiple of {SECTOR_SIZE}", found=size)
    return pack_m487_app(image)


def sample_m2354(
    version: str, signer: ImageSigner, *, size: int = SAMPLE_NUVOTON_BYTES, behaviour: str | None = None
) -> bytes:
    """Return the signed update of a NuMaker-M2354, as mbed-os's build script makes it; `size` bytes of it are firmware.

    `signer` has to be an RSA-3072 key for the boot loader to take it. RSA signatures are random: two calls differ in
    the last bytes. The version in MCUboot's header has `version` as its build number, so that each is told from others.
    Raises as `sample_m487` does, but for whole pages, and what the signer raises.
    """
    program = _nuvoton_program("m2354", version, behaviour, size)
    image = build_update(program, update_version(AppVersion.parse(version).word))
    return pack_image(sign_image(image, signer, full_key=True))


def sample_linux_file(version: str, *, size: int = SAMPLE_FILE_BYTES, behaviour: str = "healthy") -> bytes:
    """Return a file of exactly `size` bytes for a `generic-linux` device: a shell script, then generated bytes.

    It really runs (`sh FILE`): it says its version and ends as its behaviour tells. Raises `NotFound` for an unknown
    behaviour, `ImageError` if `size` is too small for the script.
    """
    _known_behaviour(behaviour)
    return _script_file(version, size, behaviour, {"behaviour": behaviour})


def sample_versioned_file(version: str, *, size: int = SAMPLE_FILE_BYTES, behaviour: str = "healthy") -> bytes:
    """Return such a file with its version in the marker, as firmware has it built in: for `aws-reference` devices.

    `behaviour` may also be `fail-self-test`. Raises `NotFound` and `ImageError` like `sample_linux_file`.
    """
    if behaviour not in _ACTIONS:
        raise NotFound("no such behaviour", expected=", ".join(_ACTIONS), found=repr(behaviour[:32]))
    return _script_file(version, size, behaviour, {"version": _plain(version), "behaviour": behaviour})


def built_elf(version: str) -> bytes:
    """Return the built ELF file of this version: from the package, else from the checkout. Raises `NotFound`."""
    return built_program(f"sample-{version}", ", ".join(BUILT_VERSIONS))


def built_program(name: str, known: str | None = None) -> bytes:
    """Return a built ELF file by its name without `.elf`. Raises `NotFound`, with the `known` ones."""
    for directory in _directories():
        file = directory / f"{name}.elf"
        if file.is_file():
            return file.read_bytes()
    raise NotFound("this sample firmware is not built", expected=known, found=repr(name[:60]))


def _directories() -> tuple[Traversable | Path, ...]:
    checkout = Path(__file__).resolve().parents[3] / "examples" / "firmware" / "built"
    return (resources.files("flota.lab") / "firmware", checkout)


def _ameba_segments(core: str, elf: bytes) -> tuple[bytes, bytes]:
    """Return what of a core's program runs from flash, and what is loaded into RAM."""
    blocks = {block.address: block.data for block in parse_any_elf(elf).blocks}
    return blocks[XIP_ADDRESS[core]], blocks[RAM_ADDRESS[core]]


def _ameba_image(core: str, xip: bytes, ram: bytes) -> bytes:
    """Return a core's image2, not padded; KM4's ends with an empty PSRAM segment, as newer builds have it."""
    parts = [(XIP_ADDRESS[core], xip), (RAM_ADDRESS[core], ram)]
    parts += [(PSRAM_ADDRESS, b"")] if core == KM4 else []
    return b"".join(SegmentHeader(IMAGE2_SIGNATURE, len(data), address).pack() + data for address, data in parts)


def _nuvoton_program(board: str, version: str, behaviour: str | None, size: int) -> bytes:
    """Return the program of `size` bytes: what is built, then generated data; with a marker if this is not built."""
    number = str(AppVersion.parse(version))
    wanted = _known_behaviour(behaviour or NUVOTON_BUILT_VERSIONS.get(number, "healthy"))
    built = NUVOTON_BUILT_VERSIONS.get(number) == wanted
    code = flatten(parse_any_elf(built_program(f"{board}-{number if built else '1.0.0'}")))
    marker = b"" if built else pack_marker({"version": number, "behaviour": wanted})
    room = size - len(code) - len(marker)
    if room < 0:
        raise ImageError(
            "too small for the sample image", expected=f"at least {len(code) + len(marker)} bytes", found=size
        )
    return code + marker + _filling(f"{board} {number}", wanted, room)


def _known_behaviour(behaviour: str) -> str:
    if behaviour not in _LAST_BUILT:
        raise NotFound("no such behaviour", expected=", ".join(BEHAVIOURS), found=repr(behaviour[:32]))
    return behaviour


def _script_file(version: str, size: int, behaviour: str, markers: dict[str, str]) -> bytes:
    action, status = _ACTIONS[behaviour]
    marker = pack_marker(markers).decode("ascii")
    script = _SCRIPT.format(
        project=SAMPLE_PROJECT, version=_plain(version), marker=marker, action=action, status=status
    ).encode("utf-8")
    if size < len(script):
        raise ImageError("too small for the sample file", expected=f"at least {len(script)} bytes", found=size)
    return script + _filling(version, behaviour, size - len(script))


def _filling(version: str, behaviour: str, size: int) -> bytes:
    """Return `size` bytes that look random and are the same for the same version and behaviour."""
    return hashlib.shake_256(f"{SAMPLE_PROJECT} {version} {behaviour}".encode()).digest(size)


def _with_more_data(pieces: Sequence[MemoryPiece], chip: EspChip, more: bytes) -> tuple[MemoryPiece, ...]:
    """Return the pieces with `more` behind the mapped data, still read-only data of the program's."""
    end = max(piece.end for piece in pieces if piece.address in chip.data_map)
    return (*pieces, MemoryPiece(end, more)) if more else tuple(pieces)


def _at_addresses_of(target: EspChip, pieces: Sequence[MemoryPiece]) -> tuple[tuple[MemoryPiece, ...], int]:
    """Return the mapped pieces moved to where `target` maps flash, and an entry address there.

    What the C3 keeps in RAM is left out, since where it may lie differs from chip to chip.
    """
    home = chip_named(SAMPLE_CHIP)
    moved: list[MemoryPiece] = []
    entry = target.code_map.start
    for piece in pieces:
        if piece.address in home.data_map:
            moved.append(MemoryPiece(piece.address - home.data_map.start + target.data_map.start, piece.data))
        elif piece.address in home.code_map:
            entry = piece.address - home.code_map.start + target.code_map.start
            moved.append(MemoryPiece(entry, piece.data))
    return tuple(moved), entry


def _plain(version: str) -> str:
    """Return `version` if it can stand inside a script's quotes. Raises `ImageError`."""
    if not version.isprintable() or set(version) & set('"\\$`'):
        raise ImageError("the version cannot stand in the sample file", found=ascii(version[:64]))
    return version
