"""Sparse autoencoders: lazy readers, a self-check on load, and exact edits of a few latents."""

from refusalscope.dictionary.activations import activations
from refusalscope.dictionary.dictionary import Dictionary, require_fit
from refusalscope.dictionary.edits import EditLatents, SubtractWrite
from refusalscope.dictionary.fit import Fit, check
from refusalscope.dictionary.hub import HubFolder, load_release, resolve
from refusalscope.dictionary.load import (
    Layout,
    builtin_dictionaries,
    load_dictionary,
    register,
)
from refusalscope.dictionary.modes import latent_variant
from refusalscope.dictionary.slices import DictionarySlice
from refusalscope.dictionary.suite import load_suite

__all__ = [
    "Dictionary",
    "DictionarySlice",
    "EditLatents",
    "Fit",
    "HubFolder",
    "Layout",
    "SubtractWrite",
    "activations",
    "builtin_dictionaries",
    "check",
    "latent_variant",
    "load_dictionary",
    "load_release",
    "load_suite",
    "register",
    "require_fit",
    "resolve",
]
