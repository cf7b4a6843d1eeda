"""The mirrored OTA agent against a scripted service: what it says, byte for byte, and what it does to its slots."""

from __future__ import annotations

import json

import pytest

from flota.protocols.aws_streams import StreamFormat, parse_block_request
from flota.trust.keys import PrivateKey
from flota.virtual.agents.aws_ota.pal import ImageState, PalImageState
from flota.virtual.agents.aws_ota.ports import AgentBuild, OtaTimer, RangeAnswer
from flota.virtual.agents.aws_ota.states import AgentEvent, AgentState
from flota.virtual.events import EventKind
from flota.virtual.slots import Restart, SlotState
from tests.virtual.aws_ota_bench import (
    DATA,
    GET_STREAM,
    IMAGE_BYTES,
    JOB,
    NEXT_GET,
    NOTHING,
    NOTIFY_NEXT,
    SMALL_BUILD,
    STREAM,
    THING,
    UPDATE,
    AwsBench,
    ScriptedRanges,
    block,
    certificate_of,
    image,
    job,
    signed,
)

NEW = image("1.0.1")
READY_DETAILS = {"self_test": "ready", "updatedBy": "0x01000000"}


def offering(bench: AwsBench, data: bytes = NEW, **changes: object) -> AwsBench:
    bench.service.next_job = job(data, **changes)  # type: ignore[arg-type]
    bench.service.data = data
    return bench


async def updated(bench: AwsBench, data: bytes = NEW) -> None:
    """Let the bench take an update, up to the restart into it."""
    with pytest.raises(Restart, match="to start the update"):
        await offering(bench, data).start()
    bench.service.published.clear()
    bench.service.next_job = job(data, details=READY_DETAILS)


# --- asking for a job -------------------------------------------------------------------------------------------------


async def test_it_subscribes_to_notify_next_only_and_asks_for_the_next_job() -> None:
    bench = AwsBench()
    core = await bench.start()
    assert bench.service.subscribed == [(NOTIFY_NEXT, 1)]
    assert bench.service.published == [(NEXT_GET, b'{"clientToken":"0:pump-1"}', 1)]
    assert core.state is AgentState.WAITING_FOR_JOB
    assert OtaTimer.SELF_TEST not in bench.timers.running


async def test_without_a_job_a_notification_starts_one() -> None:
    bench = AwsBench()
    core = await bench.start()
    bench.service.data = NEW
    core.signal(AgentEvent.RECEIVED_JOB_DOCUMENT, job(NEW))
    with pytest.raises(Restart):
        await core.work_off()


async def test_it_asks_again_ten_seconds_after_a_request_that_could_not_be_sent_and_gives_up_after_32() -> None:
    bench = AwsBench()
    bench.service.is_up = False
    core = await bench.start()
    for _ in range(32):
        assert bench.timers.running == {OtaTimer.REQUEST: 10.0}
        core.signal(AgentEvent.REQUEST_TIMER)
        await core.work_off()
    assert core.state is AgentState.STOPPED
    assert bench.service.statuses() == []


@pytest.mark.parametrize("payload", [NOTHING, b"{}", b"", b"no JSON", b"[1]", b'{"execution":{}}'])
async def test_what_holds_no_job_leaves_it_ready_for_a_notification(payload: bytes) -> None:
    bench = AwsBench()
    bench.service.next_job = payload
    core = await bench.start()
    assert core.state is AgentState.WAITING_FOR_JOB
    assert bench.service.statuses() == []


async def test_a_file_of_no_bytes_is_not_reported() -> None:
    bench = offering(AwsBench(), filesize=0)
    core = await bench.start()
    assert bench.service.statuses() == []
    assert core.active_job == ""


async def test_a_document_that_is_not_its_own_ends_the_job_as_failed() -> None:
    bench = AwsBench()
    bench.service.next_job = json.dumps({"execution": {"jobId": JOB, "jobDocument": {"do": "reboot"}}}).encode()
    core = await bench.start()
    assert bench.service.published[-1] == (
        UPDATE,
        b'{"status":"FAILED","statusDetails":{"reason":"0x0000000c: 0x00000004"}}',
        1,
    )
    assert core.state is AgentState.WAITING_FOR_JOB


