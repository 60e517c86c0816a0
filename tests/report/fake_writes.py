"""The tables of a features run whose set is made of writes, each of several latents."""

from __future__ import annotations

import numpy as np
import pandas as pd

from report.fake_features import SIZE, fake_features_tables, places

# Further layers that show the write of each member; that of the last write sleeps everywhere.
FURTHER = (3, 3, 2, 2, 0)


def written(size: tuple[int, int] = SIZE) -> list[list[tuple[int, int]]]:
    """(layer, latent) of every write of the main set, the strongest latent first."""
    members, _ = places(size)
    return [
        [(layer, latent), *((layer + i, latent + 100 * i) for i in range(1, further + 1))]
        for (layer, latent), further in zip(members, FURTHER, strict=True)
    ]


def fake_writes(size: tuple[int, int] = SIZE) -> dict[str, pd.DataFrame]:
    """As `fake_features_tables`, but members show again in later layers: 5 writes, 15 latents.

    Of the fourth write only a later latent is active without an edit, so that it does not sleep.
    """
    tables = fake_features_tables(size)
    own = written(size)
    sets = tables["features.sets"]
    longer = []
    for name, part in sets.groupby("set_id", sort=False):
        mine = {write[0]: write for write in own} if name != "pool/1" else {}
        rows = [
            row | {"layer": layer, "latent": latent}
            for row in part.to_dict("records")
            for layer, latent in mine.get((row["layer"], row["latent"]), [_at(row)])
        ]
        longer.append(pd.DataFrame(rows).assign(place=np.arange(len(rows))))
    tables["features.sets"] = pd.concat(longer, ignore_index=True)
    tables["features.dormant"] = _dormant(tables["features.dormant"], own)
    return tables


def _at(row: dict) -> tuple[int, int]:
    return row["layer"], row["latent"]


def _dormant(table: pd.DataFrame, own: list[list[tuple[int, int]]]) -> pd.DataFrame:
    """Every latent of a write with the effect of all of it, in the order of the study: by layer."""
    known = {(row["arm"], *_at(row)): row for row in table[table["in_set"]].to_dict("records")}
    rows = table[~table["in_set"]].to_dict("records")
    for arm in ("all", "no_bos"):
        for number, write in enumerate(own):
            first = known[arm, *write[0]]
            for i, (layer, latent) in enumerate(write):
                wakes = number == 3 and i == 2
                active = 0.5 if wakes else first["active_clean"]
                rows.append(first | {"layer": layer, "latent": latent, "active_clean": active})
    found = pd.DataFrame(rows)
    return found.sort_values(["arm", "layer", "latent"], kind="stable", ignore_index=True)
