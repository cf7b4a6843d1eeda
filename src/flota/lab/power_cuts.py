"""The power-cut engine: a device's life, interrupted at any flash operation, judged at every boot.

What the engine needs of a device is `SweptDevice`: chips that can be saved and loaded, a boot loader, and an app's life
until its next restart. It never looks inside. One uninterrupted life is recorded, with a snapshot at each operation;
each cut is then a change to a snapshot, from which the device goes on living. Everything after a power-on depends on
what outlives the power and on what is offered, so a life that reaches a state already seen to end well is not lived
twice.

Source: docs/reference/power-cuts.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from flota.errors import FlotaError
from flota.lab.cut_moments import AFTER, CutMoment, cut_of, has_moment
from flota.lab.known_limits import KnownLimit
from flota.lab.oracle import Broken, Oracle, Promise, Region
from flota.lab.swept_device import Boot, LifeEnd, Offer, SweptDevice, fingerprint, save
from flota.virtual.flash import Cut, FlashOperation, FlashOperationKind, FlashViolation, PowerCut

BOOTS_MAX: Final = 6
"""Restarts that one offer may take after the last cut: old app, trial, confirmed, and as many for a second download."""

CUT_BOOTS_MAX: Final = 50
"""How often the same operation is cut again before the power stays (docs/reference/power-cuts.md, "Depth")."""

BOOT_OPERATIONS_MAX: Final = 8
"""Erases and programs in one boot of a device whose boot loader copies nothing: both records, twice."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where in its life a device is: the number of the offer, and the image that must start next, if that is known."""

    stage: int = 0
    must_start: str | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A flash operation of a recorded life, with all chips as they were before it."""

    position: Position
    operation: FlashOperation
    snapshot: Mapping[str, object] = field(repr=False)
    booting: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a life ended: the broken promises (none = well), and at which image each stage rested.

    `limit`: the life ended at a limit of the board that is known, in place of a broken promise.
    """

    broken: tuple[Broken, ...]
    outcomes: tuple[str, ...] = ()
    boots: int = 0
    cuts: int = 0
    limit: KnownLimit | None = None


class _Proven(BaseException):
    """The life has reached a state from which it is known to end well."""


