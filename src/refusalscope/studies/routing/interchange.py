"""The exact screen: every unit's output swapped between the two prompts of a pair, and what that does.

    necessity    = m(harmful) - m(harmful with z of the unit from the control)
    sufficiency  = m(control with z of the unit from the harmful prompt) - m(control)

Source: arXiv 2604.04385, interchange; alignment_routes sections 4 and 6. One row a unit over a cached
prefix: with the map `last` each costs one token through the layers above it. A layer without softmax
attention has no heads and is one unit, its mixer's whole write; a model with such layers has no prefix to
cache either, so that each row costs its whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import (
    Anatomy,
    ChatModel,
    Clean,
    Metric,
    Rendered,
    Replace,
    Site,
    StateMetric,
    Variant,
)
from refusalscope.model.edits import frozen
from refusalscope.studies.heads import WHOLE, Head, Unit, head_name, site_of, units_of
from refusalscope.studies.routing.maps import MapName, Places, position_map

Array = npt.NDArray[np.float64]
# Up to so many lent places, states of all prompts are kept from one clean run.
FEW_PLACES = 16


@dataclass(frozen=True)
class Pair:
    """A harmful prompt, its control, and the donors of either side: its partner first, then others."""

    harmful: Rendered
    control: Rendered
    to_harmful: tuple[Rendered, ...] = ()
    to_control: tuple[Rendered, ...] = ()

    def donors(self, side: str) -> tuple[Rendered, ...]:
        if side == "necessity":
            return (self.control, *self.to_harmful)
        return (self.harmful, *self.to_control)


@dataclass(frozen=True)
class Screen:
    """What each swap did, by metric. harmful, control [pairs]: the clean scores.

    necessity, sufficiency [pairs, donors, units]: in the metric's own unit (nats for a margin).
    """

    units: tuple[Unit, ...]
    harmful: Mapping[str, Array]
    control: Mapping[str, Array]
    necessity: Mapping[str, Array]
    sufficiency: Mapping[str, Array]

    def gap(self, metric: str) -> float:
        """Mean clean difference between the members of a pair: what an effect is a share of."""
        return float((self.harmful[metric] - self.control[metric]).mean())


def screen(
    chat: ChatModel,
    pairs: Sequence[Pair],
    metrics: Mapping[str, Metric | StateMetric],
    *,
    units: Sequence[Unit] | None = None,
    positions: MapName = "last",
    held: Unit = (),
    policy: str = "every_step",
    progress: Callable[[int, int], None] | None = None,
) -> Screen:
    """Swap every unit of every pair, both ways, with each donor.

    units: sets of (layer, head) that are swapped together; `units_of` the model without it. held:
    heads that are swapped in every row and in the clean scores beside them too, so that what is measured is
    what a unit adds (the conditional screen). Raises InputError for no pair, a
    pair of equal members, donors of unequal number, or a head the model does not have.
    """
    chosen = tuple(units) if units is not None else units_of(chat.anatomy)
    parts = {head for unit in (*chosen, held) for head in unit}
    _check(pairs, parts, chat.anatomy)
    patients = [pair.harmful for pair in pairs] + [pair.control for pair in pairs]
    donors = [pair.donors("necessity") for pair in pairs]
    donors += [pair.donors("sufficiency") for pair in pairs]
    places = [
        [position_map(patient, donor, positions) for donor in each]
        for patient, each in zip(patients, donors, strict=True)
    ]
    clean_run = _kept(chat, patients, donors, places, parts)
    states = _Donors(chat, donors, places, parts, clean_run)
    rows = [
        [
            (),
            *(
                v
                for d, at in zip(each, maps, strict=True)
                for v in states.variants(d, at, chosen, held)
            ),
        ]
        for each, maps in zip(donors, places, strict=True)
    ]
    scores = chat.measure(
        patients, rows, metrics, policy=policy, clean=clean_run, progress=progress
    ).scores
    clean = {name: table[:, 0].astype(np.float64) for name, table in scores.items()}
    # By donor: the held heads alone, then every unit on top of them.
    change = {}
    for name, table in scores.items():
        by_donor = table[:, 1:].reshape(len(patients), len(donors[0]), 1 + len(chosen))
        change[name] = (by_donor[:, :, 1:] - by_donor[:, :, :1]).astype(np.float64)
    n = len(pairs)
    return Screen(
        chosen,
        {name: table[:n] for name, table in clean.items()},
        {name: table[n:] for name, table in clean.items()},
        {name: -table[:n] for name, table in change.items()},
        {name: table[n:] for name, table in change.items()},
    )


def _check(pairs: Sequence[Pair], parts: Collection[Head], anatomy: Anatomy) -> None:
    if not pairs:
        raise InputError("there is no pair to screen; give at least one")
    for pair in pairs:
        if pair.harmful.ids == pair.control.ids:
            raise InputError(
                f"the members of pair {pair.harmful.id!r} are the same prompt, so a swap changes nothing; "
                f"take the pair out"
            )
    if len({(len(p.donors("necessity")), len(p.donors("sufficiency"))) for p in pairs}) > 1:
        raise InputError("every pair needs the same number of donors a side")
    if len(pairs[0].to_harmful) != len(pairs[0].to_control):
        raise InputError("both sides of a pair need the same number of donors")
    n_layers, n_heads = anatomy.n_layers, anatomy.n_heads
    for layer, head in sorted(parts):
        if not (0 <= layer < n_layers and WHOLE <= head < n_heads):
            raise InputError(
                f"the model has no head L{layer}.H{head}; it has {n_layers} layers of {n_heads} heads"
            )
        if head != WHOLE and layer not in anatomy.softmax_layers:
            raise InputError(
                f"there is no head L{layer}.H{head}: layer {layer} has no softmax attention and is one unit, "
                f"{head_name((layer, WHOLE))}; give it as ({layer}, {WHOLE})"
            )


def _sites(parts: Collection[Head]) -> list[Site]:
    return sorted({site_of(head) for head in parts})


def _kept(
    chat: ChatModel,
    patients: Sequence[Rendered],
    donors: Sequence[Sequence[Rendered]],
    places: Sequence[Sequence[Places]],
    parts: Collection[Head],
) -> Clean | None:
    """One clean run of the patients for their states as donors and for the prefix of their rows.

    None where some donor is no patient, many places are lent, or the prefixes would not fit the plan's memory.
    """
    anatomy = chat.anatomy
    offsets = sorted(
        {
            at - donor.n_prompt
            for each, maps in zip(donors, places, strict=True)
            for donor, lent in zip(each, maps, strict=True)
            for _, at in lent
        }
    )
    known = set(patients)
    width = 2 * anatomy.n_layers * anatomy.n_kv_heads * anatomy.head_dim
    held = 4 * width * sum(len(prompt) for prompt in patients)
    if (
        anatomy.recurrent
        or len(known) < len(patients)
        or len(offsets) > FEW_PLACES
        or offsets[0] < -min(prompt.n_prompt for prompt in patients)
        or any(donor not in known for each in donors for donor in each)
        or held > chat.plan.max_bytes
    ):
        return None
    return chat.run_clean(patients, _sites(parts), [(offset,) for offset in offsets])


class _Donors:
    """What every donor lends at its positions, by site, captured once and in batches."""

    def __init__(
        self,
        chat: ChatModel,
        donors: Sequence[Sequence[Rendered]],
        places: Sequence[Sequence[Places]],
        parts: Collection[Head],
        clean: Clean | None = None,
    ) -> None:
        self._width = chat.anatomy.head_dim
        self._sites = _sites(parts)
        # A state by site: sites of both kinds differ in width.
        self._states: dict[Rendered, dict[int, dict[Site, Tensor]]] = {}
        wanted: dict[Rendered, set[int]] = {}
        for each, maps in zip(donors, places, strict=True):
            for donor, pairs in zip(each, maps, strict=True):
                wanted.setdefault(donor, set()).update(at for _, at in pairs)
        # Counted from the end, donors lend the same few positions, and one pass reads them all.
        groups: dict[tuple[int, ...], list[Rendered]] = {}
        for donor, lent in wanted.items():
            groups.setdefault(tuple(sorted(i - donor.n_prompt for i in lent)), []).append(donor)
        if clean is not None:
            # Every donor is a patient, whose states at all offsets were kept.
            groups = {tuple(sorted({o for offsets in groups for o in offsets})): [*clean.prompts]}
        for offsets, members in groups.items():
            found = (
                clean.states
                if clean is not None
                else chat.capture(members, self._sites, [(offset,) for offset in offsets])
            )
            for i, donor in enumerate(members):
                self._states[donor] = {
                    offset + donor.n_prompt: {site: found[site][i, k] for site in self._sites}
                    for k, offset in enumerate(offsets)
                }

    def variants(
        self, donor: Rendered, places: Places, units: Sequence[Unit], held: Unit
    ) -> list[Variant]:
        """The held heads alone, then every unit on top of them."""
        where = tuple(patient for patient, _ in places)
        lent = [self._states[donor][at] for _, at in places]
        # By site [positions, n_heads * head_dim or d_model].
        states = {site: torch.stack([at[site] for at in lent]) for site in self._sites}

        def put(head: Head) -> Replace:
            site = site_of(head)
            values = states[site]
            if head[1] == WHOLE:
                return Replace(site, where, values=frozen(values))
            start = head[1] * self._width
            slice_ = frozen(values[:, start : start + self._width])
            return Replace(site, where, head=head[1], values=slice_)

        def swap(heads: Sequence[Head]) -> Variant:
            return tuple(put(head) for head in heads)

        base = swap(held)
        return [base, *(base + swap([h for h in unit if h not in held]) for unit in units)]


def swaps(
    chat: ChatModel,
    pairs: Sequence[Pair],
    units: Sequence[Unit],
    positions: MapName = "last",
) -> list[list[Variant]]:
    """The edits that swap each unit of a pair's harmful prompt with its control's: [pairs][units]."""
    places = [position_map(pair.harmful, pair.control, positions) for pair in pairs]
    parts = {head for unit in units for head in unit}
    donors = _Donors(chat, [(pair.control,) for pair in pairs], [(at,) for at in places], parts)
    return [
        donors.variants(pair.control, at, units, ())[1:]
        for pair, at in zip(pairs, places, strict=True)
    ]