async def test_a_file_above_1024_blocks_is_left_alone_and_nothing_is_said() -> None:
    bench = offering(AwsBench(), filesize=1024 * 4096 + 1)
    core = await bench.start()
    assert bench.service.statuses() == []
    assert core.state is AgentState.WAITING_FOR_JOB


async def test_a_file_above_the_slot_is_aborted_with_the_status_of_the_platform() -> None:
    bench = offering(AwsBench(), filesize=3 * 1024 * 1024 + 1)
    await bench.start()
    assert bench.service.statuses() == [b'{"status":"FAILED","statusDetails":{"reason":"aborted: 0xe5000000"}}']
    assert bench.slots.state_of("b") is None


async def test_a_job_without_a_protocol_that_it_speaks_is_aborted() -> None:
    bench = offering(AwsBench(), protocols=["HTTP"])
    await bench.start()
    assert bench.service.statuses() == [b'{"status":"FAILED","statusDetails":{"reason":"aborted: 0x0000000d"}}']


# --- taking the file --------------------------------------------------------------------------------------------------


async def test_a_whole_update_says_exactly_what_the_c_agent_says() -> None:
    bench = offering(AwsBench())
    with pytest.raises(Restart, match="to start the update"):
        await bench.start()
    assert bench.service.subscribed == [(NOTIFY_NEXT, 1), (DATA, 0)]
    sent = [(topic, payload, qos) for topic, payload, qos in bench.service.published if topic == UPDATE]
    assert sent == [
        (UPDATE, b'{"status":"IN_PROGRESS","statusDetails":{"receive":"1/7"}}', 0),
        (UPDATE, b'{"status":"IN_PROGRESS","statusDetails":{"self_test":"ready","updatedBy":"0x01000000"}}', 1),
    ]
    assert bench.slots.state_of("b") is SlotState.NEW
    assert bench.slots.chosen() == "b"
    assert bench.slots.read("b", len(NEW)) == NEW


async def test_the_first_request_for_blocks_is_the_c_agents_byte_for_byte() -> None:
    data = image("1.0.1", size=173 * 2048)
    bench = offering(AwsBench(build=AgentBuild(block_size=2048)), data)
    with pytest.raises(Restart):
        await bench.start()
    topic, payload, qos = next(sent for sent in bench.service.published if "/streams/" in sent[0])
    golden = "a6616363726479616600616c190800616f00616256" + "ff" * 21 + "1f616e04"
    assert (topic, payload.hex(), qos) == (GET_STREAM, golden, 0)


async def test_every_64th_block_is_reported_and_the_last_is_not() -> None:
    data = image("1.0.1", size=130 * 4096)
    bench = offering(AwsBench(), data)
    with pytest.raises(Restart):
        await bench.start()
    told = [json.loads(status)["statusDetails"].get("receive") for status in bench.service.statuses()]
    assert told == ["1/130", "64/130", "128/130", None]


async def test_lost_blocks_are_asked_for_again_when_the_timer_runs_out() -> None:
    bench = offering(AwsBench())
    bench.service.lost = {1, 6}
    core = await bench.start()
    assert core.state is AgentState.WAITING_FOR_FILE_BLOCK
    for _ in range(2):
        if OtaTimer.REQUEST in bench.timers.running:
            core.signal(AgentEvent.REQUEST_TIMER)
            try:
                await core.work_off()
            except Restart:
                break
    assert bench.slots.read("b", len(NEW)) == NEW


async def test_a_block_that_comes_twice_is_written_once() -> None:
    bench = offering(AwsBench())
    bench.service.answers = False
    core = await bench.start()
    before = bench.flash.counters.programs
    for _ in range(2):
        core.signal(AgentEvent.RECEIVED_FILE_BLOCK, block(NEW, 3))
    await core.work_off()
    assert bench.flash.counters.programs == before + 1


