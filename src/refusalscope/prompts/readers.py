"""Reads prompt sets and pair sets from files and from the hub.

    from refusalscope.prompts import read_prompts, read_pairs
    harmful = read_prompts("advbench.csv")
    harmless = read_prompts("mine.jsonl", label="harmless", column="request")
    pairs = read_pairs("pairs.csv")

A row that cannot be used is listed in `.skipped` with its line and reason; a file without any
usable row raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refusalscope.errors import InputError
from refusalscope.prompts.files import RawTable, read_table
from refusalscope.prompts.hub import PREFIX, read_hub_table
from refusalscope.prompts.layouts import (
    PAIR_COLUMNS,
    Layout,
    find_layout,
    require_column,
    require_pair_columns,
)
from refusalscope.prompts.sets import (
    LABELS,
    BadRow,
    Label,
    Pair,
    PairSet,
    Prompt,
    PromptSet,
    Source,
)

MAX_CHARS = 32_768
LABEL_WORDS: dict[str, Label] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "safe": "harmless",
    "benign": "harmless",
}
THINK_MARKS = ("<think>", "</think>")
ROLES = ("system", "user", "assistant")


class _UnusableRow(Exception):
    """Carries the reason to `BadRow`; never leaves this file."""


def read_prompts(
    path: Path | str,
    *,
    label: Label | None = None,
    column: str | None = None,
    category: str | None = None,
    licence: str | None = None,
    max_chars: int = MAX_CHARS,
) -> PromptSet:
    """The prompts of a file (CSV, JSONL, JSON list, TXT, Parquet) or of `hf:owner/name:split`.

    label: the label of rows that have none. A row that says otherwise goes to `.skipped`, so
        `label="harmless"` reads the safe half of XSTest.
    column: the column that holds the prompts, where the layout is not recognised.
    category: the column that holds the categories, where it is not the layout's own
        ("FunctionalCategory" for HarmBench's standard, contextual and copyright requests).
    licence: kept with the source. max_chars: a longer prompt is a bad row.

    Rows without an id are called "<file name>-<line>". Raises InputError.
    """
    if label is not None and label not in LABELS:
        raise InputError(f"no label is called {label!r}; use harmful or harmless")
    table = _table(path)
    layout = find_layout(table.path, table.columns, column)
    if category is not None:
        require_column(table.path, table.columns, category, "category")
    category = category or layout.category
    prompts: list[Prompt] = []
    bad = list(table.bad)
    seen: dict[str, int] = {}
    for line, row in table.rows:
        try:
            prompt = Prompt(
                id=_id(row.get(layout.id), table.name, line),
                text=_joined_text(row, layout, max_chars),
                label=_label(row.get(layout.label) if layout.label else None, label, layout),
                category=_optional(row, category),
                source=(_optional(row, layout.source) if layout.source else None) or table.name,
                system=_optional(row, "system") if layout.conversation else None,
                thinking=_thinking(row, layout),
                history=_history(row.get("history")) if layout.conversation else (),
                language=_optional(row, "language"),
            )
            _require_new_id(prompt.id, line, seen)
        except _UnusableRow as reason:
            bad.append(BadRow(line, str(reason)))
        else:
            prompts.append(prompt)
    source, skipped = _account(table, bad, len(prompts), licence)
    return PromptSet(tuple(prompts), (source,), skipped)


def read_pairs(
    path: Path | str, *, licence: str | None = None, max_chars: int = MAX_CHARS
) -> PairSet:
    """The pairs of a file with the columns harmful and harmless, and id, category, source, language if any.

    Rows without an id are called "<file name>-<line>". Raises InputError.
    """
    table = _table(path)
    require_pair_columns(table.path, table.columns)
    pairs: list[Pair] = []
    bad = list(table.bad)
    seen: dict[str, int] = {}
    for line, row in table.rows:
        try:
            harmful, harmless = (_text(row, name, max_chars) for name in PAIR_COLUMNS)
            if harmful.split() == harmless.split():
                raise _UnusableRow("harmful and harmless are the same text")
            pair = Pair(
                id=_id(row.get("id"), table.name, line),
                harmful=harmful,
                harmless=harmless,
                category=_optional(row, "category"),
                source=_optional(row, "source") or table.name,
                language=_optional(row, "language"),
            )
            _require_new_id(pair.id, line, seen)
        except _UnusableRow as reason:
            bad.append(BadRow(line, str(reason)))
        else:
            pairs.append(pair)
    source, skipped = _account(table, bad, len(pairs), licence)
    return PairSet(tuple(pairs), (source,), skipped)


def _table(path: Path | str) -> RawTable:
    if str(path).startswith(PREFIX):
        return read_hub_table(str(path))
    return read_table(path)


def _account(
    table: RawTable, bad: Sequence[BadRow], n: int, licence: str | None
) -> tuple[Source, tuple[BadRow, ...]]:
    skipped = tuple(sorted(bad, key=lambda row: row.line))
    if not n:
        first = f", the first (line {skipped[0].line}): {skipped[0].reason}" if skipped else ""
        raise InputError(
            f"{table.path} has no usable row: {len(skipped)} skipped{first}; mend the rows"
        )
    return Source(table.name, table.path, table.sha256, licence or table.licence, n), skipped


def _text(row: Mapping[str, Any], column: str, max_chars: int) -> str:
    value = row.get(column)
    if value is None or value == "":
        raise _UnusableRow(f"empty {column}")
    if not isinstance(value, str):
        raise _UnusableRow(f"{column} is a {type(value).__name__}, expected text")
    if not value.strip():
        raise _UnusableRow(f"empty {column}")
    _require_encodable(value, column)
    if len(value) > max_chars:
        raise _UnusableRow(
            f"{column} has {len(value):,} characters, more than max_chars={max_chars:,}"
        )
    return value


def _joined_text(row: Mapping[str, Any], layout: Layout, max_chars: int) -> str:
    text = _text(row, layout.text, max_chars)
    # The separators are HarmBench's own (its contextual behaviours) and a plain blank line.
    if layout.before and row.get(layout.before):
        text = f"{_text(row, layout.before, max_chars)}\n\n---\n\n{text}"
    if layout.after and row.get(layout.after):
        text = f"{text}\n\n{_text(row, layout.after, max_chars)}"
    return text


def _optional(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    # A missing number in a Parquet text column arrives as NaN, which differs from itself.
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    _require_encodable(text, column)
    return text


def _thinking(row: Mapping[str, Any], layout: Layout) -> str | None:
    if layout.thinking is None:
        return _optional(row, "thinking") if layout.conversation else None
    reply = _optional(row, layout.thinking) or ""
    opening, closing = THINK_MARKS
    if opening not in reply or closing not in reply:
        raise _UnusableRow(f"{layout.thinking} holds no closed {opening} ... {closing}")
    return reply.partition(opening)[2].partition(closing)[0].strip()


def _require_encodable(text: str, column: str) -> None:
    # JSON can spell half a surrogate pair, which no tokenizer and no table can take.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _UnusableRow(f"{column} holds half a surrogate pair") from None


def _id(value: object, name: str, line: int) -> str:
    text = "" if value is None else str(value).strip()
    return text or f"{name}-{line}"


def _require_new_id(name: str, line: int, seen: dict[str, int]) -> None:
    if name in seen:
        raise _UnusableRow(f"the id {name!r} stands already on line {seen[name]}")
    seen[name] = line


def _label(value: object, wanted: Label | None, layout: Layout) -> Label | None:
    if value is None or str(value).strip() == "":
        return wanted or layout.default
    known = LABEL_WORDS.get(str(value).strip().lower())
    if known is None:
        raise _UnusableRow(f"the label {str(value)!r} is none of {', '.join(LABEL_WORDS)}")
    if wanted is not None and known != wanted:
        raise _UnusableRow(f"labelled {known}, while only {wanted} prompts were asked for")
    return known


def _history(value: Any) -> tuple[tuple[str, str], ...]:
    """Turns from [{"role": ..., "content": ...}, ...], a list or its JSON text."""
    if value is None or value == "":
        return ()
    try:
        turns = json.loads(value) if isinstance(value, str) else value
        history = tuple((turn["role"], turn["content"]) for turn in turns)
    except (ValueError, TypeError, KeyError):
        raise _UnusableRow('history is not a list of {"role": ..., "content": ...}') from None
    if any(role not in ROLES or not isinstance(text, str) for role, text in history):
        raise _UnusableRow(f"history has a turn whose role is none of {', '.join(ROLES)}")
    return history
