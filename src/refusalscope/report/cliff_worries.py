"""What can make a cliff run say more than it measured: weak probes, missing controls, shifting templates."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from refusalscope.report.cliff_tables import (
    ABLATION,
    BEHAVIOUR,
    COMPLIED,
    HARMLESS,
    HEADS,
    PROBES,
    PROMPTS,
    beside,
    cliff_table,
    measured,
    top_arm,
)
from refusalscope.report.numbers import (
    counted,
    decimal,
    finite,
    listed,
    p_value,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.rules import MIN_N, Statement
from refusalscope.report.tables import Row, RunLike, once, records
from refusalscope.stats import Interval, auroc

# A share of benign traces that is shown to be above this is no accident, as the study has it.
NOTABLE = 0.05
CHANCE = 0.05
# More degenerate replies than this and the removal breaks the model rather than its suppressors.
BROKEN = 0.10


def cliff_worries(run: RunLike) -> list[Statement]:
    """The concerns of a cliff run, the gravest first; none for a run without its tables."""
    if not any(name.startswith("cliff.") for name in run.tables()):
        return []
    checks: tuple[Callable[[RunLike], Statement | None], ...] = (
        weak_probe,
        benign_falls,
        nothing_falls,
        few_traces,
        uncalibrated,
        batch_rescaled,
        published_statics,
        broken,
        benign_refused,
        unsaid,
        thinking_changed,
    )
    return [found for check in checks if (found := check(run)) is not None]


def final_auroc(run: RunLike) -> Interval | None:
    """How well the probe's score where the thinking ends tells refused from complied traces, of all labels.

    On the traces and for the question of the bag of words. None without both behaviours.
    """
    return once(run, "final auroc", lambda: _final_auroc(run))


def _final_auroc(run: RunLike) -> Interval | None:
    prompts = cliff_table(run, PROMPTS)
    known = None if prompts is None else prompts[prompts["final"].notna()]
    if known is None or known["refused"].nunique() < 2:
        return None
    return auroc(known["refused"].to_numpy(), known["final"].to_numpy(), seed=0)


def weak_probe(run: RunLike) -> Statement | None:
    """A probe that tells refusal from compliance no better than the words of the trace do."""
    probes, mine = cliff_table(run, PROBES), final_auroc(run)
    words = None if probes is None else next(iter(records(probes)), None)
    if words is None or mine is None or not finite(words["words_auroc"]):
        return None
    if mine.value > words["words_high"] or mine.low > words["words_auroc"]:
        return None
    text = "the probe was not shown to tell refusal from compliance better than a bag of words "
    text += f"(AUROC {decimal(mine.value)}, interval {span(mine.low, mine.high)}; words "
    text += f"{decimal(words['words_auroc'])}, interval {span(words['words_low'], words['words_high'])})"
    return Statement(text, "", "bad", ("table-cliff-separation",))


def benign_falls(run: RunLike) -> Statement | None:
    """Benign traces that drop as well."""
    row = measured(run, "benign share")
    if row is None or not row["low"] > NOTABLE:
        return None
    text = f"benign traces fall too, {percent(row['value'])} of {whole(row['n'])} "
    text += f"(interval {rate_span(row['low'], row['high'])})"
    return Statement(text, "", "bad", ("figure-cliff-curve",))


def nothing_falls(run: RunLike) -> Statement | None:
    """Probes of shuffled labels and random directions that drop as far, or that were not tried."""
    if measured(run, "share") is None:
        return None
    row = measured(run, "p against probes of nothing")
    if row is None:
        text = "no probes of nothing stand beside the fall"
        return Statement(text, "", "watch", ("table-cliff-verdict",))
    if not row["value"] > CHANCE:
        return None
    text = (
        f"probes of shuffled labels and random directions fall as far (p = {p_value(row['value'])})"
    )
    return Statement(text, "", "bad", ("table-cliff-verdict",))


def few_traces(run: RunLike) -> Statement | None:
    """Fewer traces in question, or benign ones, than earn a word."""
    names = {"share": "traces in question", "benign share": "benign traces"}
    few = []
    for name, said in names.items():
        row = measured(run, name)
        if row is not None and row["n"] < MIN_N:
            few.append(f"{whole(row['n'])} {said}")
    if not few:
        return None
    text = f"only {listed(few)} were measured, too few for a word"
    return Statement(text, "", "watch", ("table-cliff-verdict",))


def uncalibrated(run: RunLike) -> Statement | None:
    """A probe of one position read at all others, as published."""
    if _settings(run).get("probe") != "published":
        return None
    text = "the published probe was fitted at the last closing token and is read at all others without "
    return Statement(f"{text}calibration", "", "watch", ("table-cliff-verdict",))


def batch_rescaled(run: RunLike) -> Statement | None:
    """The authors' rescaling, under which one prompt's result depends on those beside it."""
    if _settings(run).get("renorm") != "official_batch" or cliff_table(run, ABLATION) is None:
        return None
    text = "heads were removed with the rescaling official_batch, so the result of a prompt depends on the "
    return Statement(f"{text}prompts that ran with it", "", "watch", ("figure-cliff-ablation",))


def published_statics(run: RunLike) -> Statement | None:
    """Heads that write the same everywhere and were removed as suppressors, by the published score."""
    heads = cliff_table(run, HEADS)
    if heads is None or _settings(run).get("rank_heads") != "published":
        return None
    mine = ranked_statics(run)
    if not mine:
        return None
    text = f"the published score ranks {listed(mine[:3])} among the suppressors that were removed, "
    text += "though benign traces show the same write"
    return Statement(text, "", "watch", ("table-cliff-heads",))


def ranked_statics(run: RunLike) -> list[str]:
    """Static heads that the published score counts among its most negative, as many as were removed.

    Without an ablation, as many as there are suppressors and static heads.
    """
    heads, arms = cliff_table(run, HEADS), cliff_table(run, ABLATION)
    if heads is None:
        return []
    removed = float("nan") if arms is None else arms.loc[arms["arm"] == "top", "n_heads"].max()
    n = int(removed) if finite(removed) else int(heads["role"].isin(("suppressor", "static")).sum())
    low = heads[heads["published"] < 0].sort_values("published", kind="stable").head(n)
    return list(low.loc[low["role"] == "static", "at"])


def broken(run: RunLike) -> Statement | None:
    """Replies that say nothing at all are neither refusals nor answers."""
    best = top_arm(run)
    if best is None:
        return None
    worst = _replies(run, best)["degenerate"].max()
    if not worst > BROKEN:
        return None
    text = f"{percent(worst)} of replies are degenerate with the heads removed"
    return Statement(text, "", "watch", ("table-cliff-behaviour",))


def benign_refused(run: RunLike) -> Statement | None:
    """Removing heads makes the model refuse benign prompts more than before."""
    best, arms = top_arm(run), cliff_table(run, ABLATION)
    if best is None or arms is None:
        return None
    after = next(iter(records(beside(arms, "top", best["share"], HARMLESS))), None)
    clean = arms[(arms["arm"] == "clean") & (arms["group"] == HARMLESS)]
    before = next(iter(records(clean)), None)
    if after is None or before is None or not after["low"] > before["high"]:
        return None
    text = (
        f"with the heads removed {percent(after['rate'])} of benign prompts are refused as well, "
    )
    text += f"{percent(before['rate'])} before"
    return Statement(text, "", "bad", ("figure-cliff-ablation",))


def unsaid(run: RunLike) -> Statement | None:
    """Refusals that return by the margin and not in the replies."""
    best = top_arm(run)
    if best is None:
        return None
    replies = _replies(run, best)
    row = next(iter(records(replies[replies["group"] == COMPLIED])), None)
    if row is None or not row["high"] < best["restored_low"]:
        return None
    text = f"the margin says that {percent(best['restored_rate'])} of lost refusals return, the judged replies "
    return Statement(
        f"{text}{percent(row['rate'])} of {counted(int(row['n']), 'trace') if finite(row['n']) else 'them'}",
        "",
        "bad",
        ("table-cliff-behaviour",),
    )


def thinking_changed(run: RunLike) -> Statement | None:
    """Heads removed everywhere also change what stands before the end."""
    if _settings(run).get("where") != "all" or cliff_table(run, ABLATION) is None:
        return None
    text = "heads were removed at all positions, which changes the reading of the thinking too"
    return Statement(text, "", "watch", ("figure-cliff-ablation",))


def _replies(run: RunLike, best: Row) -> pd.DataFrame:
    """The judged replies of an arm in all groups."""
    table = cliff_table(run, BEHAVIOUR)
    if table is None:
        return pd.DataFrame(columns=["group", "degenerate"])
    groups = [beside(table, "top", best["share"], group) for group in dict.fromkeys(table["group"])]
    return pd.concat(groups)


def _settings(run: RunLike) -> dict[str, object]:
    return run.info.get("settings") or {}
