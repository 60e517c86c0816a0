"""`refusalscope show`: what a run holds, in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from refusalscope.cli.session import SESSION


def show(run: Path, table: str | None = None, /, *, rows: int = 20, sql: str | None = None) -> None:
    """Show a run: its summary, one of its tables, or the answer to a query over them.

    Examples: `refusalscope show runs/demo`, `refusalscope show runs/demo directions.candidates --rows 5`

    Parameters
    ----------
    run
        A run folder.
    table
        Name of a table; a list of the tables without it.
    rows
        How many rows to print at most.
    sql
        A query over the tables, such as 'select label, rate from "behaviour.rates"'.
    """
    from refusalscope.runs import open_run

    view = open_run(run)
    if sql is not None:
        return _print(view.sql(sql), rows)
    if table is not None:
        return _print(view.table(table), rows)
    info = view.info
    model = info.get("model", {})
    SESSION.out.print(
        f"{info['command']} of {escape(str(model.get('id', 'a model')))} "
        f"({info['settings'].get('preset', 'no preset')}), {info['status']}, "
        f"{info['cost']['forwards']} forwards, {info['cost']['token_layers']} token-layers",
        highlight=False,
    )
    names = view.tables()
    listing = Table("table", "rows", "columns")
    for name in names:
        frame = view.table(name)
        listing.add_row(name, str(len(frame)), ", ".join(map(str, frame.columns)))
    SESSION.out.print(listing)
    for warning in info["warnings"]:
        SESSION.out.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    if (Path(run) / "report.html").is_file():
        SESSION.out.print(f"report: {Path(run) / 'report.html'}", soft_wrap=True, highlight=False)
    return None


def _print(frame, rows: int) -> None:
    grid = Table(*map(str, frame.columns))
    for _, row in frame.head(rows).iterrows():
        grid.add_row(*(f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row))
    SESSION.out.print(grid)
    if len(frame) > rows:
        SESSION.out.print(f"{len(frame) - rows} more rows: --rows {len(frame)} shows all")