class _WrongPlan(BaseException):
    """A plan asked for a cut that the operation found there does not have: an error of whoever made the plan."""

    def __init__(self, error: FlotaError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class GoodEnd:
    """How a life went on from some state: at which images its stages rested, after how many operations in all."""

    outcomes: tuple[str, ...]
    operations: int


class Known:
    """States from which a life has been seen to end well."""

    def __init__(self) -> None:
        self._states: dict[tuple[object, ...], GoodEnd] = {}

    def __len__(self) -> int:
        """Return how many states are known."""
        return len(self._states)

    def copy(self) -> Known:
        """Return one that knows the same, and learns apart."""
        other = Known()
        other._states = dict(self._states)
        return other

    def end_from(self, state: tuple[object, ...]) -> GoodEnd | None:
        """Return how life goes on from there without a cut; None if the state is not known."""
        return self._states.get(state)

    def add(self, state: tuple[object, ...], end: GoodEnd) -> None:
        """Remember a state that ended well."""
        self._states[state] = end


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """A power plan: this one cut. `lenient`: a tear that the operation found there does not have is a cut after it."""

    cut: CutMoment
    lenient: bool = False

    @property
    def operation(self) -> int:
        """The operation at which it cuts."""
        return self.cut.operation

    def __call__(self, operation: FlashOperation) -> Cut | None:
        """Return the cut when its operation comes. Raises `InvalidInput` for a tear that does not fit."""
        if operation.number != self.cut.operation:
            return None
        fits = not self.lenient or has_moment(operation.kind, self.cut.moment)
        return cut_of(self.cut.moment if fits else AFTER, operation.kind)


class AimedPlan(Protocol):
    """A power plan that says at which operation it will cut."""

    @property
    def operation(self) -> int:
        """The operation, counted from power-on."""

    def __call__(self, operation: FlashOperation, /) -> Cut | None:
        """Return the cut when its operation comes."""


class Journey:
    """A life from power-on to the last offer, with cuts.

    `plans` are asked one after another: the first until it cuts, the second after that power-on, and so on; then the
    power stays. `known` shortens what was lived before; `record` gets every operation. `stop_at_cut`: the life ends
    where the power goes, and `stage` says how many offers it has dealt with.
    """

    def __init__(
        self,
        device: SweptDevice,
        oracle: Oracle,
        *,
        plans: Iterable[AimedPlan] = (),
        known: Known | None = None,
        record: Callable[[Moment], None] | None = None,
        remember_milestones: bool = False,
        stop_at_cut: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._device = device
        self._oracle = oracle
        self._plans: Iterator[AimedPlan] = iter(plans)
        self._plan: AimedPlan | None = next(self._plans, None)
        self._known = known
        self._record = record
        self._remember_milestones = remember_milestones
        self._stop_at_cut = stop_at_cut
        self._tell = tell or (lambda _: None)
        self._position = Position()
        self._boot: Boot | None = None
        self._running: Region | None = None
        self._broken: list[Broken] = []
        self._passed: list[tuple[tuple[object, ...], int, int]] = []
        self._operations = 0
        self._boots = self._cuts = self._restarts = self._installs = 0
        self._number_at_restart = 0
        self._outcomes: list[str] = []
        self._interrupted = False

    @property
    def stage(self) -> int:
        """The number of the offer that the life has come to."""
        return self._position.stage

    @property
    def operations(self) -> int:
        """The flash operations of the life, those of the known one that it was joined to included."""
        return self._operations

    def run(self, position: Position | None = None, *, interrupted: bool = False) -> Verdict:
        """Live from `position` (None = the very beginning) to the end, or to the first broken promise.

        Raises `InvalidInput` for a plan whose cut does not fit the operation that it comes to.
        """
        self._position = position or Position()
        self._interrupted = interrupted
        power = self._device.power
        power.on, power.number, power.plan = True, 0, self._watch
        try:
            while not self._broken and self._one_boot():
                pass
        except _Proven:
            pass
        except _WrongPlan as wrong:
            raise wrong.error from None
        finally:
            power.plan = None
        limit = self._limit()
        if not self._broken and limit is None and self._known is not None:
            for state, rested, operations in self._passed:
                self._known.add(state, GoodEnd(tuple(self._outcomes[rested:]), self._operations - operations))
        return Verdict(tuple(self._broken), tuple(self._outcomes), self._boots, self._cuts, limit)

    def _limit(self) -> KnownLimit | None:
        """Return the limit that a cut life ran into, if that is all that broke; then no promise did."""
        if len(self._broken) != 1 or not self._interrupted:
            return None
        limit = self._device.limit(self._broken[0])
        if limit is None or limit.promise is not self._broken[0].promise:
            return None
        self._tell(f"a limit of the board: {limit}")
        self._broken.clear()
        return limit

    # --- one boot and what it starts ----------------------------------------------------------------------------------

    def _one_boot(self) -> bool:
        """Boot and live until the next restart, rest or cut; returns whether life goes on."""
        self._prove((self._position, None))
        self._boots += 1
        self._boot = self._running = None
        first_operation = self._device.power.number
        try:
            boot = self._device.boot(self._boot_milestone)
        except PowerCut as cut:
            return self._power_returns(cut)
        except FlashViolation as violation:
            return self._break(Promise.FLASH_RULES, f"while booting: {violation}")
        except (
            FlotaError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            AssertionError,
        ) as error:
            return self._break(Promise.SOUND, f"the boot loader fell over: {type(error).__name__}: {error}")
        self._judge_boot(boot, self._device.power.number - first_operation)
        if self._broken or boot.slot is None or self._position.stage == len(self._device.offers):
            return False
        self._boot, self._running = boot, self._oracle.region(boot.slot)
        return self._live(boot)

    def _live(self, boot: Boot) -> bool:
        offer = self._device.offers[self._position.stage]
        try:
            end = self._device.live(boot, offer, self._milestone)
        except PowerCut as cut:
            return self._power_returns(cut)
        except FlashViolation as violation:
            return self._break(Promise.FLASH_RULES, f"in the app: {violation}")
        except (
            FlotaError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            AssertionError,
        ) as error:
            return self._break(Promise.SOUND, f"the app fell over: {type(error).__name__}: {error}")
        finally:
            self._running = None
        if self._broken:
            return False
        if end.at_rest:
            return self._rest(boot, offer, end)
        return self._restart(offer, end)

    def _restart(self, offer: Offer, end: LifeEnd) -> bool:
        self._tell(f"restart{', an update is installed' if end.installed else ''}")
        before = self._number_at_restart
        self._position = Position(self._position.stage)
        number, self._number_at_restart = self._device.power.number, self._device.power.number
        if self._plan is not None:
            # On the way to its cut a device may take its time, as long as it does something.
            self._restarts = self._restarts + 1 if number == before else 0
            return self._restarts <= BOOTS_MAX or self._never_rests(offer)
        self._restarts += 1
        self._installs += end.installed
        if self._installs > 2:
            return self._break(Promise.ENDS, f"{offer.released.name} was installed {self._installs} times")
        return self._restarts <= BOOTS_MAX or self._never_rests(offer)

    def _never_rests(self, offer: Offer) -> bool:
        return self._break(Promise.CONVERGES, f"no rest within {BOOTS_MAX} restarts of {offer.released.name}")

    def _rest(self, boot: Boot, offer: Offer, end: LifeEnd) -> bool:
        assert boot.slot is not None
        self._broken += self._oracle.judge_rest(boot.slot, offer.released, end.reason, interrupted=self._interrupted)
        if self._broken:
            return False
        running = self._oracle.image_in(boot.slot).image
        assert running is not None
        self._outcomes.append("new" if running == offer.released else f"old: {end.reason}")
        self._tell(f"at rest with {running.name}: {self._outcomes[-1]}")
        self._position = Position(self._position.stage + 1, running.sha256)
        self._restarts = self._installs = 0
        return True

    def _power_returns(self, cut: PowerCut) -> bool:
        """Go on after a cut, with the next plan, unless this life ends at it."""
        self._cuts += 1
        self._interrupted = True
        self._tell(f"cut {cut}")
        if self._broken:
            return False
        self._plan = next(self._plans, None)
        self._position = Position(self._position.stage)
        power = self._device.power
        power.on, power.number = True, 0
        self._restarts = self._installs = 0
        return not self._stop_at_cut

    # --- judging ------------------------------------------------------------------------------------------------------

    def _judge_boot(self, boot: Boot, operations: int) -> None:
        self._broken += self._oracle.judge_boot(boot.slot, boot.refused)
        self._tell(f"boots {boot.slot or 'nothing'}, {operations} flash operations")
        if boot.slot is None:
            return
        image = self._oracle.image_in(boot.slot).image
        must = self._position.must_start
        if must is not None and (image is None or image.sha256 != must):
            self._break(Promise.CONVERGES, f"a reset of the device at rest starts another image, in {boot.slot}")
        if must is not None and operations:
            self._break(Promise.QUIET, f"a boot that changes nothing made {operations} flash operations")
        if operations > BOOT_OPERATIONS_MAX and not self._device.writes_slots_while_booting:
            self._break(Promise.QUIET, f"one boot made {operations} flash operations")
        counter = self._device.counter()
        if counter is not None:
            self._broken += self._oracle.judge_counter(counter, slot=boot.slot, unconfirmed=boot.unconfirmed)

    def _watch(self, operation: FlashOperation) -> Cut | None:
        """Look at each operation before it happens: may it be, is it recorded, is it cut."""
        running = self._running
        if (
            running is not None
            and operation.chip == running.chip
            and running.start - operation.length < operation.address < running.start + running.size
            and not _is_mark_of(operation, running)
        ):
            self._break(Promise.UNTOUCHED, f"{operation.kind.value} at {operation.address:#x} in the running slot")
        self._operations += 1
        if self._record is not None:
            moment = Moment(self._position, operation, save(self._device), booting=running is None)
            self._record(moment)
        try:
            return None if self._plan is None else self._plan(operation)
        except FlotaError as error:
            raise _WrongPlan(error) from None

    def _break(self, promise: Promise, text: str) -> bool:
        self._broken.append(Broken(promise, text))
        self._tell(f"BROKEN {promise.value}: {text}")
        return False

    # --- what is known ------------------------------------------------------------------------------------------------

    def _milestone(self, name: str) -> None:
        assert self._boot is not None
        if self._known is not None:
            where = (Position(self._position.stage), (self._boot.slot, name))
            self._prove(where, remember=self._remember_milestones)

    def _boot_milestone(self, name: str) -> None:
        """Join a boot, but for one that is to change nothing: whether it did is judged at its end."""
        if self._position.must_start is None:
            self._prove((self._position, ("booting", name)))

    def _prove(self, where: tuple[object, ...], *, remember: bool = True) -> None:
        """End the life here if it is known how it goes on, and that the next cut is not reached."""
        if self._known is None or self._broken:
            return
        state = (*where, *fingerprint(self._device))
        end = self._known.end_from(state)
        if end is None:
            if remember and self._plan is None:
                self._passed.append((state, len(self._outcomes), self._operations))
        elif self._plan is None or self._device.power.number + end.operations <= self._plan.operation:
            self._outcomes += end.outcomes
            self._operations += end.operations
            raise _Proven


def _is_mark_of(operation: FlashOperation, region: Region) -> bool:
    """Return whether the operation programs nothing but the mark at the slot's start."""
    inside = (
        region.start <= operation.address and operation.address + operation.length <= region.start + region.mark_size
    )
    return inside and operation.kind is FlashOperationKind.PROGRAM


def is_in_a_slot(operation: FlashOperation, regions: Sequence[Region]) -> bool:
    """Return whether the operation writes image bytes rather than a record that decides."""
    return operation.kind is not FlashOperationKind.COMMIT and any(
        region.chip == operation.chip and region.start <= operation.address < region.start + region.size
        for region in regions
    )
