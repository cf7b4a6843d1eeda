"""What a device is built with: C arrays that a compiler and our own reader see alike, macros, and `thing.json`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.trust.thing_certificates import new_thing_key, pack_public_key, pack_thing_key
from flota.trust.thing_credentials import (
    ARRAYS,
    BadCredentialsSource,
    BadThingFile,
    ThingCredentials,
    ThingFile,
    pack_config_header,
    pack_credentials_source,
    pack_thing_file,
    parse_credentials_source,
    parse_thing_file,
)

THING = ThingFile("meter:3", "meter-3_client", "updates.example.com", 8883)
KEY = new_thing_key("p256")
CREDENTIALS = ThingCredentials(
    thing=THING,
    certificate="-----BEGIN CERTIFICATE-----\nMIIB/+//c==\n-----END CERTIFICATE-----\n",
    root_ca="-----BEGIN CERTIFICATE-----\nROOT//*+\n-----END CERTIFICATE-----\n",
    public_key=pack_public_key(KEY.public_key()),
    private_key=pack_thing_key(KEY),
    code_certificate="-----BEGIN CERTIFICATE-----\nCODE\n-----END CERTIFICATE-----\n",
)

LINES = st.lists(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64), max_size=6)
TEXTS = LINES.map(lambda lines: "".join(f"{line}\n" for line in lines))


def test_every_array_of_the_guide_is_there_and_every_line_is_quoted() -> None:
    source = pack_credentials_source(CREDENTIALS)
    assert list(ARRAYS) == ["aws_rootCACrt", "aws_deviceCrt", "aws_devicePubKey", "aws_devicePvtKey", "aws_codeVerCrt"]
    for array, (name, _) in ARRAYS.items():
        body = source.split(f"const char {array}[] =\n")[1].split(";")[0]
        expected = [f'"{line}\\n"' for line in getattr(CREDENTIALS, name).splitlines()]
        assert body.splitlines() == expected


@given(st.fixed_dictionaries({name: TEXTS for name, _ in ARRAYS.values()}))
def test_what_is_written_is_read_back(texts: dict[str, str]) -> None:
    arrays = parse_credentials_source(pack_credentials_source(ThingCredentials(thing=THING, **texts)))
    assert arrays == {array: texts[name] for array, (name, _) in ARRAYS.items()}


@given(st.text(max_size=300))
def test_any_text_gives_arrays_or_our_error(text: str) -> None:
    with contextlib.suppress(FlotaError):
        parse_credentials_source(text)


def test_a_source_written_by_hand_is_read() -> None:
    source = """
        /* const char aws_deviceCrt[] = "no"; */
        #include "aws_credentials.h"
        // const char aws_deviceCrt[] = "nor this";
        static const unsigned char other[] = { 1, 2 };
        const char aws_deviceCrt[] = "-----BEGIN CERTIFICATE-----\\n"  /* the first line */
            "AA//BB\\r\\n"
            "-----END CERTIFICATE-----";
        const char with_quotes[8] = "a\\"b\\\\";
    """
    assert parse_credentials_source(source) == {
        "aws_deviceCrt": "-----BEGIN CERTIFICATE-----\nAA//BB\r\n-----END CERTIFICATE-----",
        "with_quotes": 'a"b\\',
    }


@pytest.mark.parametrize(
    "source",
    ["", "int main(void) { return 0; }", 'const char a[] = "open;', 'const char a[] = "\\x41";', "x" * 300_000],
    ids=["nothing", "no array", "an open string", "an escape that is not read", "too long"],
)
def test_a_source_without_readable_arrays_is_refused(source: str) -> None:
    with pytest.raises(BadCredentialsSource):
        parse_credentials_source(source)


def test_a_compiler_sees_the_same_bytes(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("not run: no C compiler is installed")
    (tmp_path / "aws_credentials.h").write_text(
        "".join(f"extern const char {array}[];\n" for array in ARRAYS), encoding="ascii"
    )
    (tmp_path / "aws_credentials.c").write_text(pack_credentials_source(CREDENTIALS), encoding="ascii")
    (tmp_path / "aws_config.h").write_text(pack_config_header(THING), encoding="ascii")
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "aws_credentials.h"\n#include "aws_config.h"\n'
        "int main(void) {\n"
        + "".join(f'    printf("%s%c", {array}, 0);\n' for array in ARRAYS)
        + '    printf("%s %d %s %s %d", AWS_IOT_ENDPOINT, AWS_MQTT_PORT, CLIENT_IDENTIFIER, THING_NAME,'
        " APP_VERSION_MAJOR);\n    return 0;\n}\n",
        encoding="ascii",
    )
    program = tmp_path / "credentials"
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-std=c99", "-I", str(tmp_path)]
    subprocess.run(
        [*command, str(tmp_path / "main.c"), str(tmp_path / "aws_credentials.c"), "-o", str(program)], check=True
    )
    *texts, config = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split("\0")
    assert texts == [getattr(CREDENTIALS, name) for name, _ in ARRAYS.values()]
    assert config == "updates.example.com 8883 meter-3_client meter:3 1"


def test_what_is_not_there_is_an_empty_array_that_says_why() -> None:
    source = pack_credentials_source(replace(CREDENTIALS, private_key="", code_certificate=""))
    assert 'aws_devicePvtKey[] =\n"";' in source
    assert "It never left the device" in source
    assert "flota type trust" in source


def test_the_private_key_is_not_in_the_repr() -> None:
    assert "PRIVATE" not in repr(CREDENTIALS)


def test_the_thing_file_is_read_back_and_nothing_else_is_taken() -> None:
    assert parse_thing_file(pack_thing_file(THING)) == THING
    for data in (
        b"",
        b"[]",
        b"\xff",
        b'{"thing_name": "a", "client_id": "b", "endpoint": "c", "port": 0}',
        b"[" * 20_000,
    ):
        with pytest.raises(BadThingFile):
            parse_thing_file(data)
