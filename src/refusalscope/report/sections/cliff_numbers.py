"""The numbers behind the curve: the verdict, three plateaus, steps of closing tokens, the probe."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.cliff_tables import COMPLIED, FALL, HARMLESS, REFUSED, STEP
from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    finite,
    p_value,
    percent,
    rate_span,
    share,
    span,
    whole,
)
from refusalscope.report.tables import Row, records
from refusalscope.stats import Interval, mean_interval

MAX_ROWS, MAX_CONTRASTS = 60, 4
PLATEAUS = (
    ("maximum", "plateau", "ms", "rank_ms", "as published; one token decides it"),
    ("90th percentile", "plateau_p90", "ms_p90", "rank_ms_p90", "used on this page"),
    ("median", "plateau_median", "ms_median", "", "what most of the thinking says"),
)
_NAMES = {
    "share": f"traces in question that drop by more than {decimal(FALL, 1)}",
    "benign share": "benign traces that do",
    "contrast": "difference of these shares",
    "drop": "mean drop, traces in question",
    "benign drop": "mean drop, benign traces",
    "shift": "benign traces that drop without calibration",
    "slope": "fall within the thinking, beyond benign traces",
    "p against probes of nothing": "p against probes of nothing",
}
_SCORES = ("drop", "benign drop")


def verdict_table(table: pd.DataFrame) -> Table:
    """Every number that the verdict rests on, but the steps."""
    shown = table[~table["name"].str.startswith(STEP)].head(MAX_ROWS)
    return Table(
        "What the verdict rests on",
        ("quantity", "value", "95 % interval", "traces"),
        [_verdict(row) for row in records(shown)],
        "Shares of traces, and scores from 0 to 1. Probes of nothing are fitted to shuffled labels or point in "
        "random directions; p says how often they fall as far as the probe, beyond benign traces.",
        id="table-cliff-verdict",
        name="what the verdict rests on",
    )


def _verdict(row: Row) -> tuple[str | Cell, ...]:
    name = str(row["name"])
    if name.startswith("p "):
        value, interval = p_value(row["value"]), ABSENT
    elif name in _SCORES or name not in _NAMES:
        value, interval = decimal(row["value"]), span(row["low"], row["high"])
    elif name in ("contrast", "slope"):
        value, interval = share(row["value"]), _share_span(row)
    else:
        value, interval = percent(row["value"]), rate_span(row["low"], row["high"])
    return (
        _NAMES.get(name, name),
        Cell(value, number=True),
        Cell(interval, number=True),
        Cell(whole(row["n"]) if row["n"] > 0 else ABSENT, number=True),
    )


def _share_span(row: Row) -> str:
    if not (finite(row["low"]) and finite(row["high"])):
        return ABSENT
    return f"{share(row['low'], unit=False)} to {share(row['high'])}"


def grouped(prompts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The traces by label and behaviour, as the study groups them; groups without any are left out."""
    harmful, benign = prompts["label"] == "harmful", prompts["label"] == "harmless"
    parts = {
        COMPLIED: prompts[harmful & ~prompts["refused"]],
        REFUSED: prompts[harmful & prompts["refused"]],
        HARMLESS: prompts[benign],
    }
    return {name: part for name, part in parts.items() if len(part)}


def plateaus_table(prompts: pd.DataFrame) -> Table:
    """Plateau, final score and cliff by the three definitions of the plateau, for each group of traces."""
    rows = []
    for group, part in grouped(prompts).items():
        for name, plateau, cliff, rank, what in PLATEAUS:
            found = _mean(part[cliff])
            rows.append(
                (
                    group,
                    Cell(name, below=what),
                    Cell(whole(found.n), number=True),
                    Cell(decimal(part[plateau].mean()), number=True),
                    Cell(decimal(part["final"].mean()), number=True),
                    _over(decimal(found.value), span(found.low, found.high)),
                    Cell(percent((part[cliff] > FALL).mean() if found.n else None), number=True),
                    Cell(_agrees(part, rank), number=True),
                )
            )
    return Table(
        "Three definitions of the plateau",
        (
            *("traces", "plateau is the", "n", "plateau", "final", "cliff"),
            *(f"cliff above {decimal(FALL, 1)}", "rank agrees with final score"),
        ),
        rows,
        f"Means over traces, below the cliff its 95{NBSP}% bootstrap interval. Cliff: plateau minus final "
        "score. The maximum of many tokens is high in any noise, so it shows a cliff where the others show "
        "none. The last column: Spearman correlation of the ranking by this cliff with that by the final score "
        "alone, as the authors' code ranks.",
        id="table-cliff-plateaus",
        name="three definitions of the plateau",
    )


