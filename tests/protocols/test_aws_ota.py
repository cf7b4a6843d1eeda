"""The OTA job document: AWS's form of it, and addresses in the place of placeholders."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.aws_ota import (
    SIGNATURE_KEYS,
    DataProtocol,
    OtaFile,
    OtaUpdate,
    pack_ota_document,
    parse_ota_document,
    presigned_placeholder,
    substitute_presigned,
)
from flota.protocols.malformed import MalformedMessage

STREAM = "AFR_OTA-27e52020-ab4d-4c4b-8b1c-6d1b8b1c6d1b"


def test_the_document_for_mqtt_is_the_documented_one() -> None:
    signatures = {"sig-sha256-ecdsa": "MEUCIQDVB=="}
    file = OtaFile("firmware.bin", 352_698, certfile="Code_Verify_Key", signatures=signatures)
    document = pack_ota_document(OtaUpdate((DataProtocol.MQTT,), file, STREAM))
    assert document == {
        "afr_ota": {
            "protocols": ["MQTT"],
            "streamname": STREAM,
            "files": [
                {
                    "filepath": "firmware.bin",
                    "filesize": 352698,
                    "fileid": 0,
                    "certfile": "Code_Verify_Key",
                    "fileType": 0,
                    "sig-sha256-ecdsa": "MEUCIQDVB==",
                }
            ],
        }
    }


def test_the_document_for_http_has_an_address_and_no_stream() -> None:
    file = OtaFile("firmware.bin", 1, url="https://updates.example.net/f?token=x")
    ota = pack_ota_document(OtaUpdate((DataProtocol.HTTP,), file))["afr_ota"]
    assert isinstance(ota, dict)
    assert "streamname" not in ota
    assert ota["files"][0]["update_data_url"] == "https://updates.example.net/f?token=x"
    assert ota["files"][0]["auth_scheme"] == "aws.s3.presigned"
    both = pack_ota_document(OtaUpdate((DataProtocol.MQTT, DataProtocol.HTTP), file, STREAM))["afr_ota"]
    assert isinstance(both, dict)
    assert (both["protocols"], both["streamname"]) == (["MQTT", "HTTP"], STREAM)


@pytest.mark.parametrize(
    "address",
    [
        "https://s3.amazonaws.com/images/v2/fw.bin",
        "https://s3.eu-central-1.amazonaws.com/images/v2/fw.bin",
        "https://s3-eu-west-1.amazonaws.com/images/v2/fw.bin",
        "https://images.s3.amazonaws.com/v2/fw.bin",
        "https://images.s3.eu-central-1.amazonaws.com/v2/fw.bin",
    ],
)
def test_a_placeholder_of_any_form_is_substituted(address: str) -> None:
    placeholder = "${aws:iot:s3-presigned-url:" + address + "}"
    document = {"url": placeholder, "list": [{"u": f"a {placeholder} b"}], "n": 7, "none": None}
    made = substitute_presigned(document, lambda bucket, key: f"<{bucket}|{key}>")
    assert made == {"url": "<images|v2/fw.bin>", "list": [{"u": "a <images|v2/fw.bin> b"}], "n": 7, "none": None}


@pytest.mark.parametrize(
    "text",
    [
        "${aws:iot:s3-presigned-url:https://example.net/images/fw.bin}",
        "${aws:iot:s3-presigned-url:https://s3.amazonaws.com/images}",
        "${aws:iot:s3-presigned-url:http://s3.amazonaws.com/images/fw.bin}",
        "${aws:iot:s3-presigned-url:https://s3.amazonaws.com.example.net/images/fw.bin}",
        "${aws:iot:parameter:x}",
        "plain",
    ],
)
def test_what_is_no_placeholder_of_s3_stays_as_it_is(text: str) -> None:
    assert substitute_presigned(text, lambda *_: "never") == text


def test_where_there_is_no_address_the_placeholder_stays() -> None:
    text = presigned_placeholder("flota", "ab" * 32)
    assert substitute_presigned(text, lambda *_: None) == text
    assert substitute_presigned([text], lambda bucket, key: f"{bucket}/{key}") == [f"flota/{'ab' * 32}"]


plain = st.none() | st.integers() | st.text()
documents = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(documents)
def test_any_document_without_placeholders_is_copied(document: object) -> None:
    assert substitute_presigned(document, lambda *_: "x") == document or "${aws" in repr(document)


texts = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=20)
updates = st.builds(
    OtaUpdate,
    st.lists(st.sampled_from(DataProtocol), unique=True).map(tuple),
    st.builds(
        OtaFile,
        texts,
        st.integers(0, 0xFFFF_FFFF),
        st.integers(0, 255),
        st.none() | texts,
        st.integers(0, 255),
        st.dictionaries(st.sampled_from(SIGNATURE_KEYS), st.just("MEUCIQDV")),
        st.none() | texts,
    ),
    st.none() | texts,
)


@given(updates)
def test_an_agent_reads_what_a_server_writes(update: OtaUpdate) -> None:
    assert parse_ota_document(pack_ota_document(update)) == update


@given(documents | st.builds(lambda ota: {"afr_ota": {"protocols": ["MQTT"], "files": [ota]}}, documents))
def test_any_document_is_an_update_or_our_error(document: object) -> None:
    with contextlib.suppress(MalformedMessage):
        parse_ota_document(document)


@pytest.mark.parametrize(("text", "number"), [("352698", 352698), ("0x100", 256), ("010", 8), ("0", 0), (7, 7)])
def test_numbers_may_come_as_text_in_any_base(text: object, number: int) -> None:
    file = {"filesize": text, "fileid": "0"}
    assert parse_ota_document({"afr_ota": {"protocols": [], "files": [file]}}).file.size == number


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", 1.5, True, None, 2**32, "4294967296", [1]])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(MalformedMessage):
        parse_ota_document({"afr_ota": {"protocols": [], "files": [{"filesize": value, "fileid": 0}]}})
