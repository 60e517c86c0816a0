"""Trials of the circuit: the detection signal scaled, and the same requests inside wrappers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.prompts.wrappers import Wrapper
from refusalscope.studies.heads import WHOLE, head_name
from refusalscope.studies.routing.cipher import arms_table, collapse_table, measure_arms, wrapped
from refusalscope.studies.routing.contrast import contrast_table
from refusalscope.studies.routing.describe import routers
from refusalscope.studies.routing.dose import Arm, detection, dose
from refusalscope.studies.routing.find import Circuit
from refusalscope.studies.routing.frames import heads_of
from refusalscope.studies.routing.interchange import Pair
from refusalscope.studies.routing.rescue import rescue
from refusalscope.studies.routing.work import Work
from refusalscope.studies.subject import spending, spent

# Taken from harmful prompts, given to harmless ones.
ARMS: tuple[tuple[Arm, str], ...] = (("attenuate", "harmful"), ("amplify", "harmless"))
CIPHER_TABLES = ("routing.cipher", "routing.contrast", "routing.collapse", "routing.rescue")


def run_doses(work: Work) -> None:
    """Write `routing.dose`, `routing.thresholds` and the direction that was scaled."""
    settings, subject = work.settings, work.subject
    if not settings.alphas or work.run.has_table("routing.dose"):
        return
    fit = [subject.take(subject.pick("fit", label)) for label in ("harmful", "harmless")]
    frames = []
    with spending(work.run, work.chat):
        found = detection(work.chat, fit[0], fit[1], settings.detection_layer)
        for arm, label in ARMS:
            rows = subject.pick("report", label)
            frames.append(
                dose(
                    work.chat,
                    [subject.prompts[i] for i in rows],
                    subject.take(rows),
                    work.margin,
                    found,
                    arm=arm,
                    alphas=settings.alphas,
                    judge=subject.judge,
                    judged_alphas=settings.judged_alphas,
                    max_new_tokens=settings.max_new_tokens,
                    clusters=work.problem.categories,
                    seed=settings.seed,
                    progress=work.progress.track(f"dose: {arm}"),
                )
            )
    work.run.write_array(
        "routing.detection",
        {
            "direction": found.direction,
            "layer": np.array([found.layer]),
            "residual_norm": np.array([found.residual_norm]),
            "separation": np.asarray(found.separation),
        },
    )
    work.run.write_table("routing.thresholds", pd.concat([frame[1] for frame in frames]))
    work.run.write_table("routing.dose", pd.concat([frame[0] for frame in frames]))


def run_ciphers(work: Work, circuit: Circuit, wrappers: list[Wrapper]) -> None:
    """Write `routing.cipher`, `.contrast`, `.collapse` and `.rescue`, over all wrappers that can be used."""
    if work.run.has_table(CIPHER_TABLES[-1]):
        return
    inside = {wrapper: _inside(work, wrapper) for wrapper in wrappers}
    usable = {wrapper: hidden for wrapper, hidden in inside.items() if hidden is not None}
    if not usable:
        return
    shards = {name: work.run.shards(name) for name in CIPHER_TABLES}
    for wrapper, hidden in usable.items():
        # Every shard is asked, since asking fixes the place of its rows in the table.
        if sum(part.done(wrapper.name) for part in shards.values()) == len(shards):
            continue
        before = replace(work.chat.cost)
        made = _cipher(work, circuit, wrapper, hidden)
        cost = spent(before, work.chat.cost)
        for name, part in shards.items():
            part.write(wrapper.name, made[name], cost if name == CIPHER_TABLES[-1] else None)
    for name, part in shards.items():
        work.run.write_table(name, part.collect())


def _inside(work: Work, wrapper: Wrapper) -> list[Pair] | None:
    """The pairs inside a wrapper; None, with a warning, where this model cannot be asked that way."""
    try:
        hidden = wrapped(work.chat, work.problem.prompts, wrapper)
    except InputError as error:
        work.run.warn(f"The wrapper {wrapper.name} was left out: {error}.")
        return None
    if any(pair.harmful.ids == pair.control.ids for pair in hidden):
        work.run.warn(
            f"The wrapper {wrapper.name} was left out: inside it a request and its control are the same "
            f"tokens to this model."
        )
        return None
    return hidden


def _cipher(
    work: Work, circuit: Circuit, wrapper: Wrapper, hidden: list[Pair]
) -> dict[str, pd.DataFrame]:
    """The circuit under one wrapper: arms, contrast, collapse of the heads found, rescue by the gate."""
    chat, settings, plain = work.chat, work.settings, work.problem.partners
    categories, seed, name = work.problem.categories, settings.seed, wrapper.name
    arms = measure_arms(
        chat,
        plain,
        hidden,
        work.margin,
        positions=settings.positions,
        screened=circuit.screens.first,
        progress=work.progress.track(f"{name}: every head"),
    )
    passing = circuit.table[circuit.table["passes"] & (circuit.table["head"] != WHOLE)]
    made = {
        "routing.cipher": arms_table(arms, wrapper=name, categories=categories, seed=seed),
        "routing.contrast": contrast_table(
            arms.direct, wrapper=name, layers=arms.layers, categories=categories, seed=seed
        ),
        "routing.collapse": pd.DataFrame(),
        "routing.rescue": pd.DataFrame(),
    }
    if len(passing):
        made["routing.collapse"] = collapse_table(
            arms.plain,
            arms.cipher,
            "margin",
            heads_of(passing),
            wrapper=name,
            categories=categories,
            seed=seed,
        )
    gates = heads_of(routers(circuit))
    others = work.bystanders(gates[0], circuit.known) if gates else []
    if others:
        made["routing.rescue"] = rescue(
            chat,
            work.problem.prompts,
            plain,
            hidden,
            gates[0],
            work.margin,
            work.subject.judge,
            wrapper=name,
            others=others,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
            progress=work.progress.track(f"{name}: rescue"),
        ).assign(gate=head_name(gates[0]))
    return made