async def test_blocks_may_come_in_any_order() -> None:
    bench = offering(AwsBench())
    bench.service.answers = False
    core = await bench.start()
    with pytest.raises(Restart):
        for number in (6, 0, 5, 1, 4, 2, 3):
            core.signal(AgentEvent.RECEIVED_FILE_BLOCK, block(NEW, number))
            await core.work_off()
    assert bench.slots.read("b", len(NEW)) == NEW


@pytest.mark.parametrize(
    "stray",
    [
        b"no CBOR",
        block(NEW + bytes(8192), 8),
        block(NEW, 3, 2048),
        block(NEW[:4096] + NEW, 0, 8192),
    ],
    ids=["undecodable", "past-the-end", "too-short", "too-long"],
)
async def test_a_block_that_is_not_the_files_fails_the_job_at_once(stray: bytes) -> None:
    bench = offering(AwsBench())
    bench.service.answers = False
    core = await bench.start()
    core.signal(AgentEvent.RECEIVED_FILE_BLOCK, stray)
    await core.work_off()
    assert bench.service.statuses() == [b'{"status":"FAILED","statusDetails":{"reason":"0x000000e0: 0x00000000"}}']
    assert core.state is AgentState.WAITING_FOR_JOB
    assert DATA in bench.service.unsubscribed
    assert bench.slots.state_of("b") is None


TWO_BUFFERS = AgentBuild(block_size=4096, blocks_per_request=4, data_buffers=2)


async def test_a_third_block_while_both_buffers_are_in_use_is_lost_and_asked_for_again_with_the_others_after_10_s() -> (
    None
):
    bench = offering(AwsBench(build=TWO_BUFFERS))
    core = await bench.start()
    assert bench.told(EventKind.SERIAL).count("No OTA data buffers available.") == 2
    assert (core.state, bench.timers.running) == (AgentState.WAITING_FOR_FILE_BLOCK, {OtaTimer.REQUEST: 10.0})
    bench.service.answers = False
    core.signal(AgentEvent.REQUEST_TIMER)
    await core.work_off()
    asked = parse_block_request(bench.service.requests()[-1], StreamFormat.CBOR)
    assert (asked.count, asked.bitmap) == (4, bytes([0b111_1100])), "blocks 0 and 1 are in, 2 and 3 are not"


async def test_two_buffers_are_enough_for_a_service_that_waits_until_one_is_free() -> None:
    bench = offering(AwsBench(build=TWO_BUFFERS))
    bench.service.answers = False
    core = await bench.start()
    with pytest.raises(Restart):
        for number in range(7):
            assert core.signal(AgentEvent.RECEIVED_FILE_BLOCK, block(NEW, number))
            assert core.buffers_in_use == 1
            await core.work_off()
            assert core.buffers_in_use == 0
    assert bench.slots.read("b", len(NEW)) == NEW


async def test_blocks_that_it_has_count_as_answers_to_its_request() -> None:
    bench = offering(AwsBench(build=TWO_BUFFERS))
    bench.service.answers = False
    core = await bench.start()
    for number in (0, 1, 1, 1):
        assert len(bench.service.requests()) == 1
        assert core.signal(AgentEvent.RECEIVED_FILE_BLOCK, block(NEW, number))
        await core.work_off()
    asked = [parse_block_request(payload, StreamFormat.CBOR).bitmap for payload in bench.service.requests()]
    assert asked == [bytes([0b111_1111]), bytes([0b111_1100])]


async def test_a_notification_of_a_job_needs_a_buffer_too_and_is_lost_without_one() -> None:
    bench = offering(AwsBench(build=TWO_BUFFERS))
    bench.service.answers = False
    core = await bench.start()
    for number in (0, 1):
        assert core.signal(AgentEvent.RECEIVED_FILE_BLOCK, block(NEW, number))
    assert not core.signal(AgentEvent.RECEIVED_JOB_DOCUMENT, job(NEW, job_id="AFR_OTA-other"))
    assert core.signal(AgentEvent.REQUEST_TIMER), "an event without a message needs none"
    await core.work_off()
    assert core.active_job == JOB


