"""Assembling the page: verdict, sections, styles and scripts in one file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from refusalscope.report.belief_rules import BELIEF_RULES
from refusalscope.report.cliff_rules import CLIFF_RULES
from refusalscope.report.content import Figure, Section, Table, Trails
from refusalscope.report.features_rules import FEATURES_RULES
from refusalscope.report.guard_rules import GUARD_RULES
from refusalscope.report.guard_tables import COMMANDS as GUARDS
from refusalscope.report.palette import DARK, LIGHT, css_variables, light_to_dark
from refusalscope.report.repair_rules import REPAIR_RULES
from refusalscope.report.routing_rules import ROUTING_RULES
from refusalscope.report.rules import RULES
from refusalscope.report.sections import SECTIONS
from refusalscope.report.sections.provenance import when
from refusalscope.report.tables import Once, RunLike
from refusalscope.report.verdict import headline, verdict
from refusalscope.runs import open_run, write_atomic

NAME = "report.html"
TITLES = {
    "judge": "Replies judged in",
    "routing": "Refusal routing of",
    "features": "Refusal latents of",
    "cliff": "Refusal cliff of",
    "repair": "Repair of",
    "cliff rank": "Rows to repair",
    "belief": "What it believes and what it does:",
    "guard fit": "Belief guard of",
    "guard score": "Prompts scored by the belief guard of",
    "guard drift": "Drift of the belief guard of",
}
RULES_OF = {
    "routing": ROUTING_RULES,
    "features": FEATURES_RULES,
    "cliff": CLIFF_RULES,
    "repair": REPAIR_RULES,
    "cliff rank": REPAIR_RULES,
    "belief": BELIEF_RULES,
    **dict.fromkeys(GUARDS, GUARD_RULES),
}


def write_report(run_path: str | os.PathLike[str]) -> Path:
    """Write RUN/report.html from the run folder alone and return its path.

    Tables that the run does not hold are left out or said to be missing. Raises RunError when the
    folder is not a run, a table is damaged, or the page cannot be written.
    """
    run = open_run(run_path)
    path = Path(run_path) / NAME
    write_atomic(path, render(run).encode())
    return path


def render(run: RunLike) -> str:
    """The page of a run; the same run gives the same page."""
    run = Once(run)
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    statements = verdict(run)
    scripts = {"theme": _asset("theme.js"), "plotly": _plotly(), "page": _asset("page.js")}
    return _template().render(
        run=_heading(run.info),
        headline=headline(statements),
        statements=statements,
        rules=RULES_OF.get(str(run.info.get("command")), RULES),
        sections=sections,
        targets=dict(_targets(sections)),
        kind=lambda block: type(block).__name__,
        specification=specification,
        palette=json_in_script(light_to_dark()),
        style=_style(),
        scripts={name: Markup(text) for name, text in scripts.items()},
        policy=content_policy(list(scripts.values())),
    )


def content_policy(scripts: Sequence[str]) -> str:
    """A security policy under which the page's own scripts run and nothing is loaded.

    Scripts are named by their hash, so a script that slipped in with data would not run. Plotly
    writes styles at run time, which no hash can name.
    """
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def json_in_script(value: Any) -> Markup:
    """JSON that no HTML parser can take for the end of its script element."""
    return _inert(json.dumps(value, ensure_ascii=True))


def specification(figure: Any) -> Markup:
    """A Plotly figure as JSON for the page's script."""
    return _inert(figure.to_json())


def _inert(text: str) -> Markup:
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _heading(info: dict[str, Any]) -> dict[str, str]:
    settings, model = info.get("settings") or {}, info.get("model") or {}
    command = str(info.get("command"))
    judged = command == "judge"
    sources = info.get("sources") or [{}]
    return {
        "title": TITLES.get(command, "Refusal audit of"),
        "model": str(sources[0].get("path") if judged else model.get("id") or "unnamed model"),
        "date": (when(info.get("finished") or info.get("started")) or "no date")[:10],
        "preset": str(settings.get("preset") or "not stated"),
        "version": str(info.get("version") or "unknown"),
        "status": str(info.get("status") or "unknown"),
    }


def _targets(sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """What a link can lead to, by id, and what the link calls it."""
    for section in sections:
        yield section.id, section.title.lower()
        for block in section.blocks:
            if isinstance(block, Figure | Table | Trails) and block.id:
                yield block.id, block.name


def _style() -> Markup:
    light, dark = css_variables(LIGHT), css_variables(DARK)
    return Markup(
        f":root{{color-scheme:light;{light}}}\n"
        "@media (prefers-color-scheme:dark){:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
        f"@media print{{:root:root:root{{color-scheme:light;{light}}}}}\n"
        f"{_asset('page.css')}"
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("refusalscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _asset(name: str) -> str:
    return files("refusalscope.report").joinpath("templates", name).read_text("utf-8")


@cache
def _plotly() -> str:
    # An HTML parser turns CR LF into LF, after which the hash would no longer fit.
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
