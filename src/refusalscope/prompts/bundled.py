"""The mild matched pairs that ship with the package, written for this project."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files

from refusalscope.prompts.readers import read_pairs
from refusalscope.prompts.sets import PairSet

LICENCE = "Apache-2.0"


def bundled_pairs() -> PairSet:
    """160 pairs in 10 categories.

    The two members of a pair share topic, frame, first word and final punctuation, and differ by
    at most two words in length; no request asks for anything actionable.
    """
    with as_file(files("refusalscope.prompts") / "data" / "pairs.csv") as path:
        pairs = read_pairs(path, licence=LICENCE)
    return PairSet(
        tuple(replace(pair, source="refusalscope") for pair in pairs),
        # The path of an installed file says nothing to a reader of the run on another machine.
        tuple(
            replace(source, name="refusalscope", path="builtin:pairs") for source in pairs.sources
        ),
    )
