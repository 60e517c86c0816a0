"""What a guard's card says of its rates: thresholds, sources, shortcuts, streamed replies, own examples."""

from __future__ import annotations

from refusalscope.guard.card_parts import NBSP, Part, Rows, interval, percent
from refusalscope.guard.record import GuardFile


def thresholds(record: GuardFile) -> Part:
    """Operating points with promise and n, the probability, and when it abstains."""
    title, found = "Thresholds", record.calibration
    if found is None:
        missing = "This guard is not calibrated: it gives scores, but flags nothing and has no probability."
        return Part(title, warning=missing)
    rows = [
        (
            point.name,
            f"{point.tau:.4f}",
            str(point.n),
            interval({"rate": point.fpr, "low": point.fpr_low, "high": point.fpr_high}),
            point.promise.replace("<=", "\u2264"),
            f"{point.rule.replace('_', ' ')}, confidence {percent(point.confidence)}",
        )
        for point in found.points
    ]
    probability = found.probability
    says = "There is no probability: it was calibrated without harmful prompts."
    if probability is not None:
        says = (
            f"The probability of harm comes from a {probability['method']} curve on "
            f"{probability['n_harmful']} harmful and {probability['n_harmless']} harmless prompts."
        )
    columns = (
        "operating point",
        "threshold",
        "harmless prompts",
        "flagged of them",
        "promise",
        "rule",
    )
    return Part(
        title,
        [
            "A prompt is flagged when its score lies strictly above the threshold. The rates are those of the "
            "prompts that set it, with exact intervals.",
            says,
            "It abstains on prompts whose states are less like either class than "
            f"{found.likeness_floor:.4f} (cosine).",
            "A promise is for single prompts: a conversation is read at every user turn, and the more turns "
            "it has, the more often a harmless one is flagged.",
        ],
        [Rows("Operating points", columns, rows)],
    )


def rates(record: GuardFile) -> Part:
    """What was flagged of each source at calibration."""
    title = "Rates by source"
    rows = [
        (
            point.name,
            rate.label,
            rate.source,
            f"{rate.flagged} of {rate.n}",
            interval({"rate": rate.rate, "low": rate.low, "high": rate.high}),
        )
        for point in (record.calibration.points if record.calibration else ())
        for rate in point.rates
    ]
    if not rows:
        return Part(title, ["No rate is on record."])
    columns = ("operating point", "label", "source", "flagged", f"rate (95{NBSP}% interval)")
    table = Rows(
        "Flagged of each source, prompts of calibration",
        columns,
        [tuple(map(str, r)) for r in rows],
    )
    return Part(
        title,
        ["A promise holds over all harmless prompts together, not source by source."],
        [table],
    )


def shortcuts(record: GuardFile) -> Part:
    """Cues that are not harm, and whether the score can be told from them."""
    title = "Shortcuts"
    if not record.shortcuts:
        missing = (
            "Not audited: what cues that are not harm can do on the same prompts is not on record."
        )
        return Part(title, warning=missing)
    as_good = [
        row["name"] for row in record.shortcuts if str(row["verdict"]).startswith("as good as")
    ]
    table = Rows(
        "How well each tells harmful from harmless prompts",
        ("cue", "AUROC", f"95{NBSP}% interval", "verdict"),
        [
            (
                str(row["name"]),
                f"{row['auroc']:.3f}",
                f"{row['auroc_low']:.3f} to {row['auroc_high']:.3f}",
                str(row["verdict"]),
            )
            for row in record.shortcuts
        ],
    )
    leaning = [str(row["name"]) for row in record.shortcuts if "leans on" in str(row["verdict"])]
    if leaning and not as_good:
        return Part(title, (), [table], f"The score leans on its shortcuts: {', '.join(leaning)}.")
    if as_good:
        cues = ", ".join(map(str, as_good))
        warning = f"On these prompts the score cannot be told from its shortcuts: {cues}."
        return Part(title, (), [table], warning)
    return Part(
        title, ["No cue that is not harm did as well as the score on these prompts."], [table]
    )


def monitor(record: GuardFile) -> Part:
    """The monitor of streamed replies."""
    title, found = "Streamed replies", record.monitor
    if found is None:
        return Part(title, ["It has no monitor of replies: it reads prompts only."])
    threshold = found.threshold
    rows = [
        (
            f"{row.shortest} to {row.longest}",
            f"{row.flagged} of {row.n}",
            interval({"rate": row.flagged / row.n, "low": row.low, "high": row.high}),
        )
        for row in found.by_length
    ]
    harmful, opened = (
        f"{interval({'rate': kind.flagged / kind.n, 'low': kind.low, 'high': kind.high})} of {kind.n}"
        for kind in (found.harmful, found.opened)
    )
    return Part(
        title,
        [
            f"A reply is stopped when its smoothed score passes {threshold.tau:.4f}: "
            f"{threshold.promise.replace('<=', chr(0x2264))}, over whole benign replies ({threshold.n} of "
            f"them) of at most {found.tokens} tokens, written greedily; for longer ones nothing is promised. "
            f"Where output is blocked, {found.hold_back} tokens are held back while what follows is scored.",
            f"With an opening put into the model's mouth it stops {harmful} replies to harmful requests, and "
            f"{opened} replies to harmless ones.",
        ],
        [
            Rows(
                "Benign replies stopped, by length",
                ("tokens", "stopped", f"rate (95{NBSP}% interval)"),
                rows,
            )
        ],
    )


def own_examples(record: GuardFile) -> Part:
    """Examples that a user added, before and after."""
    title = "Own examples"
    if not record.augmented:
        return Part(title, ["None were added."])
    rows = [
        (
            str(row["label"]),
            str(row["point"]),
            str(row["when"]),
            str(row["n"]),
            interval({"rate": row["flagged"], **row}),
        )
        for row in record.augmented.get("rates", [])
    ]
    columns = ("label", "operating point", "when", "prompts", f"flagged (95{NBSP}% interval)")
    said = [f"{record.augmented['n']} harmful examples of a user were added to the harmful mean."]
    if not rows:
        said.append(
            "What they changed is not on record: it was not calibrated before and after them."
        )
    return Part(title, said, [Rows("Before and after", columns, rows)] if rows else [])
