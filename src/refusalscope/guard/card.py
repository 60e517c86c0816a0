"""The card of a guard: one HTML page and one Markdown file, written from its folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from refusalscope.errors import GuardError
from refusalscope.guard.card_parts import Part, loading, sources, what
from refusalscope.guard.card_rates import monitor, own_examples, rates, shortcuts, thresholds
from refusalscope.guard.folder import read_record
from refusalscope.guard.record import GuardFile
from refusalscope.runs.files import write_atomic

ADVERSARIES = (
    "Nothing is claimed beyond the prompts, sources and wrappers that it was tried on. Attacks that know the "
    "model, such as rewording against its states or activations made to look harmless, are known and were "
    "not tried.",
    "It says what the model takes a prompt for. Where the model itself is wrong of harm, so is the guard.",
    "The promise of a threshold holds for harmless prompts of the kind it was calibrated on, and for no "
    "others.",
    "A probability belongs to the mix of harmful and harmless prompts of calibration; where harm is rarer, it "
    "is too high.",
    "It belongs to this model, tokenizer, template and precision. After a fine-tune, a merged adapter or "
    "quantisation it must be fitted and calibrated again; loading it then is refused.",
    "It is no judgement of law or policy, and a flag is no proof of intent.",
)
HTML, MARKDOWN = "card.html", "card.md"
# Blanks that may break a line, and what Markdown, or HTML within it, would read as more than text.
_BLANK = re.compile(r"[^\S\u00a0]+")
_ACTIVE = re.compile(r"([\\`*_{}\[\]()#+!|<>&~$^]|^\s*[-=]|:(?=//))")


def write_card(folder: Path | str) -> tuple[Path, Path]:
    """Write card.html and card.md into a guard's folder and return their paths; no model is needed.

    Raises GuardError for a folder that is no guard or a foreign one, RunError where the disk fails.
    """
    record = read_record(folder)
    pages = render(record, Path(folder).name)
    paths = Path(folder) / HTML, Path(folder) / MARKDOWN
    for path, page in zip(paths, pages, strict=True):
        write_atomic(path, page.encode())
    return paths


def render(record: GuardFile, folder: str) -> tuple[str, str]:
    """The card as HTML and as Markdown; the same record gives the same card. Raises GuardError."""
    try:
        told = _parts(record, folder)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ZeroDivisionError,
    ) as error:
        raise GuardError(
            f"the guard's record lacks what its card tells ({error!r}); fit the guard again with this version"
        ) from error
    facts = {"parts": told, "model": record.model.id, "version": record.refusalscope}
    html, markdown = (_environment(page).get_template(f"{page}.j2") for page in (HTML, MARKDOWN))
    return html.render(**facts), markdown.render(**facts)


def _parts(record: GuardFile, folder: str) -> list[Part]:
    known = record.known_failures
    none = () if known else ("None is on record, which is not proof that there is none.",)
    return [
        what(record),
        thresholds(record),
        rates(record),
        shortcuts(record),
        sources(record),
        monitor(record),
        own_examples(record),
        Part("Known failures", none, listed=known),
        Part("What it does not claim", listed=ADVERSARIES),
        loading(record, folder),
    ]


def inert(text: Any) -> str:
    """Text that stays text in Markdown: on one line, nothing in it is markup."""
    return _ACTIVE.sub(r"\\\1", _BLANK.sub(" ", str(text)).strip())


def fenced(code: str) -> str:
    """A fence that no line of the code can close."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    return "`" * max(3, longest + 1)


def _environment(page: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("refusalscope.guard"),
        autoescape=page == HTML,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inert": inert, "fenced": fenced}
    return environment
