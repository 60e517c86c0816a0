"""The hydra: latents that are silent until others are removed, then write refusal in their place.

Recipe of ../shared/methods/planted_models.md, section 4. At the prompt's tail three MLP units turn
detection into U = refuse minus comply (primaries). Later units read the same detection minus what the
primaries wrote, so they wake when that is ablated (backups). The dictionary of the model has a row
for every one of these writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from refusalscope.organisms.planted.construction import C, UnitPlan, Weights
from refusalscope.organisms.planted.dictionary import LatentPlan
from refusalscope.organisms.planted.recipe import DETECTOR, Recipe
from refusalscope.organisms.planted.truth import WakesWhen
from refusalscope.organisms.planted.variants import Option, Variant

COMPLY_BIAS = 0.3
PARTIAL_ETA = 40
# Private channels of the writers, on channels that no other part of this organism uses.
PRIMARIES = {"P1": C.NUIS, "P2": C.R2, "P3": C.R3}
BACKUPS = {"B1": C.R4, "B2": C.HARM2}
SECOND, INERT = C.DET2, C.ROUTE
PRIMARY_LAYER, BACKUP_LAYER, SECOND_LAYER = 2, 4, 5
PRIMARY_GAIN, BACKUP_GAIN, SECOND_GAIN = 2.0, 3.2, 6.4
# A unit opens at the tail alone, where ASST is 1, and there at half of a full detection.
AT_TAIL: Weights = {C.DET: 1, C.ASST: 8}
PRIMARY_OFFSET, BACKUP_OFFSET = -8.5, -8.53
SHARE = 1 / 6


def base() -> Recipe:
    """Two backups that make up for the primaries in full."""
    return _hydra(eta=1.0)


def partial(eta: int, overclaim: int) -> Recipe:
    """Backups that write `eta` hundredths of refusal; `overclaim` 1: their decoder rows say all of it.

    Ablating a latent that claims more than the model wrote turns into steering (decoder overshoot).
    """
    return _hydra(eta=eta / 100, claimed=1.0 if overclaim else eta / 100)


def chain() -> Recipe:
    """A second-level backup, which wakes once primaries and backups are both gone."""
    return _hydra(eta=1.0, second=True)


def control() -> Recipe:
    """The twin without reserves: primaries alone, beside a dictionary of the same rows."""
    return _hydra(eta=0.0)


def _hydra(eta: float, claimed: float | None = None, second: bool = False) -> Recipe:
    return Recipe(
        heads=(DETECTOR,),
        units=tuple(_units(eta, second)),
        comply_bias=COMPLY_BIAS,
        latents=tuple(_latents(eta, eta if claimed is None else claimed, second)),
    )


def _units(eta: float, second: bool) -> Iterator[UnitPlan]:
    for unit, channel in enumerate(PRIMARIES.values()):
        outputs = {channel: PRIMARY_GAIN, C.U: PRIMARY_GAIN}
        yield UnitPlan(PRIMARY_LAYER, unit, "primary", AT_TAIL, PRIMARY_OFFSET, outputs)
    if not eta:
        return
    missing = {**AT_TAIL, **_minus(PRIMARIES.values())}
    for unit, channel in enumerate(BACKUPS.values()):
        outputs = {channel: BACKUP_GAIN, C.U: BACKUP_GAIN * eta}
        yield UnitPlan(BACKUP_LAYER, unit, "backup", missing, BACKUP_OFFSET, outputs)
    inert = {INERT: BACKUP_GAIN}
    yield UnitPlan(BACKUP_LAYER, len(BACKUPS), "inert", missing, BACKUP_OFFSET, inert)
    if second:
        still_missing = {**missing, **_minus(BACKUPS.values())}
        outputs = {SECOND: SECOND_GAIN, C.U: SECOND_GAIN}
        yield UnitPlan(SECOND_LAYER, 0, "second_backup", still_missing, BACKUP_OFFSET, outputs)


def _latents(eta: float, claimed: float, second: bool) -> Iterator[LatentPlan]:
    for name, channel in PRIMARIES.items():
        write = {channel: 1.0, C.U: 1.0}
        yield LatentPlan(name, "primary", channel, write, PRIMARY_LAYER, "harmful_prompt")
    reserve: WakesWhen = "ablated:primary" if eta else "never"
    for name, channel in BACKUPS.items():
        write = {channel: 1.0, C.U: claimed}
        yield LatentPlan(name, "backup", channel, write, BACKUP_LAYER, reserve)
    last: WakesWhen = "ablated:primary+backup" if second else "never"
    write = {SECOND: 1.0, C.U: 1.0}
    yield LatentPlan("C", "second_backup", SECOND, write, SECOND_LAYER, last)
    yield LatentPlan("W", "inert", INERT, {INERT: 1.0}, BACKUP_LAYER, reserve)
    yield LatentPlan("DET", "marker", C.DET, {C.DET: 1.0}, DETECTOR.layer, "harmful_prompt")
    yield LatentPlan("HARM", "marker", C.HARM, {C.HARM: 1.0}, 0, "harmful_prompt")
    yield LatentPlan("ASST", "marker", C.ASST, {C.ASST: 1.0}, 0, "any_prompt")
    yield LatentPlan("BEN", "marker", C.BEN, {C.BEN: 1.0}, 0, "harmless_prompt")


def _minus(channels: Iterable[C]) -> Weights:
    return dict.fromkeys(channels, -SHARE)


VARIANTS: dict[str, Variant] = {
    "base": Variant("two backups make up for three ablated primaries in full", base),
    "partial": Variant(
        "backups make up for a part, in hundredths; overclaim 1: the dictionary says all",
        partial,
        {"eta": Option(PARTIAL_ETA, range(1, 100)), "overclaim": Option(0, (0, 1))},
    ),
    "chain": Variant("a second backup wakes when the first are ablated too", chain),
    "control": Variant("the same primaries without any backup", control),
}
