"""The tables of the set: its members, the sets and searches, and how alike sets are."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.features_tables import sizes_of
from refusalscope.report.features_writes import layer_words
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    counted,
    decimal,
    finite,
    listed,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.tables import Row, records

# So many members, and reserves after them, stand in the table of members; so many rows in the others.
MAX_MEMBERS, MAX_RESERVES, MAX_ROWS = 24, 12, 40
# More sets than this are folded.
MAX_OPEN = 12


def members_table(
    latents: pd.DataFrame, over_prompts: pd.DataFrame | None, overshoot: pd.DataFrame | None
) -> Table:
    """The members and reserves, with everything that was measured of each.

    latents: as `shown_writes` gives them; over_prompts: features.members; overshoot: of the main set.
    """
    often = {} if over_prompts is None else {row["at"]: row for row in records(over_prompts)}
    slopes = {} if overshoot is None else {row["at"]: row for row in records(overshoot)}
    in_set, many = latents["in_set"], bool((latents["layers"].map(len) > 1).any())
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
            *(("strongest latent", "layers") if many else ("latent",)),
            *("what it is", "active without an edit", "holds up (nats)", "cosine (with harm)"),
            *(f"in sets of single prompts{prompts}", "decoder claims", "model writes"),
        ),
        [_member(row, often.get(row["at"]), _slope(row, slopes), many) for row in records(shown)],
        (_WRITES if many else "")
        + f"Below the numbers 95{NBSP}% intervals over prompts. Holds up: the margin that the member keeps "
        "from falling once all others of the set are out. Cosine: of the decoder row with the refusal "
        "direction, and in brackets with that of recognising harm. Decoder claims: how far the latent's "
        "decoder row points along the refusal direction; model writes: how far the stream really moves along "
        "it with the latent. Where the second is clearly smaller, taking the latent out takes more refusal "
        f"than was there. A dash: not measured.{further}",
        id="table-features-members",
        name="members",
    )


_WRITES = (
    "A row is a write: its strongest latent with those of other layers that show the same write again, taken "
    "out together. What it holds up is of all of them; how often it is active, of the most active one; the "
    "other numbers are of the strongest that they were measured of. "
)


def _slope(row: Row, slopes: dict[str, Row]) -> Row | None:
    """What was regressed of the strongest latent of a write for which there was enough to regress."""
    known = [slopes[name] for name in row["names"] if name in slopes]
    return next((each for each in known if finite(each["slope"])), known[0] if known else None)


def _member(row: Row, often: Row | None, slope: Row | None, many: bool) -> tuple[str | Cell, ...]:
    harm = f" ({decimal(row['cosine_recognition'])})" if finite(row["cosine_recognition"]) else ""
    return (
        Cell(row["at"], strong=True),
        *((layer_words(sorted(row["layers"])),) if many else ()),
        row["state"] if row["in_set"] else "reserve",
        Cell(percent(row["active_clean"]), number=True),
        _over(decimal(row["effect"]), span(row["effect_low"], row["effect_high"])),
        Cell(f"{decimal(row['cosine'])}{harm}", number=True),
        _over(percent(often["frequency"]), rate_span(often["low"], often["high"]))
        if often
        else _NONE,
        Cell(decimal(slope["claimed"]), number=True) if slope else _NONE,
        _over(decimal(slope["slope"]), span(slope["slope_low"], slope["slope_high"]))
        if slope
        else _NONE,
    )


_NONE = Cell(ABSENT, number=True)


def _over(value: str, interval: str) -> Cell:
    """A number over its interval, where it has one."""
    return Cell(value, number=True, below="" if interval == ABSENT else interval)


def sets_table(sets: pd.DataFrame) -> Table:
    """One row a pooled set; the sets of single prompts in one row."""
    sizes = sizes_of(sets)
    many = bool((sizes["latents"] > sizes["n"]).any())
    rows = [_set(row, many) for row in records(sizes[sizes["pooled"]].head(MAX_ROWS))]
    single = sizes[~sizes["pooled"]]
    if len(single):
        rows.append(
            (
                f"{counted(single['prompt_id'].nunique(), 'prompt')}, one by one",
                *(_many(single[name]) for name in _sizes(many)),
                Cell(ABSENT, number=True),
                _yes(single["verified"]),
                _yes(single["minimal"]),
                listed(sorted(set(single["by"]) - {""})) or ABSENT,
                Cell(whole(single["forwards"].sum()), number=True),
            )
        )
    return Table(
        "The sets found",
        (
            *("set", *(("writes", "latents") if many else ("latents",)), "layers", "flips"),
            *("verified", "minimal", "found by", "forwards"),
        ),
        rows,
        "Flips: share of the prompts that the set was searched on. Verified: run once more, it flips; minimal: "
        "without any one member it does not. For sets of single prompts the median and the range.",
        folded=len(rows) > MAX_OPEN,
        id="" if len(rows) > MAX_OPEN else "table-features-sets",
        name="sets",
    )


def _sizes(many: bool) -> tuple[str, ...]:
    return ("n", "latents", "layers") if many else ("n", "layers")


def _set(row: Row, many: bool) -> tuple[str | Cell, ...]:
    return (
        Cell(row["set_id"], strong=True),
        *(Cell(whole(row[name]), number=True) for name in _sizes(many)),
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
        "Candidates: writes, or latents where each is a write of its own. Halves of the prompts only show how "
        "stable the sets are. Forwards: prompts run through the model, over all runs of the search. Where the "
        "budget ran out, smaller or further sets may exist.",
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
