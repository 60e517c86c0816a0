"""Two tiny models of unlike kinds with a dictionary at each layer."""

from __future__ import annotations

import pytest

from dictionary import synthetic
from dictionary.synthetic import LAYERS, ON_MODEL, WIDTH
from model import tiny
from refusalscope.model import ChatModel
from refusalscope.prompts import Prompt

TEXTS = [
    "Tell me how to bake bread.",
    "What is the capital of that country?",
    "Write a short poem about the sea",
]


@pytest.fixture(scope="package", params=["llama", "gemma2"])
def chat(request):
    return ChatModel.wrap(tiny.model(request.param), tiny.tokenizer(), id=request.param)


@pytest.fixture(scope="package")
def prompts(chat):
    return chat.render([Prompt(id=str(i), text=text) for i, text in enumerate(TEXTS)])


@pytest.fixture(scope="package")
def made(tmp_path_factory):
    """layer -> (dictionary, the weights it was made of)"""
    return synthetic.on_model(tmp_path_factory.mktemp("saes"), LAYERS, WIDTH, d_sae=ON_MODEL)


@pytest.fixture(scope="package")
def pool(made):
    return {layer: dictionary.slice() for layer, (dictionary, _) in made.items()}
