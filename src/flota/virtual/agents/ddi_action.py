"""The record that a DDI agent keeps of its action, so that a power cut at any moment leads to a right state.

    stage         means                                              after a restart
    downloading   bytes are on their way into `slot`                 asked again, goes on at `written`
    installing    the boot slot is being chosen, or was              what runs and what otadata says decides
    reporting     the outcome is known                               reported until the server has it
    closed        the server has it                                  reported again if the server asks again

The record is written before the step that it announces. Source: docs/reference/virtual-devices.md, "DDI agent".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from flota.virtual.device import LAST_PANIC_KEY
from flota.virtual.nvs import NonVolatileStore, Value
from flota.virtual.slots import DeviceSlots, SlotState

ACTION_KEY: Final = "ddi_action"
CHOICES_MAX: Final = 3
"""How often one action may choose the boot slot: a power cut can lose a choice, but this must end."""


class Stage(enum.StrEnum):
    """How far the action is."""

    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    REPORTING = "reporting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """One action. Sizes in bytes; `sequence` is that of the signed manifest, 0 without one."""

    action_id: int
    stage: Stage
    version: str
    size: int
    sha256: str
    slot: str
    written: int = 0
    etag: str | None = None
    choices: int = 0
    sequence: int = 0
    manifest_sha256: str | None = None
    success: bool = False
    reason: str = ""


def load_action(nvs: NonVolatileStore) -> ActionRecord | None:
    """Return the record, None if there is none or it is of another make."""
    values = nvs.get_record(ACTION_KEY)
    if values is None:
        return None
    return _from_values(values)


def save_action(nvs: NonVolatileStore, record: ActionRecord | None) -> None:
    """Keep the record; None forgets it."""
    values: dict[str, Value] | None = None if record is None else {**asdict(record), "stage": record.stage.value}
    nvs.set(ACTION_KEY, values)


def _from_values(values: Mapping[str, Value]) -> ActionRecord | None:
    try:
        return ActionRecord(**{**values, "stage": Stage(str(values["stage"]))})  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError):
        return None


class Verdict(enum.Enum):
    """What a restart in the stage `installing` has shown."""

    RUNS = "runs"
    ROLLED_BACK = "rolled back"
    FELL_BACK = "fell back"
    CHOICE_LOST = "choice lost"


def judge_restart(record: ActionRecord, slots: DeviceSlots, sha256_of_running: str) -> Verdict:
    """Return what became of the action: by what runs, and by what the boot record says of the slot.

    `sha256_of_running` is over as many bytes of the running slot as the action's file has.
    """
    if slots.running.slot == record.slot and sha256_of_running == record.sha256:
        return Verdict.RUNS
    if slots.state_of(record.slot) in (SlotState.ABORTED, SlotState.INVALID):
        return Verdict.ROLLED_BACK
    if slots.running.slot != record.slot and slots.chosen() == record.slot:
        return Verdict.FELL_BACK
    return Verdict.CHOICE_LOST


def why_it_failed(record: ActionRecord, nvs: NonVolatileStore, verdict: Verdict, running_version: str) -> str:
    """Return the reason for the report: what the failed app left behind, else what can be told from outside."""
    after = f"; version {running_version} runs again"
    failure = nvs.get_record(LAST_PANIC_KEY)
    if failure is not None and failure.get("slot") == record.slot:
        return f"rolled back: {failure.get('text')}{after}"
    if verdict is Verdict.FELL_BACK:
        return f"the boot loader refused the image in {record.slot}{after}"
    if verdict is Verdict.CHOICE_LOST:
        return f"the choice of {record.slot} was lost {CHOICES_MAX} times{after}"
    return f"rolled back: version {record.version} was restarted before it confirmed itself{after}"
