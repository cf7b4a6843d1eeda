"""`flota image blynk-tag`: show a firmware tag, or give one to a package that has lost its own."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flota.cli.image_files import read_file, write_file
from flota.cli.output import EXIT_FAILED, echo, echo_json, warn
from flota.errors import Refused, WrongUse

if TYPE_CHECKING:
    from flota.images.blynk_tag import FoundTag


def blynk_tag(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The package.", metavar="FILE")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", dir_okay=False, help="Where the result goes.", metavar="OUT")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the tag that is there.")] = False,
    mcu: Annotated[str | None, typer.Option("--mcu", help="The firmware's version.", metavar="V")] = None,
    fw_type: Annotated[
        str | None, typer.Option("--fw-type", help="The firmware's type, usually the template's id.", metavar="T")
    ] = None,
    build: Annotated[
        str | None, typer.Option("--build", help="Build time, 'Nov 16 2023 20:35:55'; 'now' for now.", metavar="B")
    ] = None,
    blynk: Annotated[
        str | None, typer.Option("--blynk", help="Version of the NCP driver in the firmware.", metavar="L")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over the tag that the file has, if the new one is not longer.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --show: fail for several tags, or one that the cloud does not see.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as data.")] = False,
) -> None:
    """Show the firmware tag of a file, or add one at its end.

    The values have to be those that the running firmware reports to its NCP. Sign the result, not the file before.

    Example: flota image blynk-tag firmware.bin --show
    Example: flota image blynk-tag package.bin --mcu 1.2.3 --fw-type TMPLabcd1234 --build now -o tagged.bin
    """
    writes = [name for name, value in (("--mcu", mcu), ("--fw-type", fw_type), ("-o", output)) if value is not None]
    others = [name for name, value in (("--build", build), ("--blynk", blynk), ("--replace", replace)) if value]
    if show:
        if writes or others:
            raise WrongUse(f"--show writes nothing: leave out {', '.join([*writes, *others])}")
        _show(file, strict=strict, as_json=as_json)
        return
    if mcu is None or fw_type is None or output is None:
        raise WrongUse("say what to do", expected="--show, or --mcu V --fw-type T -o OUT")
    if strict:
        raise WrongUse("--strict goes with --show")
    from flota.images.blynk_tag import append_tag, find_tags, pack_tag, parse_build_time, written_pairs
    from flota.images.inspection import inspect

    if build == "now":
        build = datetime.now().astimezone().strftime("%b %d %Y %H:%M:%S")
    built = None if build is None else parse_build_time(build)
    tag = pack_tag(written_pairs(mcu=mcu, fw_type=fw_type, build=built, library=blynk))
    data = read_file(file)
    tagged = append_tag(data, tag, replace=replace)
    was_whole = not inspect(data).errors
    damage = inspect(tagged).errors if was_whole else ()
    if damage:
        raise Refused(
            f"the tag would break the file: {damage[0].text}",
            offset=damage[0].offset,
            hint="Put the tag into the firmware itself, before it is packed or signed.",
        )
    write_file(output, tagged)
    place = find_tags(tagged)[0].offset
    if as_json:
        echo_json({"file": str(output), "size": len(tagged), "offset": place, "tag_size": len(tag)})
        return
    echo(f"{output}: {len(tagged)} bytes, tag of {len(tag)} bytes at {place:#x}")


def _show(file: Path, *, strict: bool, as_json: bool) -> None:
    from flota.images.blynk_tag import find_tags, read_as_cloud, tag_findings
    from flota.images.packed_files import unpacked_members

    data, inside = read_file(file), None
    found = find_tags(data)
    if not found:
        for name, content in unpacked_members(data):
            found = find_tags(content)
            if found:
                data, inside = content, name
                break
    findings = tuple(tag_findings(data, found))
    cloud = read_as_cloud(data)
    seen = bool(found) and cloud is not None and cloud.is_of(found[0].tag)
    if as_json:
        echo_json(
            {
                "file": file.name,
                "packed_in": inside,
                "tag": _plain(found[0]) if found else None,
                "others": [_plain(one) for one in found[1:]],
                "cloud_recognises": seen,
                "findings": [{"level": one.level, "code": one.code, "text": one.text} for one in findings],
            }
        )
    elif found:
        _print(found[0], inside, seen=seen)
    if not as_json:
        from flota.cli.image_view import show_finding

        for finding in findings:
            show_finding(finding)
    if not found:
        warn(f"{file.name} has no firmware tag")
        raise typer.Exit(EXIT_FAILED)
    several = any(finding.code == "several-tags" for finding in findings)
    if strict and (several or not seen):
        raise typer.Exit(EXIT_FAILED)


def _print(one: FoundTag, inside: str | None, *, seen: bool) -> None:
    from flota.images.text import cleaned_text

    where = f" of {cleaned_text(inside)}, packed in the file" if inside is not None else ""
    echo(f"firmware tag, {one.size} bytes at {one.offset:#x}{where}")
    width = max(len(cleaned_text(key)) for key, _ in one.tag.pairs)
    for key, value in one.tag.pairs:
        echo(f"  {cleaned_text(key):<{width}}  {cleaned_text(value, max_chars=256)}")
    echo(f"  recognised by the vendor's cloud: {'yes' if seen else 'no'}")


def _plain(one: FoundTag) -> dict[str, object]:
    return {"offset": one.offset, "size": one.size, "pairs": [list(pair) for pair in one.tag.pairs]}
