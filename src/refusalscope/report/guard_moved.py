"""Whether the scores of a log still look like those at calibration, in words."""

from __future__ import annotations

from refusalscope.report.guard_tables import DRIFT, guard_table
from refusalscope.report.numbers import counted, whole
from refusalscope.report.rules import Statement
from refusalscope.report.tables import RunLike, records

# Words of a verdict on drift, from the gravest.
DRIFTED, TO_WATCH, STEADY = "drifted", "watch", "steady"


def moved(run: RunLike) -> Statement | None:
    """Whether the scores of a log still look like those at calibration."""
    table = guard_table(run, DRIFT)
    if table is None:
        return None
    rows = records(table)
    graded = {
        word: [r for r in rows if str(r["verdict"]).startswith(word)]
        for word in (DRIFTED, TO_WATCH, STEADY)
    }
    links = ("figure-guard-drift", "table-guard-drift")
    grave, mild = graded[DRIFTED], graded[TO_WATCH]
    n = rows[0]["n_log"]
    if not grave and not mild:
        if not graded[STEADY]:
            return Statement("Nothing of the log could be compared.", "", "watch", links)
        text = f"Steady: {counted(len(graded[STEADY]), 'measure')} of {whole(n)} prompts of the log look as at "
        return Statement(f"{text}calibration.", "no drift was found", "good", links)
    said = [f"{row['measure']} {row['verdict']}" for row in (*grave, *mild)[:3]]
    rest = len(grave) + len(mild) - len(said)
    text = f"Of {counted(len(rows), 'measure')} {whole(len(grave))} drifted and {whole(len(mild))} are to be "
    text += f"watched, on {whole(n)} prompts of the log: {'; '.join(said)}"
    text += f"; and {whole(rest)} more" if rest else ""
    short = "the scores drifted" if grave else "scores to watch"
    return Statement(f"{text}.", short, "bad" if grave else "watch", links)
