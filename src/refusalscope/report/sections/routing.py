"""The routing sections: the heads that carry refusal, doses, ciphers, and how far all this reaches."""

from __future__ import annotations

from refusalscope.report.content import Block, Listing, Note, Section
from refusalscope.report.routing_rules import unseen
from refusalscope.report.routing_tables import (
    CASCADE,
    DRIVE,
    GROUPS,
    HEADS,
    all_heads,
    routing_table,
)
from refusalscope.report.routing_worries import COMPAT_LEFT
from refusalscope.report.sections.routing_cascade import cascade_figure
from refusalscope.report.sections.routing_cipher import (
    cipher_figure,
    collapse_table,
    contrast_table,
)
from refusalscope.report.sections.routing_circuit import circuit
from refusalscope.report.sections.routing_dose import dose_blocks
from refusalscope.report.sections.routing_map import head_map
from refusalscope.report.sections.routing_numbers import (
    coverage_table,
    gap_table,
    groups_table,
    heads_tables,
    metrics_table,
    moved_table,
    stability_table,
)
from refusalscope.report.sections.routing_rescue import rescue_blocks
from refusalscope.report.tables import RunLike, why_missing

GAP, COVERAGE, STABILITY = "routing.gap", "routing.coverage", "routing.stability"


def routing(run: RunLike) -> Section | None:
    """Gap, map, heads found, circuit, groups, cascades; None for a run without routing tables."""
    if not _is_routing(run):
        return None
    heads = all_heads(run)
    gaps, groups, cascade, drive = (
        routing_table(run, name) for name in (GAP, GROUPS, CASCADE, DRIVE)
    )
    blocks: list[Block] = [_missing(run, GAP) if gaps is None else gap_table(gaps)]
    if heads is not None:
        if (heads["map"] == "compat_left").any():
            text = (
                f"{COMPAT_LEFT[0].upper()}{COMPAT_LEFT[1:]}. Read the map below with that in mind; "
            )
            blocks.append(Note(f"{text}the recommended preset swaps from the end.", "warning"))
        blocks += [head_map(run, heads), *heads_tables(heads), circuit(heads, drive)]
    else:
        blocks.append(_missing(run, HEADS))
    if groups is not None:
        blocks.append(groups_table(groups, routing_table(run, "routing.coalitions")))
    else:
        blocks.append(_missing(run, GROUPS))
    drawn = None if cascade is None else cascade_figure(cascade, heads, drive)
    if drawn is not None:
        blocks.append(drawn)
    elif cascade is not None:
        blocks.append(Note("No head behind a gate has a change that could be drawn.", "missing"))
    else:
        blocks.append(_missing(run, CASCADE))
    return Section(
        "routing",
        "The heads that carry refusal",
        blocks,
        "Each attention head's output on a harmful prompt was swapped for its output on the matched "
        "control, and the other way round. What the swap takes from the gap is the head's necessity, "
        "what it brings about the head's sufficiency.",
    )


def routing_dose(run: RunLike) -> Section | None:
    """Dose curves; None when the run has none."""
    dose = routing_table(run, "routing.dose")
    if dose is None:
        return None
    blocks = dose_blocks(dose, routing_table(run, "routing.thresholds"))
    if not any(block for block in blocks):
        blocks = [Note("The doses of this run hold no margin that could be drawn.", "missing")]
    return Section(
        "routing-dose",
        "Dose",
        blocks,
        "How much of the detected direction it takes to switch refusal off, or on.",
    )


def routing_cipher(run: RunLike) -> Section | None:
    """Cipher arms and rescue; None when the run has none of their tables."""
    names = ("routing.cipher", "routing.collapse", "routing.contrast", "routing.rescue")
    cipher, collapse, contrast, rescue = (routing_table(run, name) for name in names)
    blocks: list[Block] = []
    if cipher is not None:
        drawn = cipher_figure(cipher, all_heads(run))
        text = "No head has a necessity behind the cipher that could be drawn."
        blocks.append(drawn or Note(text, "missing"))
    if collapse is not None:
        blocks.append(collapse_table(collapse))
    if contrast is not None:
        blocks.append(contrast_table(contrast))
    if rescue is not None:
        blocks += rescue_blocks(rescue)
    if not blocks:
        return None
    return Section(
        "routing-cipher",
        "Behind a cipher",
        blocks,
        "The same requests, wrapped so that they read differently and mean the same.",
    )


def routing_checks(run: RunLike) -> Section | None:
    """Coverage, stability, other metrics and checkpoints; None for a run without routing tables."""
    if not _is_routing(run):
        return None
    heads = all_heads(run)
    coverage, stability = routing_table(run, COVERAGE), routing_table(run, STABILITY)
    blocks: list[Block] = []
    not_seen = [f"{phrase[0].upper()}{phrase[1:]}." for phrase in unseen(run)]
    if not_seen:
        blocks.append(Listing(not_seen, "Not looked at in this run"))
    blocks.append(_missing(run, COVERAGE) if coverage is None else coverage_table(coverage))
    blocks.append(_missing(run, STABILITY) if stability is None else stability_table(stability))
    metrics, moved = routing_table(run, "routing.metrics"), routing_table(run, "routing.moved")
    if metrics is not None:
        blocks.append(metrics_table(metrics, heads))
    if moved is not None:
        blocks.append(moved_table(moved, routing_table(run, "routing.drift")))
    return Section(
        "routing-checks",
        "How far this reaches",
        blocks,
        "Which heads and tokens were looked at, which were not, and whether other samples of pairs "
        "would have found the same heads.",
    )


def _is_routing(run: RunLike) -> bool:
    named = run.info.get("command") == "routing"
    return named or any(name.startswith("routing.") for name in run.tables())


def _missing(run: RunLike, name: str) -> Note:
    return Note(why_missing(run, name), "missing")
