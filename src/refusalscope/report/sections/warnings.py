"""What the run warned about, and what the tables give reason to look at."""

from __future__ import annotations

from refusalscope.report.content import Block, Listing, Note, Section
from refusalscope.report.tables import RunLike
from refusalscope.report.worries import warned, worries


def warnings(run: RunLike) -> Section | None:
    """Always there: that nothing was warned about is worth saying too."""
    blocks: list[Block] = []
    own = warned(run.info)
    # The count of warnings is a concern of the verdict; here the warnings themselves stand.
    concerns = [concern for concern in worries(run) if concern != own]
    if concerns:
        items = [f"{c.text[0].upper()}{c.text[1:]}." for c in concerns]
        blocks.append(Listing(items, "From the tables"))
    raised = [str(text) for text in run.info.get("warnings") or []]
    if raised:
        blocks.append(Listing(raised, "Raised while the run went on"))
    if not blocks:
        blocks.append(
            Note("The run raised no warning, and no rule of this report found a concern.")
        )
    return Section("warnings", "Warnings", blocks)
