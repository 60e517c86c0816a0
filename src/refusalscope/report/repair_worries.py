"""What can make a repair say more than it measured, or hide what it cost."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.numbers import decimal, listed, percent, span, whole
from refusalscope.report.repair_tables import (
    BEFORE,
    EFFECTS,
    KL,
    LOSSES,
    LOST,
    PROMPTS,
    RESTORED,
    SELECTION,
    effect,
    main_selection,
    repair_table,
)
from refusalscope.report.rules import MIN_N, Statement
from refusalscope.report.tables import RunLike

# More degenerate replies than this and the fine-tune breaks the model.
BROKEN = 0.10
# Nats a token on harmless replies from which a repair is said to have changed the model elsewhere.
MOVED = 0.1
# A validation loss this far above its best, in nats a token, at the end.
RISEN = 0.1


def repair_worries(run: RunLike) -> list[Statement]:
    """The concerns of a repair run, the gravest first; none for a run without its tables."""
    if not any(name.startswith("repair.") for name in run.tables()):
        return []
    checks = [
        broken(repair_table(run, PROMPTS)),
        moved(run),
        risen(repair_table(run, LOSSES)),
        few(run),
        alone(run),
        few_rows(repair_table(run, SELECTION)),
    ]
    return [check for check in checks if check is not None]


def broken(prompts: pd.DataFrame | None) -> Statement | None:
    """Replies of the repaired model that say nothing."""
    if prompts is None:
        return None
    rates = prompts[prompts["selection"] != BEFORE].groupby("selection")["degenerate"].mean()
    worst = rates[rates > BROKEN]
    if worst.empty:
        return None
    text = f"{percent(worst.max())} of replies are degenerate after the repair by {worst.idxmax()}"
    return Statement(text, "", "bad", ("table-repair-effects",))


def moved(run: RunLike) -> Statement | None:
    """Harmless replies that the fine-tune moved clearly."""
    row = effect(run, KL)
    if row is None or not row["low"] > MOVED:
        return None
    text = f"the repair moves replies to harmless prompts by {decimal(row['value'])} nats a token "
    text += f"(interval {span(row['low'], row['high'])}), so more than refusal changed"
    return Statement(text, "", "watch", ("figure-repair-effects",))


def risen(losses: pd.DataFrame | None) -> Statement | None:
    """Trainings whose validation loss had risen again when they ended."""
    if losses is None:
        return None
    names = []
    for name, part in losses.dropna(subset=["validation_loss"]).groupby("selection", sort=False):
        held = part.sort_values("step")["validation_loss"]
        if held.iloc[-1] > held.min() + RISEN:
            names.append(str(name))
    if not names:
        return None
    text = f"the validation loss of the training on {listed(names)} had risen by more than {RISEN} nats at its "
    return Statement(
        f"{text}end; the best weights were kept", "", "watch", ("figure-repair-losses",)
    )


def few(run: RunLike) -> Statement | None:
    """Too few held-out prompts that had lost their refusal."""
    row = effect(run, RESTORED)
    if row is not None and row["n"] >= MIN_N:
        return None
    prompts = repair_table(run, PROMPTS)
    if row is None and prompts is None:
        return None
    held = 0 if prompts is None else prompts.loc[prompts["group"] == LOST, "id"].nunique()
    n = held if row is None else row["n"]
    text = f"only {whole(n)} held-out prompts had lost their refusal, too few for a word"
    return Statement(text, "", "watch", ("figure-repair-effects",))


def alone(run: RunLike) -> Statement | None:
    """A repair without another selection beside it."""
    effects = repair_table(run, EFFECTS)
    if effects is None or effects["selection"].nunique() > 1:
        return None
    text = f"no other selection was trained on, so it is open whether the ranking {main_selection(run)} matters"
    return Statement(text, "", "watch", ("table-repair-effects",))


def few_rows(chosen: pd.DataFrame | None) -> Statement | None:
    """Selections of different size, whose effects cannot be compared."""
    if chosen is None:
        return None
    sizes = chosen.groupby("selection", sort=False).size()
    if sizes.nunique() < 2:
        return None
    said = [f"{name} {whole(n)}" for name, n in sizes.head(4).items()]
    text = f"the selections differ in size ({listed(said)} rows), so the ranking is not all that differs"
    return Statement(text, "", "watch", ("table-repair-selection",))
