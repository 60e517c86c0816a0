"""What training libraries change in passing, and how it is taken back."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def left_as_found(model: Any) -> Iterator[None]:
    """Take back what the libraries change besides the weights; an adapter must be merged by then."""
    forward, generation = model.__dict__.get("forward"), copy.deepcopy(model.generation_config)
    configs = {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }
    contents = {key: dict(config.__dict__) for key, config in configs.items()}
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.forward = forward
        for key, config in configs.items():
            config.__dict__.clear()
            config.__dict__.update(contents[key])
        model.generation_config = generation
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(True)
        model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """What libraries warn each other of is no news to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"peft\.")
        yield


@contextmanager
def random_states_kept() -> Iterator[None]:
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)
