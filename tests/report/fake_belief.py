"""The tables of a belief study without a model: belief at the request's end, refusal at the prompt's.

Numbers are drawn from a seeded generator. Nothing here was measured on any model.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.belief_tables import CLUSTER_NAMES, FULL, LABELS, PUBLISHED
from refusalscope.report.numbers import NBSP
from refusalscope.stats import wilson
from report.fake_belief_plane import plane_tables
from report.fake_run import fake_info, write_fake_run

LAYERS, N = 6, 40
SIZES = dict(zip(CLUSTER_NAMES, (60, 14, 11, 70), strict=True))
CATEGORIES = ("fraud", "malware", "privacy", "violence")
CHOSEN = 3
NAN = float("nan")
SETTINGS = {"preset": "recommended", "rotations": 3}
ROTATIONS = 19
NO_RANK = {"random_most": NAN, "p_random": NAN, "n_random": 0}


def fake_belief_tables() -> dict[str, pd.DataFrame]:
    """Every table of a belief study by name."""
    return {name: table.copy() for name, table in _tables().items()}


def write_fake_belief(
    path: Path, *, tables: dict[str, pd.DataFrame] | None = None, **options: Any
) -> Path:
    """A finished run in `path`."""
    return write_fake_run(
        path,
        tables=fake_belief_tables() if tables is None else tables,
        command="belief",
        **{"info": fake_info(), "warnings": (), "settings": SETTINGS, **options},
    )


class BeliefTables:
    """Tables as the sections see a run."""

    def __init__(
        self, tables: dict[str, pd.DataFrame] | None = None, **changed: pd.DataFrame
    ) -> None:
        self.held = fake_belief_tables() if tables is None else dict(tables)
        self.held |= {f"belief.{name}": table for name, table in changed.items()}
        self.info = {"command": "belief", **fake_info(), "settings": SETTINGS}

    def tables(self) -> list[str]:
        return list(self.held)

    def table(self, name: str) -> pd.DataFrame:
        return self.held[name]


def changed(name: str, where: str, **values: object) -> BeliefTables:
    """The tables with other values in some rows of one."""
    table = fake_belief_tables()[f"belief.{name}"]
    rows = table.query(where).index
    assert len(rows)
    for column, value in values.items():
        table[column] = table[column].astype(object)
        table.loc[rows, column] = value
    return BeliefTables(**{name: table})


def words(text: str) -> str:
    """A text with plain spaces."""
    return text.replace(NBSP, " ")


@cache
def _tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    cosines = _cosines(rng)
    return {
        **plane_tables(),
        "belief.clusters": _clusters(),
        "belief.positions": _positions(),
        "belief.template_cut": _cut(),
        "belief.category_cosines": cosines,
        "belief.categories": _categories(cosines),
        "belief.jailbreaks": _jailbreaks(),
        "belief.tuned": _tuned(),
        "belief.steering": _pushed(rng, ("all",), _refused),
        "belief.inversion": _pushed(rng, ("before_question", "all"), _said),
    }


def _bounds(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def _plain(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, "low": value - half, "high": value + half}


def _score(position: str, cluster: str) -> float:
    label, behaviour = cluster.split()
    says = label == "harmful" if position == "t_inst" else behaviour == "refused"
    return 0.1 if says else -0.09


def _clusters() -> pd.DataFrame:
    rows = []
    for position, behaviours in (("t_inst", (PUBLISHED, FULL)), ("t_post", (FULL,))):
        for behaviour in behaviours:
            for layer in range(LAYERS + 1):
                for cluster, n in SIZES.items():
                    score = _plain("mean", _score(position, cluster) * layer / LAYERS, 0.02)
                    where = {"position": position, "behaviour": behaviour, "layer": layer}
                    rows.append({**where, "cluster": cluster, "n": n, **score})
    return pd.DataFrame(rows)


def _positions() -> pd.DataFrame:
    rows = []
    for position, token in enumerate((None, None, None, "</s>", "\n", "assistant"), start=-2):
        for behaviour in (PUBLISHED, FULL) if position <= 0 else (FULL,):
            for cluster, n in SIZES.items():
                score = _score("t_inst" if position <= 0 else "t_post", cluster)
                where = {"position": position, "token": token, "behaviour": behaviour}
                separates = "yes" if position == 0 else "no"
                head = {**where, "cluster": cluster, "n": n, "separates": separates}
                rows.append(
                    {**head, **_plain("mean", score, 0.02), "first_layer": 2, "last_layer": 4}
                )
    return pd.DataFrame(rows)


def _cut() -> pd.DataFrame:
    rows = []
    for label, full, cut in (("harmful", 60, 40), ("harmless", 6, 4)):
        row: dict[str, Any] = {"label": label, "n": 74}
        for name, refused in (("full", full), ("cut", cut)):
            rate = wilson(refused, 74)
            row |= {f"refused_{name}": refused, f"rate_{name}": rate.value}
            row |= {f"low_{name}": rate.low, f"high_{name}": rate.high}
        row |= _bounds("change", (full - cut) / 74, 0.08)
        rows.append({**row, "p": 0.001, "garbled_cut": 0.1})
    return pd.DataFrame(rows)


def _cosines(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for axis, centre in (("harmfulness", 0.5), ("refusal", 0.85)):
        for a, b in combinations(CATEGORIES, 2):
            cosine = centre + rng.uniform(-0.1, 0.1)
            rows.append({"axis": axis, "a": a, "b": b, **_plain("cosine", cosine, 0.05)})
    return pd.DataFrame(rows).assign(harmless="halves")


def _categories(cosines: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for axis, part in cosines.groupby("axis", sort=False):
        for name in (*CATEGORIES, "all"):
            mean = part["cosine"].mean()
            rest = {"total": True, **_bounds("shared", 0.7, 0.05)}
            rest |= _bounds("shared_null", 0.8, 0.05) | {"shared_p": 0.04}
            row = {"axis": axis, "category": name, "total": False, "n": 20, "reason": ""}
            row |= _bounds("to_others", mean, 0.05)
            row |= _bounds("to_others_null", 0.6, 0.1) | {"to_others_p": 0.04}
            row |= rest if name == "all" else _bounds("to_mean", 0.8, 0.05) | {"halves": 0.9}
            rows.append(row)
        rare = {"axis": axis, "category": "rare", "total": False, "n": 3}
        rows.append(rare | {"reason": "too few prompts"})
    return pd.DataFrame(rows).assign(unsteady=False, harmless="halves")


def _jailbreaks() -> pd.DataFrame:
    rows = []
    for wrapper, harm, refuse in (
        ("none", 0.1, 0.08),
        ("role play", 0.09, -0.05),
        ("rot13", -0.02, -0.06),
    ):
        for label, sign in zip(LABELS, (1, -1), strict=True):
            for quantity, value in (
                ("refused", 0.5),
                ("delta_harmful", harm),
                ("delta_refuse", refuse),
            ):
                row = {"wrapper": wrapper, "label": label, "group": "all", "quantity": quantity}
                number = value if quantity == "refused" else sign * value
                row |= {"n": N, **_plain("value", number, 0.02)}
                moved = wrapper != "none"
                row |= _bounds("change", -0.05 if moved else NAN, 0.02)
                rows.append(row | {"p": 0.01 if moved else NAN})
    return pd.DataFrame(rows)


def _tuned() -> pd.DataFrame:
    rows = []
    for label in LABELS:
        for quantity, centroids, before, change in (
            ("refused", "", 0.9, -0.8),
            ("delta_harmful", "kept", 0.1, -0.005),
            ("delta_refuse", "kept", 0.08, -0.15),
        ):
            row = {"label": label, "quantity": quantity, "centroids": centroids, "n": N, "p": 0.01}
            row |= _bounds("before", before, 0.02) | _bounds("after", before + change, 0.02)
            rows.append(row | _bounds("change", change, 0.02))
    return pd.DataFrame(rows)


def _refused(share: float, judged: bool) -> dict[str, Any]:
    n = N if judged else 0
    rate = wilson(round(share * n), n)
    row = {"n": n, "refused": round(share * n), "degenerate": 1 if judged else 0}
    row |= {"corrected": rate.value, "corrected_low": rate.low, "corrected_high": rate.high}
    return row | {"rate": rate.value, "low": rate.low, "high": rate.high}


def _said(share: float, judged: bool) -> dict[str, Any]:
    n = N if judged else 0
    valid = round(0.9 * n)
    rate, lost = wilson(round((1 - share) * valid), valid), wilson(n - valid, n)
    row = {"n": n, "n_valid": valid, "loose_no": 2 if n else 0, "n_both": valid, "answer_mass": 0.8}
    row |= {"invalid": lost.value, "invalid_low": lost.low, "invalid_high": lost.high}
    return row | {"share_no": rate.value, "low": rate.low, "high": rate.high}


def _pushed(rng: np.random.Generator, rules: tuple[str, ...], what: Any) -> pd.DataFrame:
    rows = []
    for label, sign in (("harmless", 1), ("harmful", -1)):
        clean = _cell("none", "none", -1, label, "none", -1)
        rows.append(clean | what(0.1, True) | _effect(0.0) | NO_RANK)
        for direction in ("harm", "refuse"):
            for rule in rules:
                for layer in range(1, LAYERS):
                    gain = (
                        sign
                        * (4.0 if direction == "harm" else 2.5)
                        * np.exp(-((layer - CHOSEN) ** 2) / 2)
                    )
                    cell = _cell(direction, rule, layer, label, "direction", -1)
                    rows.append(cell | what(min(0.95, 0.1 + abs(gain) / 5), True) | _effect(gain))
                    for seed in range(3):
                        cell = _cell(direction, rule, layer, label, "random", seed)
                        moved = _effect(rng.normal(0, 0.4)) | NO_RANK
                        rows.append(cell | what(0.12, layer == CHOSEN) | moved)
    return pd.DataFrame(rows)


def _cell(
    direction: str, rule: str, layer: int, label: str, control: str, seed: int
) -> dict[str, Any]:
    sign = {"none": 0}.get(control, 1 if label == "harmless" else -1)
    return {
        **{"direction": direction, "positions": rule, "layer": layer, "sign": sign, "scale": 1.0},
        **{"scale_in_residual_norms": 0.3, "label": label, "control": control, "seed": seed},
        **{"chosen": layer == CHOSEN},
    }


def _effect(gain: float) -> dict[str, float]:
    found = {"n_margin": N, **_bounds("margin", gain, 0.3), **_bounds("margin_change", gain, 0.3)}
    found |= {"random_most": np.sign(gain) * 0.9, "p_random": 0.05, "n_random": ROTATIONS}
    return found | _bounds("change", np.tanh(gain) / 2, 0.1)
