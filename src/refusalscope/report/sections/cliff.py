"""The cliff study: whether refusal falls where the thinking ends, and which heads push it down."""

from __future__ import annotations

from refusalscope.report.cliff_tables import (
    ABLATION,
    BEHAVIOUR,
    CURVE,
    HEADS,
    PROBES,
    PROMPTS,
    SEPARATION,
    TRACE,
    VERDICT,
    cliff_table,
    closing_names,
)
from refusalscope.report.cliff_traces import shown_traces
from refusalscope.report.cliff_worries import final_auroc, ranked_statics
from refusalscope.report.content import Block, Note, Section
from refusalscope.report.sections.cliff_ablation import (
    ablation_figure,
    ablation_table,
    behaviour_table,
)
from refusalscope.report.sections.cliff_curve import curve_figure
from refusalscope.report.sections.cliff_heads import head_map, heads_table
from refusalscope.report.sections.cliff_numbers import (
    plateaus_table,
    separation_table,
    steps_table,
    verdict_table,
)
from refusalscope.report.sections.cliff_singles import singles
from refusalscope.report.tables import RunLike, why_missing


def cliff(run: RunLike) -> Section | None:
    """The traces and the numbers of the verdict; None for a run without a cliff study."""
    if not _is_cliff(run):
        return None
    curve, prompts = cliff_table(run, CURVE), cliff_table(run, PROMPTS)
    closing = closing_names(run)
    blocks: list[Block] = [_missing(run, CURVE) if curve is None else curve_figure(curve, closing)]
    traces = shown_traces(run)
    if traces and prompts is not None:
        blocks.append(singles(traces, len(prompts)))
    else:
        blocks.append(_missing(run, PROMPTS if prompts is None else TRACE))
    found = cliff_table(run, VERDICT)
    blocks.append(_missing(run, VERDICT) if found is None else verdict_table(found))
    if prompts is not None:
        blocks.append(plateaus_table(prompts))
        blocks += [steps_table(prompts)] if closing else []
    separation = cliff_table(run, SEPARATION)
    blocks.append(
        _missing(run, SEPARATION)
        if separation is None
        else separation_table(separation, cliff_table(run, PROBES), final_auroc(run))
    )
    return Section(
        "cliff",
        "Refusal while it thinks",
        blocks,
        "A probe of refusal is read at every token of the thinking and of the closing tokens after it. A model "
        "that means to refuse while it thinks, and no longer does where its reply begins, has a refusal cliff.",
    )


def cliff_heads(run: RunLike) -> Section | None:
    """The heads, what removing them restores, and what the model then says; None without a cliff study."""
    if not _is_cliff(run):
        return None
    heads, arms, replies = (cliff_table(run, name) for name in (HEADS, ABLATION, BEHAVIOUR))
    blocks: list[Block] = []
    if heads is None:
        blocks.append(_missing(run, HEADS))
    else:
        layers = (run.info.get("model") or {}).get("n_layers")
        drawn = head_map(heads, layers if isinstance(layers, int) else None)
        nothing = "No effect of a head was measured, so there is no map of them."
        blocks += [drawn or Note(nothing, "missing"), heads_table(heads, ranked_statics(run))]
    if arms is None:
        blocks.append(_missing(run, ABLATION))
    else:
        curve = ablation_figure(arms)
        nothing = "No heads were removed together, so there is no curve of what that restores."
        blocks += [curve or Note(nothing, "missing"), ablation_table(arms)]
    blocks.append(_missing(run, BEHAVIOUR) if replies is None else behaviour_table(replies))
    return Section(
        "cliff-heads",
        "Heads that push it",
        blocks,
        "Which attention heads take refusal away at the closing tokens, and whether it returns without them.",
    )


def _is_cliff(run: RunLike) -> bool:
    named = run.info.get("command") == "cliff"
    return named or any(name.startswith("cliff.") for name in run.tables())


def _missing(run: RunLike, name: str) -> Note:
    held = name == TRACE and name in run.tables()
    text = f"No trace of this run could be drawn from {TRACE}." if held else why_missing(run, name)
    return Note(text, "missing")
