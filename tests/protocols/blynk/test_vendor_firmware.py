"""What the vendor's published firmware does at the line, and each kind of wrong call, at an NCP and at an MCU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flota.protocols.blynk.catalogue import (
    BY_NAME,
    INITIALIZE,
    MCU_PING,
    NCP_HAS_UID,
    NCP_PING,
    NCP_REBOOT,
    OTA_AVAILABLE,
    OTA_FINISH,
    OTA_START,
    OTA_WRITE,
    PROCEDURES,
    PROCESS_EVENT,
    SET_BAUD_RATE,
    SET_FIRMWARE_INFO,
    Procedure,
    Side,
)
from flota.protocols.blynk.frames import FrameReader, pack_frame
from flota.protocols.blynk.mcu import Mcu, McuSettings
from flota.protocols.blynk.mcu_states import Discarded, McuState, OfferMade
from flota.protocols.blynk.messages import Invoke, Message, Oneway, Result, Status, pack_message, parse_message
from flota.protocols.blynk.ncp import FIXED_ANSWERS, Ncp, NcpSettings, SwitchRate
from flota.protocols.blynk.ncp_job import JobEnded, NeedBytes, Outcome, RebootDue
from flota.protocols.blynk.ncp_states import UpdateState
from flota.protocols.blynk.rpc import RpcEndpoint
from flota.protocols.blynk.values import Value, pack_values
from tests.protocols.blynk.bench import IMAGE, OLD, job_of

YES, NO = b"\1", b"\0"
CALLS_TO_NCP = [one for one in PROCEDURES.values() if one.side is Side.NCP and not one.is_oneway]


class VendorMcu:
    """The MCU's end of an NCP's line, call by call."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ncp = Ncp(NcpSettings(announces_start=False), now=0.0)
        self.ended: list[JobEnded] = []
        self.reboots = 0
        self.rates: list[int] = []
        self.heard: list[Message] = []
        self._number = 0

    def call(self, procedure: Procedure, *args: Value, more: bytes = b"") -> Result:
        """Call, and return the answer; what else was heard is in `heard`."""
        self._number += 1
        self.send(Invoke(procedure.uid, self._number, pack_values(procedure.args, args) + more))
        place = next(at for at, one in enumerate(self.heard) if isinstance(one, Result) and one.msgid == self._number)
        answer = self.heard.pop(place)
        assert isinstance(answer, Result)
        return answer

    def send(self, message: Message) -> None:
        self._take(self.ncp.receive(pack_frame(pack_message(message)), now=self.now))

    def answer(self, call: Invoke, body: bytes) -> None:
        self.send(Result(call.msgid, 0, body))

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (deadline := self.ncp.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self._take(self.ncp.deadline_passed(now=self.now))
        self.now = until

    def bring_up(self) -> None:
        assert self.call(SET_FIRMWARE_INFO, OLD.fw_type, OLD.version, OLD.build, OLD.library).body == YES
        assert self.call(INITIALIZE, OLD.fw_type, "Demo").body == YES
        self.wait(1)
        self.heard.clear()

    def offered(self, **changes: object) -> Invoke:
        """Have an update offered; returns the call, not answered yet."""
        self._take(self.ncp.offer(job_of(IMAGE, **changes), now=self.now))
        self.wait(1)
        return self.the_call(OTA_AVAILABLE)

    def the_call(self, procedure: Procedure) -> Invoke:
        """Return the one call that was heard."""
        (call,) = self.calls()
        assert call.uid == procedure.uid
        self.heard.remove(call)
        return call

    def calls(self) -> list[Invoke]:
        return [one for one in self.heard if isinstance(one, Invoke)]

    def events(self) -> list[int]:
        return [one.body[0] for one in self.heard if isinstance(one, Oneway) and one.uid == PROCESS_EVENT.uid]

    def _take(self, events: list[object]) -> None:
        for event in events:
            if isinstance(event, NeedBytes):
                data = IMAGE[event.offset : event.offset + event.length]
                self._take(self.ncp.supply(event.offset, data, now=self.now))
            elif isinstance(event, JobEnded):
                self.ended.append(event)
            elif isinstance(event, RebootDue):
                self.reboots += 1
        for command in self.ncp.link_commands():
            if isinstance(command, SwitchRate):
                self.rates.append(command.baud)
            else:
                self.heard += [parse_message(payload) for payload in FrameReader().feed(command)]


@pytest.fixture
def vendor() -> VendorMcu:
    made = VendorMcu()
    made.bring_up()
    return made


# --- firmware that starts inside the offer ----------------------------------------------------------------------------


def test_firmware_that_starts_inside_the_offer_gets_no_chunk_before_it_has_answered(vendor: VendorMcu) -> None:
    offer = vendor.offered()
    assert vendor.call(OTA_START, 1024).body == YES
    vendor.wait(0.5)
    assert vendor.calls() == [], "a second call would overwrite the one buffer of the vendor's driver"
    vendor.answer(offer, YES)
    write = vendor.the_call(OTA_WRITE)
    assert write.body[:4] == bytes(4)
    assert vendor.ncp.update.state is UpdateState.STREAMING


def test_firmware_that_starts_inside_the_offer_and_then_declines_gets_nothing(vendor: VendorMcu) -> None:
    offer = vendor.offered()
    assert vendor.call(OTA_START, 1024).body == YES
    vendor.answer(offer, NO)
    vendor.wait(60)
    assert [one.outcome for one in vendor.ended] == [Outcome.DECLINED]
    assert {call.uid for call in vendor.calls()} <= {MCU_PING.uid}


def test_a_start_after_an_offer_whose_answer_was_lost_is_served_after_a_second(vendor: VendorMcu) -> None:
    vendor.offered()
    assert vendor.call(OTA_START, 1024).body == YES
    vendor.wait(1.01)
    assert vendor.the_call(OTA_WRITE).body[:4] == bytes(4)


# --- firmware that erases for long inside the offer -------------------------------------------------------------------


def test_a_yes_that_comes_after_the_offers_time_out_is_a_yes(vendor: VendorMcu) -> None:
    offer = vendor.offered()
    vendor.wait(8)  # it erases a large bank
    assert vendor.ncp.update.state is UpdateState.PENDING
    vendor.answer(offer, YES)
    assert vendor.ncp.update.state is UpdateState.ACCEPTED
    vendor.wait(20)
    assert OTA_AVAILABLE.uid not in {call.uid for call in vendor.calls()}, "it would erase once more"


def test_a_late_yes_to_the_offer_of_another_job_says_nothing(vendor: VendorMcu) -> None:
    first = vendor.offered()
    vendor.wait(6)
    assert vendor.ncp.withdraw(now=vendor.now)[0]
    vendor._take(vendor.ncp.offer(job_of(IMAGE, version="3.0.0"), now=vendor.now))
    vendor.answer(first, YES)
    assert vendor.ncp.update.state is UpdateState.PENDING


# --- restarts of the NCP ----------------------------------------------------------------------------------------------


def test_an_mcu_that_restarts_its_ncp_is_not_told_that_it_restarts(vendor: VendorMcu) -> None:
    """The vendor's Zephyr firmware does so at each bring-up, and begins another one after that event."""
    assert vendor.call(SET_BAUD_RATE, 115_200).body == YES
    assert vendor.call(NCP_REBOOT).body == YES
    vendor.wait(15)
    assert vendor.rates == [115_200, 38_400]
    assert vendor.events() == []
    assert not vendor.ncp.is_initialized


def test_an_ncp_that_restarts_because_the_image_is_applied_says_so_before(vendor: VendorMcu) -> None:
    stream(vendor)
    vendor.answer(vendor.the_call(OTA_FINISH), YES)
    assert vendor.reboots == 1
    assert vendor.events() == [1]
    assert vendor.ncp.update.state is UpdateState.APPLIED


def test_a_finish_that_the_mcu_refuses_restarts_nothing(vendor: VendorMcu) -> None:
    stream(vendor)
    vendor.answer(vendor.the_call(OTA_FINISH), NO)
    vendor.wait(5)
    assert [one.outcome for one in vendor.ended] == [Outcome.FAILED]
    assert (vendor.reboots, vendor.events()) == (0, [])
    assert vendor.ncp.is_initialized


def stream(vendor: VendorMcu) -> None:
    """Receive the whole image."""
    vendor.answer(vendor.offered(), YES)
    assert vendor.call(OTA_START, 1024).body == YES
    for _ in range(-(-len(IMAGE) // 1024)):
        vendor.answer(vendor.the_call(OTA_WRITE), YES)


# --- wrong calls ------------------------------------------------------------------------------------------------------

UNKNOWN = replace(NCP_PING, uid=0x0399)


@pytest.mark.parametrize("uid", [0x0399, 0x0347, 0x0104, 0x0181, 0x0442, 0x0311, 0xFFFF])
def test_an_ncp_answers_a_call_that_it_does_not_know_with_the_status_for_it(vendor: VendorMcu, uid: int) -> None:
    """Those of the other side and those that nobody answers are not its either."""
    assert vendor.call(replace(UNKNOWN, uid=uid), more=b"abc") == Result(vendor._number, Status.UNKNOWN_UID)
    assert vendor.call(NCP_PING).status == Status.OK


@pytest.mark.parametrize(
    "procedure",
    [one for one in PROCEDURES.values() if one.side is Side.NCP and not one.is_oneway],
    ids=lambda p: p.name,
)
def test_an_ncp_checks_the_arguments_of_every_call_as_the_vendors_handlers_do(
    vendor: VendorMcu, procedure: Procedure
) -> None:
    zeros = pack_values(procedure.args, ["" if kind.name == "STRING" else 0 for kind in procedure.args])
    bare = replace(procedure, args=())
    if procedure.args:
        assert vendor.call(bare, more=zeros[:-1]).status == Status.ARGUMENTS_NOT_READ
    right = Status.ARGUMENTS_NOT_READ if procedure.checks_arguments else Status.OK
    assert vendor.call(bare, more=zeros + b"\0").status == right


def test_everything_that_an_ncp_serves_is_answered_at_once(vendor: VendorMcu) -> None:
    """Whatever a firmware calls at its bring-up, it never waits for a time-out."""
    for procedure in CALLS_TO_NCP:
        assert vendor.call(NCP_HAS_UID, procedure.uid).body == YES
        args = ["" if kind.name == "STRING" else 0 for kind in procedure.args]
        assert vendor.call(procedure, *args).status == Status.OK, procedure.name
    assert all(BY_NAME[name].side is Side.NCP for name in FIXED_ANSWERS)


def test_calls_are_numbered_from_one_and_begin_again_at_zero() -> None:
    ncp = RpcEndpoint(Side.NCP, serves=())
    numbers = []
    for _ in range(0x1_0002):
        numbers.append(ncp.call(MCU_PING, now=0.0))
        ncp.abandon(0.0)
    assert numbers[0] == 1
    assert numbers[0xFFFE:0x1_0001] == [0xFFFF, 0, 1]


def test_a_start_that_the_ncp_refuses_is_tried_three_times_more_and_then_given_up() -> None:
    mcu = Mcu(McuSettings(OLD, is_boot_loader=True, raises_to=None), now=0.0)
    tries: list[float] = []
    now, gave_up = 0.0, []

    def served(ncp_says: dict[int, bytes]) -> None:
        for command in mcu.link_commands():
            assert isinstance(command, bytes)
            for payload in FrameReader().feed(command):
                call = parse_message(payload)
                assert isinstance(call, Invoke)
                if call.uid == OTA_START.uid:
                    tries.append(now)
                result = pack_frame(pack_message(Result(call.msgid, 0, ncp_says[call.uid])))
                gave_up.extend(event for event in mcu.receive(result, now=now) if isinstance(event, Discarded))

    answers = {NCP_PING.uid: b"", OTA_START.uid: NO}
    for tick in range(80):
        now = tick / 10
        if tick == 10:
            mcu.resume(5000, now=now)
        mcu.deadline_passed(now=now)
        served(answers)
    assert tries == pytest.approx([1.0, 2.0, 3.0, 4.0], abs=0.11)
    assert [event.reason for event in gave_up] == ["the NCP does not start the stream"]
    assert mcu.update.state is McuState.IDLE


def test_the_text_that_a_module_prints_when_it_boots_does_not_disturb_an_mcu() -> None:
    mcu = Mcu(McuSettings(OLD), now=0.0)
    text = b"\r\n[0] ESP boot 0x13 \x11\x13 rpc port: UART1\r\nBlynk.NCP started\r\nVersion: 0.6.3, build \xbb\xbb\r\n"
    body = pack_values(OTA_AVAILABLE.args, ("f.bin", 5000, "", "", ""))
    offer = pack_frame(pack_message(Invoke(OTA_AVAILABLE.uid, 1, body)))
    assert mcu.receive(text, now=0.0) == []
    assert [type(event) for event in mcu.receive(offer, now=0.0)] == [OfferMade]
