"""The apps of virtual Nuvoton boards: AWS's OTA agent, built as the vendor builds it, on their own platform layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from flota.boards.model import BOOT_MCUBOOT_OVERWRITE, BOOT_NUVOTON_CLONER, Board
from flota.lab.aws_agents import AwsOptions, aws_agent
from flota.protocols.aws_ota import DataProtocol
from flota.virtual.agents.aws_ota.pal import Pal
from flota.virtual.agents.aws_ota.ports import AgentBuild
from flota.virtual.agents.nuvoton_app import M487App
from flota.virtual.device import Agent, AppContext
from flota.virtual.m2354_pal import PsaFwuPal
from flota.virtual.nuvoton_pal import NvtblBuild, NvtblPal

NUVOTON_BUILD: Final = AgentBuild(
    block_size=2048,
    blocks_per_request=4,
    status_every_blocks=25,
    protocols=frozenset({DataProtocol.MQTT}),
    data_buffers=2,
    packet_max_bytes=2048 + 128,
)
"""Settings of the vendor's example (docs/reference/nuvoton.md, "The agent's build")."""


def is_nuvoton(board: Board) -> bool:
    """Return whether the board is an M487 or M2354."""
    return board.boot in (BOOT_NUVOTON_CLONER, BOOT_MCUBOOT_OVERWRITE)


def nuvoton_agent(board: Board, name: str, token: str | None, cacert: Path | None, options: AwsOptions) -> Agent:
    """Return the app of a board. Raises `InvalidInput` as `aws_agent` does."""
    chosen = replace(options, build=NUVOTON_BUILD, speaks_http=False)
    if board.boot == BOOT_MCUBOOT_OVERWRITE:
        return aws_agent(name, token, cacert, replace(chosen, pal=PsaFwuPal))
    pal = partial(_nvtbl, build=NvtblBuild(code_certificate_of(options) or b""))
    return M487App(aws_agent(name, token, cacert, replace(chosen, pal=pal)))


def code_certificate_of(options: AwsOptions | None) -> bytes | None:
    """Return the certificate (PEM) that a device checks releases with, None without one."""
    if options is None:
        return None
    given = None if options.credentials is None else options.credentials.code_certificate
    return options.code_certificate or given


def _nvtbl(context: AppContext, build: NvtblBuild) -> Pal:
    return NvtblPal(context, build)
