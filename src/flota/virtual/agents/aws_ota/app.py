"""The application that carries the agent: it activates what was verified, and tests and confirms itself when it is new.

It does what the vendor's demo application does. What the image's marker says of its behaviour decides how its own test
ends.
Source: docs/reference/aws-iot.md, "What the virtual agent mirrors".
"""

from __future__ import annotations

from flota.virtual.agents.aws_ota.core import OtaAgentCore
from flota.virtual.agents.aws_ota.pal import ImageState, Pal, PalError
from flota.virtual.agents.aws_ota.ports import AppEvent
from flota.virtual.device import AppContext, Behaviour, behaviour_of
from flota.virtual.events import EventKind
from flota.virtual.pace import SELF_TEST_S


class OtaDemoApp:
    """The app that runs. `carry` gives it its agent before anything else."""

    def __init__(self, context: AppContext, pal: Pal) -> None:
        self._context = context
        self._pal = pal
        self._behaviour = behaviour_of(context.slots.running)
        self._version = context.slots.running.version
        self._core: OtaAgentCore | None = None

    def carry(self, core: OtaAgentCore) -> None:
        """Use this agent."""
        self._core = core

    def tell(self, text: str) -> None:
        """Pass on what the agent logs."""
        self._context.tell(EventKind.SERIAL, text)

    def progress(self, received: int, blocks: int) -> None:
        """Tell the first block and each quarter."""
        if received == 1 or received * 4 // blocks != (received - 1) * 4 // blocks:
            self._context.tell(EventKind.PROGRESS, f"{received * 100 // blocks} %", done=received, of=blocks)

    async def ota_event(self, event: AppEvent) -> None:
        """Do what has to be done."""
        if event is AppEvent.ACTIVATE:
            await self._activate()
        elif event is AppEvent.START_TEST:
            await self._test()
        elif event is AppEvent.FAIL:
            self._context.tell(EventKind.UPDATE_FAILED, "the update failed")
        elif event is AppEvent.SELF_TEST_FAILED:
            self._context.tell(EventKind.ROLLED_BACK, f"version {self._version} runs again", version=self._version)
        else:
            self._context.tell(EventKind.VERIFIED, "the file is in place; nothing restarts for it")

    async def _activate(self) -> None:
        assert self._core is not None
        self._context.tell(EventKind.INSTALLED, "the image is verified, and is tried at the next boot")
        try:
            await self._core.activate()
        except PalError as error:
            self._context.tell(EventKind.TROUBLE, str(error))

    async def _test(self) -> None:
        assert self._core is not None
        self._context.tell(EventKind.SELF_TEST, f"self-test of version {self._version}", version=self._version)
        if self._behaviour is Behaviour.NEVER_CONFIRM:
            await self._context.pace.wait_for_ever()
        await self._context.pace.spend(SELF_TEST_S)
        if self._behaviour is Behaviour.FAIL_SELF_TEST:
            text = f"version {self._version} failed its self-test"
            self._context.tell(EventKind.REJECTED, text, version=self._version)
            await self._core.set_image_state(ImageState.REJECTED)
            await self._pal.reset("the self-test failed")
        await self._core.set_image_state(ImageState.ACCEPTED)
        self._context.on_confirmed()
        self._context.tell(EventKind.CONFIRMED, f"version {self._version} confirmed itself", version=self._version)
