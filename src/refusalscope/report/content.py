"""What a page is made of: sections of figures, tables and notes. The template only lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class Cell:
    """A table cell that is more than its text: a number, a mark, a hash. `below` is a second, smaller line."""

    text: str
    number: bool = False
    code: bool = False
    strong: bool = False
    below: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `rows` hold plain strings or cells. `id` and `name` are for links to it.

    folded: shown only when asked for. headless: its columns explain themselves.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""
    folded: bool = False
    headless: bool = False
    id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot. `alt` says in words what a reader who cannot see it must know."""

    figure: go.Figure
    alt: str
    title: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend: a mark drawn by the style sheet, and its meaning."""

    mark: str
    meaning: str


@dataclass(frozen=True)
class Figure:
    """One or more panels that are read together.

    name: what links call it; heading: what it shows; read: how to read it; basis: n, interval level
    and split.
    """

    id: str
    name: str
    heading: str
    panels: Sequence[Panel]
    read: str
    basis: str
    keys: Sequence[Key] = ()
    numbers: Table | None = None


@dataclass(frozen=True)
class Note:
    """A paragraph: `kind` is plain, missing or warning."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Listing:
    """A list of sentences."""

    items: Sequence[str]
    heading: str = ""


@dataclass(frozen=True)
class Card:
    """A key figure. `low`, `value` and `high` place its bar between `start` and `stop`."""

    name: str
    figure: str
    interval: str
    detail: str
    link: str = ""
    role: str = "ink"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class Cards:
    """Key figures side by side."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Trail:
    """A line that the page draws without a script: `points` in an SVG of 100 by 40, y downwards.

    name: what opens it; below: what stands under it; marks: (x, y, what it is) of single points; split: where
    its second part, which is shaded, begins.
    """

    name: str
    below: str
    alt: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[tuple[float, float, str]] = ()
    split: float = 100.0


@dataclass(frozen=True)
class Trails:
    """Folded lines, each shown only when asked for. heading and read as of a figure."""

    id: str
    name: str
    heading: str
    read: str
    basis: str
    trails: Sequence[Trail]


Block = Figure | Table | Note | Listing | Cards | Trails


@dataclass(frozen=True)
class Section:
    """A part of the page with its own heading; `id` is the target of links."""

    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""