async def test_a_block_that_is_refused_or_unexpected_frees_its_buffer() -> None:
    bench = offering(AwsBench(build=TWO_BUFFERS))
    bench.service.answers = False
    core = await bench.start()
    for _ in range(5):
        assert core.signal(AgentEvent.RECEIVED_FILE_BLOCK, b"no CBOR")
        await core.work_off()
        assert core.buffers_in_use == 0
    assert core.state is AgentState.WAITING_FOR_JOB


async def test_32_requests_without_a_block_abort_the_job_and_stop_the_agent() -> None:
    bench = offering(AwsBench())
    bench.service.answers = False
    core = await bench.start()
    while core.state is not AgentState.STOPPED:
        assert bench.timers.running == {OtaTimer.REQUEST: 10.0}
        core.signal(AgentEvent.REQUEST_TIMER)
        await core.work_off()
    assert len(bench.service.requests()) == 32
    assert bench.service.statuses() == [b'{"status":"FAILED","statusDetails":{"reason":"aborted: 0x00000000"}}']


async def test_a_file_that_is_no_firmware_succeeds_without_a_restart() -> None:
    bench = offering(AwsBench(), fileType=2)
    core = await bench.start()
    assert bench.service.statuses()[-1] == (
        b'{"status":"SUCCEEDED","statusDetails":{"reason":"accepted  v0.0.2","updatedBy":"  v0.0.0"}}'
    )
    assert core.state is AgentState.WAITING_FOR_JOB
    assert bench.slots.state_of("b") is None


# --- signatures -------------------------------------------------------------------------------------------------------


async def failing(bench: AwsBench) -> bytes:
    core = await bench.start()
    assert core.state is AgentState.WAITING_FOR_JOB
    assert bench.slots.state_of("b") is None
    assert bench.told(EventKind.UPDATE_FAILED) == ["the update failed"]
    return bench.service.statuses()[-1]


async def test_an_unsigned_image_is_refused() -> None:
    status = await failing(offering(AwsBench(), **{"sig-sha256-ecdsa": None}))
    assert status == b'{"status":"FAILED","statusDetails":{"reason":"0x000000e3: 0x00000001"}}'


async def test_a_signature_under_another_key_of_the_document_counts_as_none() -> None:
    changes = {"sig-sha256-ecdsa": None, "sig-sha256-rsa": signed(NEW)}
    status = await failing(offering(AwsBench(), **changes))
    assert status == b'{"status":"FAILED","statusDetails":{"reason":"0x000000e3: 0x00000001"}}'


async def test_an_image_signed_by_somebody_else_is_refused() -> None:
    other = PrivateKey.generate("p256")
    status = await failing(offering(AwsBench(), **{"sig-sha256-ecdsa": signed(NEW, other)}))
    assert status == b'{"status":"FAILED","statusDetails":{"reason":"0x000000e3: 0x00000002"}}'


async def test_a_device_without_or_with_a_useless_certificate_says_that() -> None:
    status = await failing(offering(AwsBench(certificate=None)))
    assert status == b'{"status":"FAILED","statusDetails":{"reason":"0x000000e7: 0x00000003"}}'
    status = await failing(offering(AwsBench(certificate=b"-----BEGIN CERTIFICATE-----\nAAAA\n")))
    assert status == b'{"status":"FAILED","statusDetails":{"reason":"0x000000e7: 0x00000004"}}'


async def test_a_file_that_changed_on_its_way_is_refused() -> None:
    bench = offering(AwsBench())
    bench.service.data = NEW[:5000] + b"?" + NEW[5001:]
    assert await failing(bench) == b'{"status":"FAILED","statusDetails":{"reason":"0x000000e3: 0x00000002"}}'


# --- self-test --------------------------------------------------------------------------------------------------------


