"""Whether a guard's score can be told from its shortcuts, in the words of the audit."""

from __future__ import annotations

from refusalscope.report.guard_tables import SHORTCUTS, VERDICT, guard_table
from refusalscope.report.numbers import listed
from refusalscope.report.rules import Statement
from refusalscope.report.tables import RunLike, records

# Words of the audit's verdict, as it writes them.
APART, LEANS, CANNOT = "told apart", "leans on", "cannot be told from"
CHANCE_ITSELF = "not above chance"
# Fragment of the headline and tone of each.
_TOLD = {
    APART: ("it can be told from its shortcuts", "good"),
    LEANS: ("it leans on a shortcut", "watch"),
    CANNOT: ("it cannot be told from its shortcuts", "bad"),
    CHANCE_ITSELF: ("it is not above chance", "bad"),
}


def told(run: RunLike) -> Statement | None:
    """Whether the score can be told from cues that are not harm, in the words of the audit."""
    word, reason, grade = shortcut_word(run)
    if not word:
        return None
    text = f"The score {'' if word.startswith('cannot') else 'is '}{word}"
    text += f" ({reason.rstrip('.')})" if reason else ""
    short, tone = _TOLD[grade]
    return Statement(f"{text}.", short, tone, ("table-guard-verdict", "table-guard-shortcuts"))


def shortcut_word(run: RunLike) -> tuple[str, str, str]:
    """The audit's verdict over all cues, its reason, and its grade; each "" without an audit.

    Without a verdict, that of the cues' AUROCs alone.
    """
    verdicts, cues = guard_table(run, VERDICT), guard_table(run, SHORTCUTS)
    rows = [] if verdicts is None else records(verdicts[verdicts["verdict"] != ""])
    if rows:
        word = str(rows[0]["verdict"])
        grade = next((each for each in _TOLD if word.startswith(each)), CANNOT)
        return word, str(rows[0]["reason"]), LEANS if LEANS in word else grade
    if cues is None:
        return "", "", ""
    failed, own = failed_cues(run), records(cues)[0]
    if failed:
        return f"{CANNOT} {listed(failed[:3])}", "", CANNOT
    if not own["auroc_low"] > 0.5:
        return CHANCE_ITSELF, "", CHANCE_ITSELF
    return APART, "", APART


def failed_cues(run: RunLike) -> list[str]:
    """Names of the cues that the score cannot be told from."""
    verdicts, cues = guard_table(run, VERDICT), guard_table(run, SHORTCUTS)
    if verdicts is not None and len(verdicts) > 1:
        one = verdicts.iloc[1:]
        return list(one.loc[one["verdict"].str.startswith(CANNOT), "name"])
    if cues is None:
        return []
    return list(cues.loc[cues["verdict"].str.startswith("as good as"), "name"])
