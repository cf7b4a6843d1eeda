"""Which sweeps there are: for each family of boards its agents, its builds, and how a device of it is made.

Source: docs/reference/power-cuts.md, "Boards".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flota.boards.catalogue import board as board_named
from flota.boards.model import BOOT_AB_RECORD, BOOT_MCUBOOT_OVERWRITE, BOOT_NUVOTON_CLONER, Board
from flota.errors import InvalidInput
from flota.lab.ameba_sweep_device import AmebaSweepDevice, ameba_geometry_for
from flota.lab.aws_sweep_device import AwsSweepDevice, aws_geometry_for
from flota.lab.cut_scenarios import SCENARIOS, Scenario, scenario_named
from flota.lab.dual_mcu_sweep_device import DualMcuSweepDevice, dual_mcu_geometry_for
from flota.lab.esp_sweep_device import USUAL_AGENTS, EspSweepDevice, SweepAgent, geometry_for
from flota.lab.mcu_agents import is_primary_mcu
from flota.lab.nuvoton_sweep_device import M487SweepDevice, M2354SweepDevice, nuvoton_geometry_for
from flota.lab.swept_device import SweptDevice
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.nuvoton_programs import BootProfile

USUAL_IMAGE_BYTES: Final = 64 * 1024
M487_IMAGE_BYTES: Final = 12 * 1024
"""Three pages, the last image two: a clone programs 512 units a page, and each page is like the one before it."""

_ROLLBACK: Final = {"off": BootBuild.PLAIN, "on": BootBuild.ROLLBACK, "anti": BootBuild.ANTI_ROLLBACK}
_NO_WAY_BACK: Final = frozenset({SweepAgent.AWS_OTA_WITHOUT_BACKUP})
"""Apps that keep nothing to go back to, whatever the boot loader could do."""


@dataclass(frozen=True, slots=True)
class SweepSubject:
    """What is swept: a board with an agent and a build of its boot loader, image size in bytes, and the scenario.

    `image_size` None = the board's own partition table, its slots filled.
    """

    board: str
    agent: SweepAgent
    build: BootBuild
    image_size: int | None
    scenario: str

    def device(self) -> SweptDevice:
        """Return a new device, as it leaves the factory. Raises `NotFound` or `InvalidInput`."""
        family = family_of(board_named(self.board))
        scenario = scenario_named(self.scenario)
        if self.agent not in family.agents:
            raise InvalidInput(f"{self.board} has no agent {self.agent.value}")
        family.check_build(board_named(self.board), self.build)
        if not self.can_live(scenario):
            raise InvalidInput(f"the scenario {scenario.name} needs a board that rolls back", found=self.board)
        return family.device(self, scenario)

    def can_live(self, scenario: Scenario) -> bool:
        """Return whether the scenario is one that such a device is made for."""
        return not scenario.needs_rollback or (self.build.rolls_back and self.agent not in _NO_WAY_BACK)


@dataclass(frozen=True, slots=True)
class SweepFamily:
    """Boards that are swept alike. The first build is the usual one; `agents` and `builds` without a choice are all."""

    covers: Callable[[Board], bool]
    agents: tuple[SweepAgent, ...]
    builds: Callable[[Board], tuple[BootBuild, ...]]
    device: Callable[[SweepSubject, Scenario], SweptDevice]
    usual_agents: Callable[[Board], tuple[SweepAgent, ...]] | None = None
    usual_image_bytes: int = USUAL_IMAGE_BYTES

    def check_build(self, board: Board, build: BootBuild) -> None:
        """Raise `InvalidInput` for a build that the board's boot loader does not come in."""
        builds = self.builds(board)
        if build in builds:
            return
        if len(builds) > 1:
            raise InvalidInput(
                f"there is no such boot loader for {board.name}",
                expected=", ".join(rollback_word(one) for one in builds),
                found=rollback_word(build),
            )
        how = "always" if builds[0].rolls_back else "never"
        raise InvalidInput(f"the boot loader of {board.name} {how} rolls back", hint="Leave out --rollback.")


def _m487(subject: SweepSubject, scenario: Scenario) -> SweptDevice:
    return M487SweepDevice(
        nuvoton_geometry_for(subject.board, subject.image_size),
        scenario,
        profile=BootProfile.ROLLBACK if subject.build.rolls_back else BootProfile.STOCK,
        with_backup=subject.agent is SweepAgent.AWS_OTA,
    )