async def test_a_newer_image_tests_itself_is_accepted_and_says_so() -> None:
    bench = AwsBench()
    await updated(bench)
    core = await bench.start()
    assert bench.app.version == "1.0.1"
    assert [(payload, qos) for _, payload, qos in bench.service.published[1:]] == [
        (b'{"status":"IN_PROGRESS","statusDetails":{"self_test":"active","updatedBy":"0x01000001"}}', 1),
        (b'{"status":"SUCCEEDED","statusDetails":{"reason":"accepted  v1.0.1","updatedBy":"  v1.0.0"}}', 1),
    ]
    assert bench.is_confirmed
    assert bench.slots.state_of("b") is SlotState.VALID
    assert core.state is AgentState.WAITING_FOR_JOB
    assert OtaTimer.SELF_TEST not in bench.timers.running


async def test_a_new_image_starts_a_timer_of_16_seconds() -> None:
    bench = AwsBench()
    await updated(bench)
    bench.service.next_job = NOTHING
    await bench.start()
    assert bench.timers.running[OtaTimer.SELF_TEST] == 16.0
    assert bench.slots.state_of("b") is SlotState.PENDING_VERIFY


async def test_an_image_that_fails_its_own_test_rejects_itself_and_the_old_one_runs() -> None:
    bench = AwsBench()
    await updated(bench, image("1.0.1", "fail-self-test"))
    with pytest.raises(Restart, match="self-test failed"):
        await bench.start()
    assert bench.service.statuses()[-1] == (b'{"status":"FAILED","statusDetails":{"reason":"rejected: 0x00000000"}}')
    bench.service.next_job = NOTHING
    await bench.start()
    assert bench.app.version == "1.0.0"
    assert bench.slots.state_of("b") is SlotState.INVALID


@pytest.mark.parametrize(
    ("updated_by", "code"), [("0x01000000", "0x00000010"), ("0x01000001", "0x0000000f")], ids=["same", "older"]
)
async def test_an_app_that_is_not_newer_than_the_one_that_installed_it_rejects_the_job(
    updated_by: str, code: str
) -> None:
    bench = offering(AwsBench(), details={"self_test": "ready", "updatedBy": updated_by})
    with pytest.raises(Restart):
        await bench.start()
    reason = f'{{"status":"FAILED","statusDetails":{{"reason":"rejected: {code}"}}}}'
    assert bench.service.statuses() == [reason.encode()]
    assert bench.slots.state_of("a") is SlotState.VALID  # the image that runs was never on trial
    assert bench.told(EventKind.ROLLED_BACK) == ["version 1.0.0 runs again"]


async def test_a_rejected_job_takes_nothing_from_an_image_that_is_confirmed() -> None:
    bench = AwsBench()
    bench.hardware.flash_app(image("0.9.0"), "b")
    bench.hardware.flash_app(image("1.0.0"), "a")
    offering(bench, details={"self_test": "ready", "updatedBy": "0x01000000"})
    with pytest.raises(Restart):
        await bench.start()
    assert (bench.slots.state_of("a"), bench.slots.chosen()) == (SlotState.VALID, "a")


async def test_a_reset_in_the_middle_of_the_test_ends_the_job_as_a_downgrade_of_the_old_image() -> None:
    bench = AwsBench()
    await updated(bench)
    bench.service.next_job = job(NEW, details={"self_test": "active", "updatedBy": "0x01000001"})
    bench.boot()  # the trial that was cut off
    with pytest.raises(Restart):
        await bench.start()
    assert bench.service.statuses()[-1] == b'{"status":"FAILED","statusDetails":{"reason":"rejected: 0x0000000f"}}'
    assert bench.app.version == "1.0.0"


async def test_a_job_in_self_test_on_a_platform_that_is_not_is_rejected() -> None:
    bench = AwsBench("1.0.1")
    bench = offering(bench, details=READY_DETAILS)
    with pytest.raises(Restart):
        await bench.start()
    assert bench.service.statuses() == [
        b'{"status":"IN_PROGRESS","statusDetails":{"self_test":"active","updatedBy":"0x01000001"}}',
        b'{"status":"FAILED","statusDetails":{"reason":"rejected: 0x00000011"}}',
    ]
    assert bench.slots.state_of("a") is SlotState.VALID


