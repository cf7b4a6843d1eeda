"""AWS file streams: the real encoders' bytes, the selection of blocks, and a rejection for every bad request."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.aws_streams import (
    REQUEST_BYTES_MAX,
    Block,
    BlockRequest,
    JsonPayload,
    RejectionCode,
    StreamDescription,
    StreamFile,
    StreamFormat,
    StreamRejected,
    is_stream_id,
    missing_bitmap,
    pack_block,
    pack_block_request,
    pack_description,
    pack_rejection,
    parse_block,
    parse_block_request,
    parse_describe,
    wanted_blocks,
)
from flota.protocols.cbor import pack_cbor, parse_cbor
from flota.protocols.malformed import MalformedMessage

CBOR, JSON = StreamFormat.CBOR, StreamFormat.JSON


def test_the_c_agents_first_request_has_its_real_bytes() -> None:
    """173 blocks of 2048, all missing: bits past the last block are 0."""
    bitmap = missing_bitmap(set(), 173)
    assert bitmap == b"\xff" * 21 + b"\x1f"
    request = BlockRequest(0, 2048, 0, 4, bitmap, token="rdy")
    golden = bytes.fromhex("a6616363726479616600616c190800616f00616256") + bitmap + bytes.fromhex("616e04")
    assert pack_block_request(request, CBOR) == golden
    assert parse_block_request(golden, CBOR) == request
    assert list(wanted_blocks(request, 352_698)) == [0, 1, 2, 3]


def test_the_file_stream_librarys_request_in_both_formats() -> None:
    """Its CBOR bitmap holds the text of a base64 string: taken as the bytes that it is."""
    cbor = bytes.fromhex("a6616363726479616600616c191000616f036162444d513d3d616e01")
    request = parse_block_request(cbor, CBOR)
    assert request == BlockRequest(0, 4096, 3, 1, b"MQ==", token="rdy")
    assert list(wanted_blocks(request, 100 * 4096)) == [3]
    more = BlockRequest(0, 4096, 3, 4, b"MQ==")
    assert [number - 3 for number in wanted_blocks(more, 100 * 4096)] == [0, 2, 3, 6]
    assert parse_block_request(b'{"s": 1,"f": 0,"l": 4096,"o": 3,"n": 1}', JSON) == BlockRequest(0, 4096, 3, 1, None, 1)


def test_a_data_message_that_the_c_agent_accepts() -> None:
    golden = bytes.fromhex("a5616363726479616600616c08616918ab6170480102030405060708")
    block = Block(0, 171, bytes(range(1, 9)), "rdy")
    assert pack_block(block, CBOR) == golden
    assert parse_block(golden, CBOR) == block
    assert len(pack_block(Block(0, 5, bytes(2048), "rdy"), CBOR)) <= 2048 + 128


def test_the_documented_example_of_a_bitmap() -> None:
    request = parse_block_request(b'{"f":1,"l":256,"o":20,"n":98304,"b":"0x130080"}', JSON)
    assert list(wanted_blocks(request, 256 * 1000)) == [20, 21, 24, 43]


def test_json_payloads_are_base64_unless_told() -> None:
    block = Block(3, 7, b"\x00\xff\x10", None)
    assert json.loads(pack_block(block, JSON)) == {"f": 3, "l": 3, "i": 7, "p": "AP8Q"}
    assert json.loads(pack_block(block, JSON, json_payload=JsonPayload.HEX))["p"] == "00ff10"
    for spelled in JsonPayload:
        assert parse_block(pack_block(block, JSON, json_payload=spelled), JSON, json_payload=spelled) == block


requests = st.builds(
    BlockRequest,
    st.integers(0, 255),
    st.integers(256, 131072),
    st.integers(0, 98304),
    st.none() | st.integers(0, 98304),
    st.none() | st.binary(max_size=200),
    st.none() | st.integers(0, 65535),
    st.none() | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=64),
)


@given(requests, st.sampled_from(StreamFormat))
def test_a_request_is_read_as_it_was_written(request: BlockRequest, form: StreamFormat) -> None:
    assert parse_block_request(pack_block_request(request, form), form) == request


@given(requests, st.integers(0, 20_000_000))
def test_what_is_sent_is_wanted_within_the_file_and_bounded(request: BlockRequest, file_size: int) -> None:
    numbers = list(wanted_blocks(request, file_size))
    assert numbers == sorted(set(numbers))
    sizes = [min(request.block_size, file_size - number * request.block_size) for number in numbers]
    assert all(size > 0 for size in sizes)
    assert sum(sizes) <= REQUEST_BYTES_MAX
    assert request.count is None or len(numbers) <= request.count
    for number in numbers:
        bit = number - request.offset
        assert bit >= 0
        assert request.bitmap is None or request.bitmap[bit // 8] >> bit % 8 & 1


@given(st.integers(1, 500), st.sets(st.integers(0, 499)))
def test_asking_for_what_is_missing_gets_all_of_it(blocks: int, received: set[int]) -> None:
    have = {number for number in received if number < blocks}
    for _ in range(blocks + 1):
        if len(have) == blocks:
            break
        request = BlockRequest(0, 256, 0, 7, missing_bitmap(have, blocks))
        got = list(wanted_blocks(request, blocks * 256))
        assert got
        assert not have.intersection(got)
        have.update(got)
    assert len(have) == blocks


@pytest.mark.parametrize(
    ("members", "code"),
    [
        pytest.param({"l": 256}, RejectionCode.INVALID_REQUEST, id="no file"),
        pytest.param({"f": 0}, RejectionCode.INVALID_REQUEST, id="no block size"),
        pytest.param({"f": 256, "l": 256}, RejectionCode.INVALID_REQUEST, id="file id"),
        pytest.param({"f": "0", "l": 256}, RejectionCode.INVALID_REQUEST, id="a number as text"),
        pytest.param({"f": True, "l": 256}, RejectionCode.INVALID_REQUEST, id="a truth as number"),
        pytest.param({"f": 0, "l": 255}, RejectionCode.BLOCK_SIZE_OUT_OF_BOUNDS, id="block size 255"),
        pytest.param({"f": 0, "l": 131073}, RejectionCode.BLOCK_SIZE_OUT_OF_BOUNDS, id="block size 131073"),
        pytest.param({"f": 0, "l": 256, "o": 98305}, RejectionCode.OFFSET_OUT_OF_BOUNDS, id="offset"),
        pytest.param({"f": 0, "l": 256, "o": -1}, RejectionCode.OFFSET_OUT_OF_BOUNDS, id="offset below 0"),
        pytest.param({"f": 0, "l": 256, "n": 98305}, RejectionCode.BLOCK_COUNT_LIMIT_EXCEEDED, id="count"),
        pytest.param({"f": 0, "l": 256, "s": 70000}, RejectionCode.INVALID_REQUEST, id="version"),
        pytest.param({"f": 0, "l": 256, "c": "x" * 65}, RejectionCode.INVALID_REQUEST, id="token"),
        pytest.param({"f": 0, "l": 256, "b": 5}, RejectionCode.INVALID_REQUEST, id="a number as bitmap"),
    ],
)
def test_each_bad_request_has_its_code(members: dict[str, object], code: RejectionCode) -> None:
    for form, payload in ((CBOR, pack_cbor(members)), (JSON, json.dumps(members).encode())):
        with pytest.raises(StreamRejected) as caught:
            parse_block_request(payload, form)
        assert caught.value.rejection is code


def test_a_bitmap_has_its_limit_in_both_formats() -> None:
    for form, bitmap in ((CBOR, bytes(12_288)), (JSON, "00" * 12_288), (JSON, "0" * 60_000)):
        packed = pack_cbor({"f": 0, "l": 256, "b": bitmap}) if form is CBOR else None
        payload = packed or json.dumps({"f": 0, "l": 256, "b": bitmap}).encode()
        with pytest.raises(StreamRejected) as caught:
            parse_block_request(payload, form)
        assert caught.value.rejection is RejectionCode.BLOCK_BITMAP_LIMIT_EXCEEDED
    assert len(parse_block_request(pack_cbor({"f": 0, "l": 256, "b": bytes(12_287)}), CBOR).bitmap or b"") == 12_287


def test_what_is_not_in_its_format_is_rejected_as_that() -> None:
    for payload in (b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000):
        with pytest.raises(StreamRejected) as caught:
            parse_block_request(payload, JSON)
        assert caught.value.rejection is RejectionCode.INVALID_JSON
    with pytest.raises(StreamRejected) as caught:
        parse_block_request(b"\x80", CBOR)
    assert caught.value.rejection is RejectionCode.INVALID_CBOR


@given(st.binary(max_size=300), st.sampled_from(StreamFormat))
def test_any_bytes_are_a_message_or_our_error(payload: bytes, form: StreamFormat) -> None:
    with contextlib.suppress(StreamRejected):
        parse_block_request(payload, form)
    with contextlib.suppress(StreamRejected):
        parse_describe(payload, form)
    with contextlib.suppress(MalformedMessage, StreamRejected):
        parse_block(payload, form)


def test_describe_and_rejections() -> None:
    assert parse_describe(b"", JSON).token is None
    assert parse_describe(b'{"c":"t1"}', JSON).token == "t1"
    described = StreamDescription(1, "new firmware", (StreamFile(0, 131072),), "t1")
    assert json.loads(pack_description(described, JSON)) == {
        "c": "t1",
        "s": 1,
        "d": "new firmware",
        "r": [{"f": 0, "z": 131072}],
    }
    rejected = StreamRejected(RejectionCode.RESOURCE_NOT_FOUND, "no such stream", token="t1")
    assert parse_cbor(pack_rejection(rejected, CBOR)) == {"o": "ResourceNotFound", "m": "no such stream", "c": "t1"}


def test_a_block_of_another_length_is_malformed() -> None:
    for members in ({"f": 0, "l": 9, "i": 0, "p": b"12345678"}, {"f": 0, "l": 8, "i": 0}, {"l": 8, "i": 0, "p": b""}):
        with pytest.raises(MalformedMessage):
            parse_block(pack_cbor(members), CBOR)


@pytest.mark.parametrize(
    ("text", "fine"), [("AFR_OTA-" + "a" * 36, True), ("", False), ("a b", False), ("x" * 129, False)]
)
def test_stream_ids(text: str, fine: bool) -> None:
    assert is_stream_id(text) is fine


@given(
    st.one_of(st.none(), st.text(alphabet="abc0", max_size=64)),
    st.integers(0, 255),
    st.integers(0, 2**31 - 1),
    st.one_of(st.integers(0, 300), st.sampled_from([65_535, 65_536, 131_072])),
)
def test_a_block_is_packed_as_any_cbor_writer_would(token: str | None, file_id: int, number: int, size: int) -> None:
    content = bytes(size)
    members: dict[str, object] = {} if token is None else {"c": token}
    members |= {"f": file_id, "l": size, "i": number, "p": content}
    assert pack_block(Block(file_id, number, content, token), StreamFormat.CBOR) == pack_cbor(members)
