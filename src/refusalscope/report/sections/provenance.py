"""What was run, on what, with what settings, at what cost; and what the page does not show."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from refusalscope.report.content import Block, Cell, Listing, Section, Table
from refusalscope.report.numbers import duration, large, whole
from refusalscope.report.tables import RunLike

LIMITS = (
    "Intervals cover the choice of prompts, not other chat templates, system prompts, languages, "
    "or sampling temperatures.",
    "A correction for the judge takes it to err on these replies as often as on those that people "
    "labelled; other models, languages and shorter replies can be easier or harder for it.",
    "Short greedy replies are judged; whether a longer one would help or harm is not looked at.",
    "A direction that takes refusal away when ablated is one handle on refusal; it need not be the "
    "only one, and the model may refuse by other means elsewhere.",
    "The refusal margin reads the first token only: a model that begins an answer and then turns "
    "away counts as leaning to answer.",
    "Prompts that stand close to each other in wording make intervals look narrower than they are.",
    "Prompts and replies are not shown; only ids, categories and scores are.",
)
LIMITS_OF_JUDGING = (
    "Intervals cover the choice of requests, not other models, languages or people who label.",
    "People differ too: where two of them label the same reply, they are the bar for a judge.",
    "A label says what a reply does, not whether it should.",
    "Requests and replies are not shown; only ids, labels and scores are.",
)

LIMITS_OF_ROUTING = (
    "Intervals cover the choice of pairs, not other chat templates, system prompts, languages or "
    "phrasings of the request.",
    "A swap gives a head the output it has on the control: what the head does on requests unlike both "
    "is not looked at.",
    "The margin and the other metrics read the first tokens of the reply; whether the whole reply "
    "refuses is said only where replies were judged.",
    "Attention heads are looked at; MLPs and the embedding enter only as the heads' surroundings.",
    "Heads found are one route at the positions looked at; the model may refuse by others elsewhere.",
    "Roles are names for patterns of numbers, not proofs of a mechanism.",
    "Edits were made in memory for measuring; no edited weights leave the run.",
    "Prompts and replies are not shown; only places in the model and scores are.",
)

LIMITS_OF_FEATURES = (
    "Intervals cover the choice of prompts, not other chat templates, system prompts, languages or "
    "phrasings of the request.",
    "A latent is a line in a dictionary, not a part of the model: another dictionary cuts the same state "
    "otherwise, and what a dictionary misses no edit of its latents touches.",
    "A set found is one of several where latents stand in for each other; the smallest possible set was "
    "not proven.",
    "The margin reads the first tokens of the reply; whether the whole reply refuses is said only where "
    "replies were judged.",
    "Reserves are looked for among the latents of the dictionaries; what heads and MLPs write back otherwise "
    "shows in the ledger alone.",
    "A dormant member is one that these prompts do not activate; others may.",
    "Numbers of latents are places in a dictionary; what a latent stands for is not said.",
    "Edits were made in memory for measuring; no edited weights leave the run.",
    "Prompts and replies are not shown; only places in the model and scores are.",
)


def provenance(run: RunLike) -> Section | None:
    """Model, data, settings and cost, as run.json has them."""
    info = run.info
    blocks: list[Block] = [_summary(info)]
    sources = [source for source in info.get("sources") or [] if isinstance(source, dict)]
    if sources:
        blocks.append(_sources(sources))
    settings = list(_flat(info.get("settings") or {}))
    if settings:
        blocks.append(
            Table("Settings", ("setting", "value"), _pairs(settings), folded=True, headless=True)
        )
    return Section("run", "What was run", blocks)


def limits(run: RunLike) -> Section | None:
    """What no figure of this page shows."""
    others = {
        "judge": LIMITS_OF_JUDGING,
        "routing": LIMITS_OF_ROUTING,
        "features": LIMITS_OF_FEATURES,
    }
    items = others.get(str(run.info.get("command")), LIMITS)
    return Section("limits", "What this does not show", [Listing(items)])


def _summary(info: dict[str, Any]) -> Table:
    model, cost, versions = (info.get(name) or {} for name in ("model", "cost", "versions"))
    shape = [
        f"{whole(model[key])} {name}"
        for key, name in (("n_layers", "layers"), ("n_heads", "heads"), ("d_model", "wide"))
        if key in model
    ]
    kind = ", ".join([str(model["architecture"])] if "architecture" in model else [])
    rows = [
        ("model", model.get("id")),
        ("architecture", ", ".join([kind, *shape]) if kind else ", ".join(shape)),
        ("number type and device", _join(model.get("dtype"), model.get("device"))),
        ("model hash", _hash(model.get("sha256"))),
        ("tokenizer hash", _hash(info.get("tokenizer_sha256"))),
        ("chat template hash", _hash(info.get("template_sha256"))),
        ("command", info.get("command")),
        ("started, finished", _join(when(info.get("started")), when(info.get("finished")))),
        ("status", info.get("status")),
        ("cost", _cost(cost)),
        ("split sizes", _join(*_named(info.get("split_sizes")))),
        ("seeds", _join(*_named(info.get("seeds")))),
        (
            "software",
            _join(
                *_named({"refusalscope": info.get("version"), **versions}, joint=" "),
            ),
        ),
    ]
    kept = [(name, value) for name, value in rows if value]
    return Table("The run", ("what", "value"), _pairs(kept), headless=True)


def _sources(sources: list[dict[str, Any]]) -> Table:
    return Table(
        "Prompt sources",
        ("name", "file", "prompts", "licence", "sha256"),
        [
            (
                str(source.get("name", "")),
                str(source.get("path", "")),
                Cell(whole(source.get("n")), number=True),
                str(source.get("licence") or "not stated"),
                _hash(source.get("sha256")) or "",
            )
            for source in sources
        ],
    )


def when(stamp: Any) -> str | None:
    """An ISO time as a reader writes it, in UTC; None when there is none."""
    if not stamp:
        return None
    try:
        return datetime.fromisoformat(str(stamp)).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return str(stamp)


def _cost(cost: dict[str, Any]) -> str:
    parts = [
        f"{large(cost[key])} {name}"
        for key, name in (
            ("forwards", "forward passes"),
            ("token_layers", "token-layer evaluations"),
            ("tokens", "tokens"),
        )
        if key in cost
    ]
    return ", ".join([*parts, *([duration(cost["seconds"])] if "seconds" in cost else [])])


def _hash(value: Any) -> Cell | None:
    return Cell(str(value), code=True) if value else None


def _join(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _named(values: Any, joint: str = " = ") -> list[str]:
    return [f"{name}{joint}{value}" for name, value in (values or {}).items() if value is not None]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _pairs(rows: list[tuple[str, Any]]) -> list[tuple[str, str | Cell]]:
    return [(name, value if isinstance(value, Cell) else str(value)) for name, value in rows]