def _agrees(part: pd.DataFrame, rank: str) -> str:
    if not rank:
        return ABSENT
    both = part[[rank, "rank_final"]].dropna()
    if len(both) < 3:
        return ABSENT
    return decimal(both[rank].rank().corr(both["rank_final"].rank()))


def steps_table(prompts: pd.DataFrame) -> Table:
    """The mean fall at each closing token, for each group of traces."""
    groups = grouped(prompts)
    columns = [each for each in prompts if str(each).startswith(STEP)]
    rows: list[tuple[str | Cell, ...]] = []
    for column in columns[:MAX_ROWS]:
        cells = []
        for part in groups.values():
            found = _mean(part[column])
            cells.append(_over(decimal(found.value, 3), span(found.low, found.high, 3)))
        rows.append((str(column).removeprefix("at "), *cells))
    return Table(
        "Which closing token drops it",
        ("closing token", *(f"{name} (n = {whole(len(part))})" for name, part in groups.items())),
        rows,
        "Fall of the score from the token before to this one, for the first from the median of the last 20 "
        f"thinking tokens; means over traces with 95{NBSP}% bootstrap intervals. Negative: it rises.",
        id="table-cliff-steps",
        name="steps by closing token",
    )


def separation_table(
    separation: pd.DataFrame, probes: pd.DataFrame | None, final: Interval | None
) -> Table:
    """How well each probe tells refusal from compliance by position class, the bag of words below.

    A column a contrast that could be measured; final: of the probe's last score, as the words are judged.
    """
    known = separation[separation["auroc"].notna()]
    contrasts = list(dict.fromkeys(known["contrast"]))[:MAX_CONTRASTS]
    rows: list[tuple[str | Cell, ...]] = []
    for (probe, position), part in known.groupby(["probe", "position"], sort=False):
        of = {row["contrast"]: row for row in records(part)}
        areas = (_area(of.get(contrast)) for contrast in contrasts)
        rows.append((str(probe) or ABSENT, str(position), *areas, _NONE))
    words = None if probes is None else next(iter(records(probes)), None)
    none = [_NONE] * len(contrasts)
    if final is not None and finite(final.value):
        cell = _over(decimal(final.value), span(final.low, final.high))
        rows.append(("the probe", "last closing token", *none, cell))
    if words is not None and finite(words["words_auroc"]):
        cell = _over(decimal(words["words_auroc"]), span(words["words_low"], words["words_high"]))
        rows.append((Cell("bag of words", strong=True), "request and thinking", *none, cell))
    counts = known.groupby("contrast")["n"].max()
    every = "all traces, refused or complied"
    every += f" (n = {whole(final.n)})" if final is not None else ""
    return Table(
        "What the probe tells apart, by position: AUROC",
        (
            *("probe", "position"),
            *(f"{contrast} (n = {whole(counts[contrast])})" for contrast in contrasts),
            every,
        ),
        rows[:MAX_ROWS],
        f"Below each AUROC its 95{NBSP}% interval; 0.5 is chance. Refused or complied harmful traces are the "
        "hard contrast: a probe of the topic cannot tell them apart. The bag of words learnt refusal from the "
        "words of request and thinking alone; a probe that does no better reads nothing that the words do not "
        "say." + (_cells(words) if words is not None else ""),
        id="table-cliff-separation",
        name="separation by position",
    )


def _area(row: Row | None) -> Cell:
    if row is None:
        return _NONE
    return _over(decimal(row["auroc"]), span(row["auroc_low"], row["auroc_high"]))


_NONE = Cell(ABSENT, number=True)


def _cells(probe: Row) -> str:
    names = ("harmful_refused", "harmful_complied", "harmless_refused", "harmless_complied")
    known = [f"{whole(probe[name])} {name.replace('_', ' ')}" for name in names if probe[name] > 0]
    return f" The probe was fitted on {', '.join(known)}." if known else ""


def _mean(values: pd.Series) -> Interval:
    return mean_interval(values.dropna().to_numpy(float), seed=0)


def _over(value: str, interval: str) -> Cell:
    return Cell(value, number=True, below="" if interval == ABSENT else interval)