async def test_a_platform_on_trial_without_a_job_in_self_test_restarts_without_a_word() -> None:
    bench = AwsBench()
    await updated(bench)
    bench.service.next_job = job(NEW, job_id="AFR_OTA-three")
    with pytest.raises(Restart):
        await bench.start()
    assert bench.service.statuses() == []


# --- changes of mind --------------------------------------------------------------------------------------------------


async def halfway(bench: AwsBench, blocks: int = 3) -> None:
    bench.service.answers = False
    await offering(bench).start()
    assert bench.service.core is not None
    for number in range(blocks):
        bench.service.core.signal(AgentEvent.RECEIVED_FILE_BLOCK, block(NEW, number))
        await bench.service.core.work_off()
    bench.service.answers = True


async def test_a_connection_that_comes_back_goes_on_with_the_blocks_that_are_missing() -> None:
    bench = AwsBench()
    await halfway(bench)
    core = bench.service.core
    assert core is not None
    core.signal(AgentEvent.SUSPEND)
    await core.work_off()
    assert core.state is AgentState.SUSPENDED
    erases = bench.flash.counters.erases
    core.signal(AgentEvent.RESUME)
    with pytest.raises(Restart):
        await core.work_off()
    assert bench.slots.read("b", len(NEW)) == NEW
    first = [request for request in bench.service.requests() if bytes.fromhex("6162") + b"\x41\x78" in request]
    assert first, "the request after the resumption asks for blocks 3 to 6 only"
    assert bench.flash.counters.erases <= erases + 1  # the boot record alone


async def test_a_notification_drops_the_job_without_a_word_and_takes_the_next_one() -> None:
    bench = AwsBench()
    await halfway(bench)
    core = bench.service.core
    assert core is not None
    newer = image("1.0.2")
    bench.service.data = newer
    bench.service.next_job = job(newer, job_id="AFR_OTA-three")
    core.signal(AgentEvent.RECEIVED_JOB_DOCUMENT, bench.service.next_job)
    with pytest.raises(Restart):
        await core.work_off()
    topics = {topic for topic, payload, _ in bench.service.published if b"FAILED" in payload}
    assert topics == set()
    assert bench.slots.read("b", len(newer)) == newer


async def test_a_job_that_was_cancelled_leaves_the_agent_waiting() -> None:
    bench = AwsBench()
    await halfway(bench)
    core = bench.service.core
    assert core is not None
    bench.service.next_job = NOTHING
    core.signal(AgentEvent.RECEIVED_JOB_DOCUMENT, b'{"timestamp":2}')
    await core.work_off()
    assert core.state is AgentState.WAITING_FOR_JOB
    assert core.active_job == ""
    assert bench.slots.state_of("b") is None
    assert OtaTimer.REQUEST not in bench.timers.running


async def test_a_user_abort_says_so() -> None:
    bench = AwsBench()
    await halfway(bench)
    core = bench.service.core
    assert core is not None
    core.signal(AgentEvent.USER_ABORT)
    await core.work_off()
    assert bench.service.statuses()[-1] == b'{"status":"FAILED","statusDetails":{"reason":"aborted: 0x00000013"}}'
    assert core.state is AgentState.WAITING_FOR_JOB


async def test_events_beyond_the_queue_are_lost() -> None:
    core = AwsBench().boot()
    assert [core.signal(AgentEvent.REQUEST_TIMER) for _ in range(21)] == [True] * 20 + [False]


# --- HTTP -------------------------------------------------------------------------------------------------------------

HTTP_JOB = {"protocols": ["HTTP"], "update_data_url": "http://127.0.0.1/file", "auth_scheme": "aws.s3.presigned"}


async def test_over_http_ranges_are_asked_for_one_after_another_and_the_last_ends_with_the_file() -> None:
    ranges = ScriptedRanges(NEW)
    bench = offering(AwsBench(http=ranges), **HTTP_JOB)
    with pytest.raises(Restart):
        await bench.start()
    assert ranges.asked == [(n * 4096, n * 4096 + 4095) for n in range(6)] + [(6 * 4096, IMAGE_BYTES - 1)]
    assert [topic for topic, _ in bench.service.subscribed] == [NOTIFY_NEXT]
    assert bench.slots.read("b", len(NEW)) == NEW


