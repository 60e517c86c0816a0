"""Gemma Scope: one params.npz a dictionary (arXiv 2408.05147).

JumpReLU, one threshold a latent, no normalisation, and the encoder does not subtract b_dec. The file
says nothing about where it reads: the layer and the suite stand in its path, `.../gemma-scope-2b-pt-res/
layer_12/width_16k/average_l0_82/params.npz`.
"""

from __future__ import annotations

import re
from pathlib import Path

from refusalscope.dictionary.activation import Activation
from refusalscope.dictionary.dictionary import Dictionary
from refusalscope.dictionary.weights import NpzFile, matrix, require
from refusalscope.errors import InputError
from refusalscope.model import Site

WEIGHTS = "params.npz"
SUITE = re.compile(
    r"gemma-scope-(?P<size>\d+b)-(?P<tuning>pt|it)-(?P<kind>res|mlp|att|transcoders)"
)
LAYER = re.compile(r"layer_(\d+)")


def read_gemma_scope(folder: Path, site: Site | None = None) -> Dictionary:
    """Read a Gemma Scope folder.

    site: where it reads, needed where the path names no suite or no layer.
    """
    suite = SUITE.search(str(folder))
    site = site or _site(folder, suite)
    file = NpzFile(folder / WEIGHTS)
    # A few files of the suite spell the matrices in small letters.
    enc, dec = ("w_enc", "w_dec") if "w_enc" in file.names else ("W_enc", "W_dec")
    require(file, (enc, dec, "b_enc", "b_dec", "threshold"))
    tuned = "-it" if suite and suite["tuning"] == "it" else ""
    return Dictionary(
        name=str(folder),
        site=site,
        model=f"google/gemma-2-{suite['size']}{tuned}" if suite else None,
        encoder=matrix(file, enc, by_row=False),
        decoder=matrix(file, dec, by_row=True),
        b_dec=file.read("b_dec"),
        activation=Activation("jumprelu", file.read("b_enc"), file.read("threshold")),
    )


def _site(folder: Path, suite: re.Match[str] | None) -> Site:
    layer = LAYER.search(str(folder))
    if suite and suite["kind"] != "res":
        raise InputError(
            f"the dictionary {folder} is of the suite {suite[0]}, which does not read the residual "
            f"stream; take one of a suite that ends in -res"
        )
    if suite is None or layer is None:
        lacks = "suite (gemma-scope-2b-pt-res, say)" if suite is None else "layer (layer_12, say)"
        raise InputError(
            f"the path {folder} names no {lacks}, and params.npz does not say where it reads; "
            f'give site=Site("resid_post", LAYER)'
        )
    return Site("resid_post", int(layer[1]))
