"""Which columns mean what: the layouts of the well-known prompt sets and of our own.

One registry, tried in order: the first layout whose `required` columns are all there is taken,
so a layout with more columns stands before one with fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refusalscope.errors import InputError
from refusalscope.prompts.sets import Label


@dataclass(frozen=True)
class Layout:
    """The columns of one kind of file.

    `text` is the request. `before` is a column whose text stands before the request (HarmBench's
    context, joined as its authors do), `after` one whose text stands behind it. `default` is the
    label of rows without one: given only where every row of that benchmark is harmful. `thinking`
    is a column with a reply whose thinking stands between marks.
    """

    name: str
    required: tuple[str, ...]
    text: str
    id: str = "id"
    category: str = "category"
    label: str | None = None
    source: str | None = None
    before: str | None = None
    after: str | None = None
    default: Label | None = None
    conversation: bool = False
    thinking: str | None = None


LAYOUTS: tuple[Layout, ...] = (
    Layout("Alpaca", ("instruction", "input"), "instruction", after="input"),
    Layout("refusalscope", ("text",), "text", label="label", source="source", conversation=True),
    Layout("XSTest", ("prompt", "type", "label"), "prompt", category="type", label="label"),
    Layout(
        "HarmBench",
        ("Behavior", "BehaviorID"),
        "Behavior",
        id="BehaviorID",
        category="SemanticCategory",
        before="ContextString",
        default="harmful",
    ),
    # No default label: the benign half of JailbreakBench has the very same columns.
    Layout("JailbreakBench", ("Goal", "Category"), "Goal", category="Category", source="Source"),
    Layout("AdvBench", ("goal", "target"), "goal", default="harmful"),
    Layout(
        "StrongREJECT",
        ("forbidden_prompt",),
        "forbidden_prompt",
        source="source",
        default="harmful",
    ),
    Layout(
        "Do-Not-Answer",
        ("question", "risk_area"),
        "question",
        category="risk_area",
        default="harmful",
    ),
    Layout(
        "STAR-1",
        ("question", "response", "score"),
        "question",
        default="harmful",
        thinking="response",
    ),
    Layout(
        "SimpleSafetyTests",
        ("prompts_final",),
        "prompts_final",
        category="harm_area",
        default="harmful",
    ),
    Layout("OR-Bench and other prompt lists", ("prompt",), "prompt", label="label"),
    Layout("Dolly", ("instruction", "context"), "instruction", after="context"),
    Layout("refusal_direction", ("instruction",), "instruction", label="label"),
)

PAIR_COLUMNS = ("harmful", "harmless")


def find_layout(path: str, columns: Sequence[str], column: str | None) -> Layout:
    """The layout of a file with these columns, or one that reads its text from `column`.

    With `column`, ids and categories are still read from "id" and "category" where they stand;
    labels are not, for a file of unknown layout may mean something else by them.
    Raises InputError that lists the columns found and those that are recognised.
    """
    if column is not None:
        require_column(path, columns, column, "column")
        return Layout("named column", (column,), column)
    for layout in LAYOUTS:
        if set(layout.required) <= set(columns):
            return layout
    known = "; ".join(f"{layout.name}: {', '.join(layout.required)}" for layout in LAYOUTS)
    pairs = (
        "; it looks like a pair set: read it with read_pairs or --pairs"
        if set(PAIR_COLUMNS) <= set(columns)
        else ""
    )
    raise InputError(
        f"{path} has the columns {_listed(columns)}, and none of the recognised layouts ({known}) "
        f"fits{pairs}; call the column that holds the prompts text (or name it with column=... from Python)"
    )


def require_column(path: str, columns: Sequence[str], name: str, argument: str) -> None:
    """Raises InputError where a column that an argument names is not in the file."""
    if name not in columns:
        raise InputError(
            f"{path} has no column {name!r}, which {argument}= names; it has {_listed(columns)}"
        )


def require_pair_columns(path: str, columns: Sequence[str]) -> None:
    """Raises InputError where a file has not the columns of a pair set."""
    if not set(PAIR_COLUMNS) <= set(columns):
        raise InputError(
            f"{path} has the columns {_listed(columns)}; a pair set needs harmful and harmless "
            "(and may have id, category, source, language): rename the columns, or read the file "
            "as one side with read_prompts (--harmful or --harmless)"
        )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in columns) or "(none)"