def _esp(subject: SweepSubject, scenario: Scenario) -> SweptDevice:
    geometry = geometry_for(subject.board, subject.image_size)
    return EspSweepDevice(geometry, scenario, agent=subject.agent, build=subject.build)


_FAMILIES: Final = (
    SweepFamily(
        lambda board: board.boot == "ameba-signature",
        (SweepAgent.AMEBA_PUSH,),
        lambda _: (BootBuild.PLAIN,),
        lambda one, scenario: AmebaSweepDevice(ameba_geometry_for(one.board, one.image_size), scenario),
    ),
    SweepFamily(
        is_primary_mcu,
        (SweepAgent.BLYNK_NCP,),
        lambda board: (BootBuild.ROLLBACK if board.rolls_back else BootBuild.PLAIN,),
        lambda one, scenario: DualMcuSweepDevice(dual_mcu_geometry_for(one.board, one.image_size), scenario),
    ),
    SweepFamily(
        lambda board: board.boot == BOOT_NUVOTON_CLONER,
        (SweepAgent.AWS_OTA, SweepAgent.AWS_OTA_WITHOUT_BACKUP),
        lambda _: (BootBuild.ROLLBACK, BootBuild.PLAIN),
        _m487,
        usual_image_bytes=M487_IMAGE_BYTES,
    ),
    SweepFamily(
        lambda board: board.boot == BOOT_MCUBOOT_OVERWRITE,
        (SweepAgent.AWS_OTA,),
        lambda _: (BootBuild.PLAIN,),
        lambda one, scenario: M2354SweepDevice(nuvoton_geometry_for(one.board, one.image_size), scenario),
    ),
    SweepFamily(
        lambda board: board.boot == BOOT_AB_RECORD,
        (SweepAgent.AWS_OTA,),
        lambda _: (BootBuild.ROLLBACK,),
        lambda one, scenario: AwsSweepDevice(aws_geometry_for(one.board, one.image_size), scenario),
    ),
    SweepFamily(
        lambda _: True,
        (SweepAgent.MICRO_RDK, SweepAgent.ESP_HTTPS_OTA),
        lambda _: (BootBuild.PLAIN, BootBuild.ROLLBACK, BootBuild.ANTI_ROLLBACK),
        _esp,
        usual_agents=lambda board: (USUAL_AGENTS.get(board.name, SweepAgent.ESP_HTTPS_OTA),),
    ),
)


def family_of(board: Board) -> SweepFamily:
    """Return how a board is swept; what has no family of its own is taken for an ESP board, which checks that."""
    return next(family for family in _FAMILIES if family.covers(board))


@dataclass(frozen=True, slots=True)
class SweepChoice:
    """What a person chose of a board's sweeps; None = all that are usual there. Sizes in bytes."""

    build: BootBuild | None = None
    agent: SweepAgent | None = None
    scenario: str | None = None
    image_size: int | None = None
    full_size: bool = False


def subjects_of(board_name: str, choice: SweepChoice) -> list[SweepSubject]:
    """Return the sweeps of a board. Raises `NotFound` or `InvalidInput` for what there is not."""
    board = board_named(board_name)
    family = family_of(board)
    size = None if choice.full_size else choice.image_size or family.usual_image_bytes
    usual = family.agents if family.usual_agents is None else family.usual_agents(board)
    if choice.build is not None:
        family.check_build(board, choice.build)
    builds = (choice.build,) if choice.build is not None else family.builds(board)[:2]
    scenarios = SCENARIOS if choice.scenario is None else (scenario_named(choice.scenario),)
    possible = [
        (SweepSubject(board.name, agent, build, size, one.name), one)
        for build in builds
        for agent in (usual if choice.agent is None else (choice.agent,))
        for one in scenarios
    ]
    subjects = [subject for subject, one in possible if subject.can_live(one)]
    if not subjects:
        hint = "Add --rollback on." if BootBuild.ROLLBACK in family.builds(board) else None
        raise InvalidInput(f"the scenario {choice.scenario} needs a boot loader that rolls back", hint=hint)
    subjects[0].device()
    return subjects


def rollback_word(build: BootBuild) -> str:
    """Return `off`, `on` or `anti`."""
    return next(word for word, known in _ROLLBACK.items() if known is build)


def build_of(word: str) -> BootBuild:
    """Return the build that a word of `--rollback` means. Raises `InvalidInput`."""
    if word not in _ROLLBACK:
        raise InvalidInput("not a kind of rollback", expected=", ".join(_ROLLBACK), found=repr(word[:40]))
    return _ROLLBACK[word]
