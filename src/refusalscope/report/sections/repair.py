"""The repair: before and after on held-out prompts, the training, and the rows that were trained on."""

from __future__ import annotations

from refusalscope.report.content import Block, Note, Section
from refusalscope.report.repair_rules import RANKING
from refusalscope.report.repair_tables import EFFECTS, LOSSES, SELECTION, repair_table
from refusalscope.report.sections.repair_effects import effects_figure, effects_table
from refusalscope.report.sections.repair_training import (
    losses_figure,
    rows_table,
    selection_table,
)
from refusalscope.report.tables import RunLike, why_missing


def repair(run: RunLike) -> Section | None:
    """The section; None for a run that neither repaired nor ranked."""
    ranking = run.info.get("command") == RANKING
    named = ranking or run.info.get("command") == "repair"
    if not named and not any(name.startswith("repair.") for name in run.tables()):
        return None
    blocks: list[Block] = []
    if not ranking or EFFECTS in run.tables():
        table = repair_table(run, EFFECTS)
        if table is None:
            blocks.append(_missing(run, EFFECTS))
        else:
            drawn = effects_figure(run)
            nothing = "No quantity that this page knows was measured before and after."
            blocks += [drawn or Note(nothing, "missing"), effects_table(table)]
    if not ranking or LOSSES in run.tables():
        losses = repair_table(run, LOSSES)
        curves = None if losses is None else losses_figure(losses)
        nothing = "No loss of this run could be drawn."
        blocks.append(
            curves or (_missing(run, LOSSES) if losses is None else Note(nothing, "missing"))
        )
    chosen = repair_table(run, SELECTION)
    if chosen is None:
        blocks.append(_missing(run, SELECTION))
    else:
        blocks += [selection_table(chosen), rows_table(chosen)]
    lead = (
        "Rows of a pool chosen as a training file: own thinking kept, answer corrected."
        if ranking
        else "The model fine-tuned on rows of a pool with its own thinking kept and the answer corrected, "
        "measured before and after on held-out prompts. Each selection is trained on by itself."
    )
    return Section("repair", "Repair", blocks, lead)


def _missing(run: RunLike, name: str) -> Note:
    return Note(why_missing(run, name), "missing")
