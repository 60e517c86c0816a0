"""Stage 3 as published, and its two repairs: rankings by a factorization machine, a linear probe beside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from refusalscope.dictionary import latent_variant
from refusalscope.dictionary.activations import states
from refusalscope.errors import InputError
from refusalscope.model import Rendered, Variant
from refusalscope.studies.features.ablation import Latent, by_layer
from refusalscope.studies.features.contrast import fit_contrast
from refusalscope.studies.features.machine import FactorizationMachine
from refusalscope.studies.features.readouts import latent_scores, top_latents
from refusalscope.studies.features.settings import Inputs
from refusalscope.studies.features.together import Masked
from refusalscope.studies.features.work import Work

CONTRAST_COLUMNS = [
    *("inputs", "n_latents", "machine_accuracy", "machine_low", "machine_high"),
    *("probe_accuracy", "probe_low", "probe_high"),
]
MACHINE_COLUMNS = ["inputs", "layer", "latent", "score", "place", "probe_weight", "probe_place"]


def rank_latents(
    work: Work, members: Sequence[Latent], masked: Masked | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `features.contrast` and `features.machine`, for each of the settings' machine inputs.

    place, probe_place: rank by the machine and by |weight| of the probe, from 0, NaN beyond the largest
    `machine_k`. A latent that was never active in the inputs of its machine has no rank. Where no member is
    active, as none is once the set is ablated, there is no pair to go by and the read-out is `norm`.
    """
    contrasts, ranks = [], []
    for inputs in work.settings.machine_inputs:
        if inputs == "masks":
            if masked is not None:
                ranks.append(_by_masks(work, members, masked))
                contrasts.append((inputs, len(masked.names), *[np.nan] * 6))
            continue
        try:
            row, table = _by_contrast(work, members, inputs)
        except InputError as error:
            work.run.warn(f"The factorization machine on {inputs} inputs was left out: {error}.")
            continue
        contrasts.append(row)
        ranks.append(table)
    empty = [pd.DataFrame(columns=MACHINE_COLUMNS)]
    return (
        pd.DataFrame(contrasts, columns=CONTRAST_COLUMNS),
        pd.concat(ranks or empty, ignore_index=True),
    )


def _by_contrast(
    work: Work, members: Sequence[Latent], inputs: Inputs
) -> tuple[tuple[object, ...], pd.DataFrame]:
    """Harmful against harmless prompts of the fit and select splits, by the peaks of all latents."""
    subject = work.subject
    rows = [*subject.pick("fit"), *subject.pick("select")]
    variant: Variant = ()
    if inputs == "post_ablation":
        variant = latent_variant(
            work.slices(members), by_layer(members), positions=work.settings.positions
        )
    keys, peaks, norms = _peaks(work, subject.take(rows), variant)
    found = fit_contrast(
        peaks,
        subject.harmful(rows).astype(float),
        [subject.prompts[i].id for i in rows],
        norms,
        seed=work.settings.seed,
    )
    kept = [keys[i] for i in found.inputs.kept_]
    train = found.train[subject.harmful(rows)[found.train]]
    own = [kept.index(member) for member in members if member in kept]
    readout = work.settings.readout if own else "norm"
    scores = latent_scores(found.machine, found.inputs.transform(peaks[train]), own, readout)
    accuracies = found.machine_accuracy, found.probe_accuracy
    row = (
        inputs,
        len(kept),
        *(x for each in accuracies for x in (each.value, each.low, each.high)),
    )
    return row, _ranked(work, inputs, kept, scores, found.probe_weights)


def _by_masks(work: Work, members: Sequence[Latent], masked: Masked) -> pd.DataFrame:
    machine = FactorizationMachine(loss="squared", random_state=work.settings.seed)
    x = masked.masks.astype(float)
    machine.fit(x, masked.change)
    own = [masked.names.index(member) for member in members if member in masked.names]
    scores = latent_scores(machine, x, own, work.settings.readout)
    return _ranked(work, "masks", masked.names, scores, np.full(len(scores), np.nan))


def _ranked(
    work: Work,
    inputs: Inputs,
    keys: Sequence[Latent],
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
) -> pd.DataFrame:
    """The latents that either ranking puts among its first `machine_k`."""
    most = max(work.settings.machine_k, default=0)
    table = pd.DataFrame(keys, columns=["layer", "latent"])
    table = table.assign(inputs=inputs, score=scores, probe_weight=weights)
    for column, ranking in (("place", scores), ("probe_place", np.abs(weights))):
        table[column] = np.nan
        first = top_latents(ranking, most)
        table.loc[first, column] = np.arange(len(first), dtype=float)
    named = table["place"].notna() | table["probe_place"].notna()
    return table[named][MACHINE_COLUMNS].sort_values("place", kind="stable")


def _peaks(
    work: Work, prompts: Sequence[Rendered], variant: Variant
) -> tuple[list[Latent], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Latents that are active at all, their largest activation a prompt over the tokens, and decoder norms."""
    sites = [dictionary.site for dictionary in work.dictionaries.values()]
    found = states(work.chat, prompts, sites, [variant] * len(prompts))
    places = [list(prompt.resolve("no_bos")) for prompt in prompts]
    keys, columns, norms = [], [], []
    for layer, dictionary in work.dictionaries.items():
        device = work.chat.device
        peaks = torch.stack(
            [
                dictionary.encode(each[dictionary.site][where].to(device)).amax(0).cpu()
                for each, where in zip(found, places, strict=True)
            ]
        )
        active = (peaks > 0).any(0).nonzero().flatten().tolist()
        keys += [(layer, latent) for latent in active]
        columns.append(peaks[:, active].double().numpy())
        rows = [rows.norm(dim=1) for _, rows in dictionary.decoder_rows(active)]
        norms.append(torch.cat(rows).double().cpu().numpy() if rows else np.zeros(0))
    return keys, np.concatenate(columns, axis=1), np.concatenate(norms)