async def test_an_url_that_has_expired_is_renewed_by_asking_for_the_job_again() -> None:
    ranges = ScriptedRanges(NEW)
    bench = offering(AwsBench(http=ranges), **HTTP_JOB)
    core = bench.boot()
    ranges.statuses = []
    asked_before = 0

    class Expiring(ScriptedRanges):
        async def get(self, first: int, last: int) -> object:  # type: ignore[override]
            nonlocal asked_before
            if first == 3 * 4096 and len(self.opened) == 1:
                asked_before = len(self.asked)
                bench.service.next_job = job(
                    NEW, protocols=["HTTP"], update_data_url="http://127.0.0.1/fresh", auth_scheme="aws.s3.presigned"
                )
                self.statuses = [403]
            return await super().get(first, last)

    expiring = Expiring(NEW)
    bench.http = expiring  # type: ignore[assignment]
    core = bench.boot()
    core.signal(AgentEvent.START)
    with pytest.raises(Restart):
        await core.work_off()
    assert expiring.opened == ["http://127.0.0.1/file", "http://127.0.0.1/fresh"]
    assert expiring.asked.count((3 * 4096, 4 * 4096 - 1)) == 2, "it goes on where it was"
    assert bench.slots.read("b", len(NEW)) == NEW
    assert asked_before == 3


async def test_a_timer_that_runs_out_while_a_range_waits_to_be_taken_does_not_make_it_count_twice() -> None:
    class Late(ScriptedRanges):
        async def get(self, first: int, last: int) -> RangeAnswer | None:
            if len(self.asked) == 2:
                assert bench.service.core is not None
                bench.service.core.signal(AgentEvent.REQUEST_TIMER)
            return await super().get(first, last)

    bench = offering(AwsBench(http=Late(NEW)), **HTTP_JOB)
    with pytest.raises(Restart):
        await bench.start()
    assert bench.slots.read("b", len(NEW)) == NEW


async def test_an_url_that_stays_bad_ends_after_32_requests() -> None:
    ranges = ScriptedRanges(NEW, statuses=[403] * 100)
    bench = offering(AwsBench(http=ranges), **HTTP_JOB)
    core = await bench.start()
    for _ in range(40):
        if core.state is AgentState.STOPPED:
            break
        core.signal(AgentEvent.REQUEST_TIMER)
        await core.work_off()
    assert core.state is AgentState.STOPPED
    assert len(ranges.opened) == 2, "one fresh URL, and no more of them without a block in between"
    assert bench.service.statuses() == [b'{"status":"FAILED","statusDetails":{"reason":"aborted: 0x00000000"}}']


async def test_with_both_protocols_in_the_job_the_builds_own_one_is_used() -> None:
    both = {**HTTP_JOB, "protocols": ["MQTT", "HTTP"]}
    ranges = ScriptedRanges(NEW)
    bench = offering(AwsBench(http=ranges), **both)
    with pytest.raises(Restart):
        await bench.start()
    assert (DATA, 0) in bench.service.subscribed
    assert ranges.asked == []


async def test_an_image_state_that_the_platform_cannot_set_is_reported_as_a_rejection() -> None:
    bench = offering(AwsBench())
    bench.service.answers = False
    core = await bench.start()
    assert bench.pal.image_state() is PalImageState.VALID
    await core.set_image_state(ImageState.ACCEPTED)
    assert bench.service.statuses() == [b'{"status":"FAILED","statusDetails":{"reason":"rejected: 0xeb000000"}}']


def test_the_bench_speaks_of_one_thing() -> None:
    assert certificate_of().startswith(b"-----BEGIN CERTIFICATE")
    assert SMALL_BUILD.file_max_bytes == 4 * 1024 * 1024
    assert (THING, STREAM[:8]) == ("pump-1", "AFR_OTA-")
