"""The prompts of a study: one request, a matched pair, and frozen sets of both.

A set knows the files it came from and the rows of them that it could not use, so that a report
can name every source and a user every lost row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, get_args, overload

from refusalscope.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Label = Literal["harmful", "harmless"]
LABELS: tuple[Label, ...] = get_args(Label)


@dataclass(frozen=True)
class Prompt:
    """One request to a model.

    `history` holds earlier turns as (role, text), oldest first; `text` is the last user turn.
    `thinking` is a reasoning span that a reasoning model is given, `system` the system turn.
    """

    id: str
    text: str
    label: Label | None = None
    category: str | None = None
    source: str | None = None
    system: str | None = None
    thinking: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    language: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(f"prompt {self.id!r} has an empty text; give it a request")
        if self.label is not None and self.label not in LABELS:
            raise InputError(
                f"prompt {self.id!r} has the label {self.label!r}; use harmful, harmless or None"
            )


@dataclass(frozen=True)
class Pair:
    """A harmful request and its matched harmless control."""

    id: str
    harmful: str
    harmless: str
    category: str | None = None
    source: str | None = None
    language: str | None = None

    def prompts(self) -> tuple[Prompt, Prompt]:
        """(harmful, harmless), with ids "<pair id>/harmful" and "<pair id>/harmless"."""
        harmful, harmless = (
            Prompt(
                f"{self.id}/{label}",
                text,
                label,
                self.category,
                self.source,
                language=self.language,
            )
            for label, text in zip(LABELS, (self.harmful, self.harmless), strict=True)
        )
        return harmful, harmless


@dataclass(frozen=True)
class Source:
    """Where prompts came from. `n` is the number of rows that could be used."""

    name: str
    path: str
    sha256: str
    licence: str | None
    n: int


@dataclass(frozen=True)
class BadRow:
    """A row that was not used. `line` counts from 1: the line of a text file, else the item."""

    line: int
    reason: str


@dataclass(frozen=True)
class PromptSet:
    """Prompts with distinct ids, in the order of their file."""

    items: tuple[Prompt, ...]
    sources: tuple[Source, ...] = ()
    skipped: tuple[BadRow, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _require_distinct_ids([prompt.id for prompt in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptSet: ...
    def __getitem__(self, index: int | slice) -> Prompt | PromptSet:
        if isinstance(index, slice):
            return replace(self, items=self.items[index])
        return self.items[index]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(prompt.text for prompt in self.items)

    def of(self, label: Label) -> PromptSet:
        """The prompts with this label."""
        if label not in LABELS:
            raise InputError(f"no label is called {label!r}; use harmful or harmless")
        return replace(self, items=tuple(p for p in self.items if p.label == label))

    def in_category(self, *names: str) -> PromptSet:
        """The prompts of these categories. Raises InputError for a category the set has not."""
        _require_known_categories(names, self.items)
        return replace(self, items=tuple(p for p in self.items if p.category in names))

    def frame(self) -> pd.DataFrame:
        """One row per prompt: id, text, label, category, source, system, thinking, history, language."""
        return _frame(self.items, Prompt)


@dataclass(frozen=True)
class PairSet:
    """Matched pairs with distinct ids, in the order of their file."""

    items: tuple[Pair, ...]
    sources: tuple[Source, ...] = ()
    skipped: tuple[BadRow, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _require_distinct_ids([pair.id for pair in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> PairSet: ...
    def __getitem__(self, index: int | slice) -> Pair | PairSet:
        if isinstance(index, slice):
            return replace(self, items=self.items[index])
        return self.items[index]

    def prompts(self) -> PromptSet:
        """Both members of every pair, harmful first: ids "<pair id>/<label>"."""
        members = tuple(prompt for pair in self.items for prompt in pair.prompts())
        return PromptSet(members, self.sources, self.skipped)

    def of(self, label: Label) -> PromptSet:
        """One member of every pair, in the order of the pairs."""
        return self.prompts().of(label)

    def in_category(self, *names: str) -> PairSet:
        """The pairs of these categories. Raises InputError for a category the set has not."""
        _require_known_categories(names, self.items)
        return replace(self, items=tuple(p for p in self.items if p.category in names))

    def frame(self) -> pd.DataFrame:
        """One row per pair: id, harmful, harmless, category, source, language."""
        return _frame(self.items, Pair)


def concat(*sets: PromptSet) -> PromptSet:
    """The prompts of several sets in order, with all their sources and skipped rows.

    Where an id stands in two sets (two files that both number their rows), every id is prefixed
    with its prompt's source. Raises InputError where that does not tell them apart.
    """
    items = tuple(prompt for one in sets for prompt in one)
    if len({prompt.id for prompt in items}) < len(items):
        items = tuple(replace(p, id=f"{p.source or 'unnamed'}/{p.id}") for p in items)
    sources = tuple(dict.fromkeys(source for one in sets for source in one.sources))
    skipped = tuple(row for one in sets for row in one.skipped)
    return PromptSet(items, sources, skipped)


def _require_distinct_ids(ids: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        shown = ", ".join(repr(name) for name in repeated[:3])
        raise InputError(
            f"{len(repeated)} id(s) stand more than once in the set ({shown}); "
            "ids must be distinct: rename them, or pass each file once"
        )


def _require_known_categories(
    names: Sequence[str], items: Sequence[Prompt] | Sequence[Pair]
) -> None:
    known = {item.category for item in items if item.category is not None}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"no prompt has the category {unknown[0]!r}; the set has "
            + (", ".join(sorted(known)) if known else "no categories")
        )


def _frame(
    items: Sequence[Prompt] | Sequence[Pair], kind: type[Prompt] | type[Pair]
) -> pd.DataFrame:
    import pandas as pd

    names = [column.name for column in fields(kind)]
    return pd.DataFrame([[getattr(item, name) for name in names] for item in items], columns=names)
