"""The tables of a cliff run, made even: every column there, numbers finite or NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.tables import (
    Row,
    RunLike,
    even,
    finite_numbers,
    once,
    placed,
    records,
    usable,
)

VERDICT, PROMPTS, TRACE, CURVE = "cliff.verdict", "cliff.prompts", "cliff.trace", "cliff.curve"
SEPARATION, PROBES, HEADS = "cliff.separation", "cliff.probes", "cliff.heads"
ABLATION, BEHAVIOUR = "cliff.ablation", "cliff.behaviour"

# Groups of traces, and how far a score must fall at the closing tokens to count, as the study has them.
COMPLIED, REFUSED, HARMLESS = "harmful, complied", "harmful, refused", "harmless"
FALL = 0.2
STEP = "at closing["
# A layer without heads is removed whole, as the study numbers it.
MIXER = -1

_TEXTS: Mapping[str, tuple[str, ...]] = {
    VERDICT: ("name", "verdict", "reason"),
    PROMPTS: ("id", "label", "category"),
    CURVE: ("group",),
    SEPARATION: ("position", "contrast", "probe"),
    PROBES: ("probe",),
    HEADS: ("role",),
    ABLATION: ("arm", "group"),
    BEHAVIOUR: ("arm", "group"),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {PROMPTS: ("refused",), HEADS: ("passes",)}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    VERDICT: ("value", "low", "high", "n"),
    PROMPTS: (
        *("n_thinking", "plateau", "plateau_p90", "plateau_median", "late", "final"),
        *("ms", "ms_p90", "ms_median", "drop", "p", "fall", "rank_ms", "rank_ms_p90", "rank_final"),
        *("plateau_uncalibrated", "ms_uncalibrated", "cliff"),
    ),
    CURVE: ("position", "n", "mean", "low", "high"),
    SEPARATION: ("auroc", "auroc_low", "auroc_high", "n"),
    PROBES: (
        *("harmful_refused", "harmful_complied", "harmless_refused", "harmless_complied"),
        *("norm", "bias", "words_auroc", "words_low", "words_high"),
    ),
    HEADS: (
        *("published", "direct", "benign", "write_norm", "gap", "share", "p_familywise"),
        *("p_margin", "p_categories"),
        *(
            f"{name}{end}"
            for name in ("cliff", "contrast", "effect", "effect_margin")
            for end in ("", "_low", "_high")
        ),
    ),
    ABLATION: (
        *("share", "n_heads", "draw", "n", "refused", "complied", "restored", "p_random"),
        *("rate", "low", "high", "restored_rate", "restored_low", "restored_high"),
        *("margin", "margin_low", "margin_high", "score", "score_low", "score_high"),
    ),
    BEHAVIOUR: (*("share", "n_heads", "n", "refused", "rate", "low", "high", "degenerate"),),
}


def cliff_table(run: RunLike, name: str) -> pd.DataFrame | None:
    """A table of the study with all its columns, or None when it is absent, empty or too narrow.

    Not for cliff.trace. Rows of a head get `at`, its name; rows without a place are dropped, and so are
    points of the curve without a position, a mean or a count.
    """
    return once(run, name, lambda: _made_even(run, name))


def _made_even(run: RunLike, name: str) -> pd.DataFrame | None:
    frame = usable(run, name)
    if frame is None:
        return None
    frame = even(frame, _NUMBERS[name], _TEXTS.get(name, ()), _FLAGS.get(name, ()))
    if name == PROMPTS:
        for column in [str(each) for each in frame if str(each).startswith(STEP)]:
            frame[column] = finite_numbers(frame, column)
    if name == CURVE:
        frame = frame.dropna(subset=["position", "mean", "n"])
        frame = frame[frame["position"] < 0]
    if name == HEADS:
        frame = _named(frame)
    return None if frame.empty else frame.reset_index(drop=True)


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of heads, and of whole mixers (head -1), each once and with its name."""
    head = finite_numbers(frame, "head")
    frame = placed(frame[head >= MIXER].assign(head=head + 1), ("layer", "head"))
    frame["head"] -= 1
    frame["at"] = [
        f"L{layer}.mixer" if head == MIXER else f"L{layer}.H{head}"
        for layer, head in zip(frame["layer"], frame["head"], strict=True)
    ]
    return frame.drop_duplicates("at")


def measured(run: RunLike, name: str) -> Row | None:
    """The row of `cliff.verdict` with this name, None when it was not measured."""
    table = cliff_table(run, VERDICT)
    if table is None:
        return None
    rows = table[(table["name"] == name) & table["value"].notna()]
    return next(iter(records(rows)), None)


def word(run: RunLike) -> tuple[str, str]:
    """The study's word for the model, and its reason; empty without a verdict."""
    table = cliff_table(run, VERDICT)
    return ("", "") if table is None else (table["verdict"].iloc[0], table["reason"].iloc[0])


def steps(run: RunLike) -> list[Row]:
    """The mean fall at each closing token, in their order: the rows "at closing[i]" of the verdict."""
    table = cliff_table(run, VERDICT)
    if table is None:
        return []
    return records(table[table["name"].str.startswith(STEP) & table["value"].notna()])


def closing_names(run: RunLike) -> list[str]:
    """The closing tokens of the template in their order: closing[0], closing[1] and so on."""
    prompts = cliff_table(run, PROMPTS)
    if prompts is None:
        return [row["name"].removeprefix("at ") for row in steps(run)]
    known = [each for each in prompts if str(each).startswith(STEP) and prompts[each].notna().any()]
    return [str(each).removeprefix("at ") for each in known]


def cases(run: RunLike) -> str:
    """What the verdict is about: harmful traces that were complied with, or all where none was."""
    prompts = cliff_table(run, PROMPTS)
    if prompts is None or ((prompts["label"] == "harmful") & ~prompts["refused"]).any():
        return "harmful traces that were complied with"
    return "harmful traces"


def with_role(run: RunLike, role: str) -> pd.DataFrame:
    """The heads of a role, the largest effect first; empty without any."""
    heads = cliff_table(run, HEADS)
    if heads is None:
        return pd.DataFrame(columns=["at", "effect"])
    mine = heads[heads["role"] == role]
    order = mine["effect"].abs().sort_values(ascending=False, kind="stable").index
    return mine.loc[order].reset_index(drop=True)


def top_arm(run: RunLike) -> Row | None:
    """The removal that restores most refusals of harmful prompts, with the fewest heads where equal."""
    arms = cliff_table(run, ABLATION)
    if arms is None:
        return None
    mine = arms[(arms["arm"] == "top") & (arms["group"] == COMPLIED)]
    mine = mine[mine["restored_rate"].notna() & mine["share"].notna()]
    mine = mine.sort_values(["restored_rate", "n_heads"], ascending=[False, True], kind="stable")
    return next(iter(records(mine)), None)


def beside(table: pd.DataFrame | None, arm: str, share: Any, group: str) -> pd.DataFrame:
    """The rows of an arm at a share of heads in a group of traces; of `cliff.ablation` or `.behaviour`."""
    if table is None:
        return pd.DataFrame()
    mine = table[(table["arm"] == arm) & (table["group"] == group)]
    return mine[np.isclose(mine["share"], share)]
