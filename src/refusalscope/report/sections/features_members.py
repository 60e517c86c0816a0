"""The tables of the set: its members, the sets and searches, how alike sets are, the dictionaries."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.features_tables import sizes_of
from refusalscope.report.numbers import (
    ABSENT,
    counted,
    decimal,
    finite,
    listed,
    percent,
    rate_span,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.tables import Row, records

# So many members, and reserves after them, stand in the table of members; so many rows in the others.
MAX_MEMBERS, MAX_RESERVES, MAX_ROWS = 24, 12, 40
# More dictionaries, sets or searches than this are folded.
MAX_OPEN = 12


def members_table(
    latents: pd.DataFrame, over_prompts: pd.DataFrame | None, overshoot: pd.DataFrame | None
) -> Table:
    """The members and reserves, with everything that was measured of each.

    latents: as `shown_latents` gives them; over_prompts: features.members; overshoot: of the main set.
    """
    often = {} if over_prompts is None else {row["at"]: row for row in records(over_prompts)}
    slopes = {} if overshoot is None else {row["at"]: row for row in records(overshoot)}
    in_set = latents["in_set"]
    shown = pd.concat([latents[in_set].head(MAX_MEMBERS), latents[~in_set].head(MAX_RESERVES)])
    left = len(latents) - len(shown)
    further = f" {whole(left)} further ones stand in features.sets and features.dormant." * (
        left > 0
    )
    n_sets = max((row["n_sets"] for row in often.values() if finite(row["n_sets"])), default=None)
    prompts = f" of {whole(n_sets)}" if n_sets is not None else ""
    return Table(
        "The members of the set, and reserves behind it",
        (
            *("latent", "what it is", "active without an edit", "holds up (nats)", "95 % interval"),
            *("cosine", f"in sets of single prompts{prompts}", "95 % interval"),
            *("decoder claims", "model writes", "95 % interval"),
        ),
        [_member(row, often.get(row["at"]), slopes.get(row["at"])) for row in records(shown)],
        "Holds up: the margin that the latent keeps from falling once all others of the set are out. Decoder "
        "claims: how far the latent's decoder row points along the refusal direction; model writes: how far "
        "the stream really moves along it with the latent. Where the second is clearly smaller, taking the "
        f"latent out takes more refusal than was there. A dash: not measured.{further}",
        id="table-features-members",
        name="members",
    )


def _member(row: Row, often: Row | None, slope: Row | None) -> tuple[str | Cell, ...]:
    return (
        Cell(row["at"], strong=True),
        row["state"] if row["in_set"] else "reserve",
        Cell(percent(row["active_clean"]), number=True),
        Cell(decimal(row["effect"]), number=True),
        Cell(span(row["effect_low"], row["effect_high"]), number=True),
        Cell(decimal(row["cosine"]), number=True),
        Cell(percent(often["frequency"]) if often else ABSENT, number=True),
        Cell(rate_span(often["low"], often["high"]) if often else ABSENT, number=True),
        Cell(decimal(slope["claimed"]) if slope else ABSENT, number=True),
        Cell(decimal(slope["slope"]) if slope else ABSENT, number=True),
        Cell(span(slope["slope_low"], slope["slope_high"]) if slope else ABSENT, number=True),
    )


def sets_table(sets: pd.DataFrame) -> Table:
    """One row a pooled set; the sets of single prompts in one row."""
    sizes = sizes_of(sets)
    rows = [_set(row) for row in records(sizes[sizes["pooled"]].head(MAX_ROWS))]
    single = sizes[~sizes["pooled"]]
    if len(single):
        rows.append(
            (
                f"{counted(single['prompt_id'].nunique(), 'prompt')}, one by one",
                _many(single["n"]),
                _many(single["layers"]),
                Cell(ABSENT, number=True),
                _yes(single["verified"]),
                _yes(single["minimal"]),
                listed(sorted(set(single["by"]) - {""})) or ABSENT,
                Cell(whole(single["forwards"].sum()), number=True),
            )
        )
    return Table(
        "The sets found",
        ("set", "latents", "layers", "flips", "verified", "minimal", "found by", "forwards"),
        rows,
        "Flips: share of the prompts that the set was searched on. Verified: run once more, it flips; minimal: "
        "without any one member it does not. For sets of single prompts the median and the range.",
        folded=len(rows) > MAX_OPEN,
        id="" if len(rows) > MAX_OPEN else "table-features-sets",
        name="sets",
    )


def _set(row: Row) -> tuple[str | Cell, ...]:
    return (
        Cell(row["set_id"], strong=True),
        Cell(whole(row["n"]), number=True),
        Cell(whole(row["layers"]), number=True),
        Cell(percent(row["flipped"]), number=True),
        "yes" if row["verified"] else "no",
        "yes" if row["minimal"] else "no",
        str(row["by"]).replace("_", " ") or ABSENT,
        Cell(whole(row["forwards"]), number=True),
    )


def _many(values: pd.Series) -> Cell:
    low, high = values.min(), values.max()
    spread = f" ({whole(low)} to {whole(high)})" if low < high else ""
    return Cell(f"{decimal(values.median(), 1).removesuffix('.0')}{spread}", number=True)


def _yes(flags: pd.Series) -> str:
    return f"{whole(flags.sum())} of {whole(len(flags))}"


def searches_table(searches: pd.DataFrame) -> Table:
    """One row a search; those of single prompts in one row."""
    alone = searches["search"].str.startswith("prompt/")
    rows = [_search(row) for row in records(searches[~alone].head(MAX_ROWS))]
    if alone.any():
        rows.append(_prompt_searches(searches[alone]))
    return Table(
        "The searches",
        (
            *("search", "prompts", "share to flip", "candidates", "sets", "forwards", "repairs"),
            *("budget", "all sets found", "why none"),
        ),
        rows,
        "Forwards: prompts run through the model, over all runs of the search. Where the budget ran out, "
        "smaller or further sets may exist.",
        id="table-features-searches",
        name="searches",
    )


def _search(row: Row) -> tuple[str | Cell, ...]:
    return (
        Cell(row["search"] or ABSENT, strong=True),
        Cell(whole(row["n_prompts"]), number=True),
        Cell(percent(row["share"]), number=True),
        *(Cell(whole(row[name]), number=True) for name in ("candidates", "sets", "forwards")),
        Cell(whole(row["repairs"]), number=True),
        "ran out" if row["exhausted"] else "kept",
        "yes" if row["complete"] else "not known",
        row["why"] or ABSENT,
    )


def _prompt_searches(rows: pd.DataFrame) -> tuple[str | Cell, ...]:
    why = Counter(text for text in rows["why"] if text)
    reasons = "; ".join(f"{text} ({whole(n)})" for text, n in why.most_common(3))
    return (
        Cell("each prompt alone", strong=True),
        Cell(whole(len(rows)), number=True),
        Cell(ABSENT, number=True),
        _many(rows["candidates"])
        if rows["candidates"].notna().any()
        else Cell(ABSENT, number=True),
        *(Cell(whole(rows[name].sum()), number=True) for name in ("sets", "forwards", "repairs")),
        f"ran out in {_yes(rows['exhausted'])}",
        _yes(rows["complete"]),
        reasons or ABSENT,
    )


def stability_table(stability: pd.DataFrame) -> Table:
    """How alike sets are over searches, prompts and halves of the prompts."""
    return Table(
        "How alike the sets are",
        ("over", "sets", "Jaccard (1: the same set)", "least alike pair", "latents in all sets"),
        [
            (
                row["over"] or ABSENT,
                Cell(whole(row["n_sets"]), number=True),
                Cell(decimal(row["jaccard"]), number=True),
                Cell(decimal(row["lowest"]), number=True),
                Cell(whole(row["core"]), number=True),
            )
            for row in records(stability)
        ],
        "Where latents stand in for each other several sets flip the refusal, and what they share need not.",
        id="table-features-stability",
        name="stability",
    )


def dictionaries_table(dictionaries: pd.DataFrame) -> Table:
    """Whether each dictionary fits this model, measured on the run's own prompts."""
    folded = len(dictionaries) > MAX_OPEN
    return Table(
        f"The dictionaries ({whole(len(dictionaries))})",
        (
            *("layer", "dictionary", "kind", "latents", "active a token", "95 % interval"),
            *("at special tokens", "variance explained", "95 % interval", "norm ratio", "dead"),
            "warnings",
        ),
        [_dictionary(row) for row in records(dictionaries)],
        "Measured on the prompts of this run. Norm ratio: length of the stream over that of its "
        "reconstruction. Dead: latents active on no token of these prompts.",
        folded=folded,
        id="" if folded else "table-features-dictionaries",
        name="dictionaries",
    )


def _dictionary(row: Row) -> tuple[str | Cell, ...]:
    return (
        Cell(whole(row["layer"]), number=True),
        row["name"] or ABSENT,
        row["architecture"] or ABSENT,
        Cell(whole(row["d_sae"]), number=True),
        Cell(decimal(row["l0"], 1), number=True),
        Cell(span(row["l0_low"], row["l0_high"], 1), number=True),
        Cell(decimal(row["l0_special"], 1), number=True),
        Cell(share(row["explained"]), number=True),
        Cell(share_span(row["explained_low"], row["explained_high"]), number=True),
        Cell(decimal(row["norm_ratio"]), number=True),
        Cell(percent(row["dead_share"]), number=True),
        row["warnings"] or "none",
    )
