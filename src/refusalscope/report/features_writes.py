"""Writes: latents of several layers that show the same write to the stream and are taken out together.

A set is made of writes; one latent of one layer is a write of its own where nothing shows it again.
"""

from __future__ import annotations

import pandas as pd

from refusalscope.report.numbers import counted, whole

# What is known of a write from features.dormant; its latents share one effect.
FOLLOWED = ("effect", "effect_low", "effect_high")


def spread(members: pd.DataFrame) -> bool:
    """Whether some write of the set has several latents."""
    return int(members["write"].nunique()) < len(members)


def unit(members: pd.DataFrame) -> str:
    """What the members of the set are called, in the singular."""
    return "write" if spread(members) else "latent"


def size_words(members: pd.DataFrame) -> str:
    """ "5 latents in 3 layers", or "4 writes (32 latents over 8 layers)"."""
    layers = counted(members["layer"].nunique(), "layer")
    if not spread(members):
        return f"{counted(len(members), 'latent')} in {layers}"
    n = members["write"].nunique()
    return f"{counted(n, 'write')} ({counted(len(members), 'latent')} over {layers})"


def heads(members: pd.DataFrame) -> pd.DataFrame:
    """The strongest latent of each write, the strongest write first."""
    return members.drop_duplicates("write")


def followed(dormant: pd.DataFrame, members: pd.DataFrame | None) -> pd.DataFrame:
    """One row a write of the set that `dormant` is about, by `write`.

    dormant: rows of `dormant_rows`; members: of the main set, by which latents belong together. Columns: at,
    dormant (no latent of the write is active on any prompt without an edit), active_clean (of its most
    active latent), effect, effect_low, effect_high.
    """
    mine = dormant[dormant["in_set"]]
    known = {} if members is None else dict(zip(members["at"], members["write"], strict=True))
    # A name is a key of its own: a latent that the set does not list belongs to nothing else.
    owner = pd.Series([known.get(name, name) for name in mine["at"]], mine.index, dtype=object)
    columns = {name: (name, "first") for name in ("at", *FOLLOWED)}
    return mine.groupby(owner.rename("write"), sort=False).agg(
        dormant=("dormant", "all"), active_clean=("active_clean", "max"), **columns
    )


def layer_words(layers: list[int]) -> str:
    """Layers as a reader would list them: "0 to 7", "2, 5 and 6 more"."""
    first, last = layers[0], layers[-1]
    if len(layers) > 2 and last - first == len(layers) - 1:
        return f"{whole(first)} to {whole(last)}"
    named = ", ".join(whole(layer) for layer in layers[:6])
    return named + (f" and {whole(len(layers) - 6)} more" if len(layers) > 6 else "")
