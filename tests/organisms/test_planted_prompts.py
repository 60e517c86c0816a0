"""Pairs of planted models."""

from __future__ import annotations

import pytest

from refusalscope.organisms.planted import tokens
from refusalscope.organisms.planted.prompts import PromptRecipe, content_text, draw_pairs

HARMFUL, BENIGN = set(tokens.HARMFUL_WORDS), set(tokens.BENIGN_WORDS)
ORDINARY = {tokens.BOS, tokens.TAIL, *tokens.FILLER_WORDS}


def test_plain_pairs_differ_in_the_marked_word_alone():
    for harmful, control in draw_pairs(PromptRecipe(seed=4, count=200)):
        assert harmful[0] == control[0] == tokens.BOS
        assert harmful[-1] == control[-1] == tokens.TAIL
        assert 7 <= len(harmful) == len(control) <= 11
        (differ,) = [(a, b) for a, b in zip(harmful, control, strict=True) if a != b]
        assert differ[0] in HARMFUL
        assert differ[1] in BENIGN
        assert set(harmful) - {differ[0]} <= ORDINARY


def test_no_pair_is_drawn_twice():
    pairs = draw_pairs(PromptRecipe(seed=0, count=2000))
    assert len({(tuple(a), tuple(b)) for a, b in pairs}) == 2000


def test_the_seed_decides_the_pairs():
    recipe = PromptRecipe(seed=1, count=24)
    assert draw_pairs(recipe) == draw_pairs(recipe)
    assert draw_pairs(recipe) != draw_pairs(recipe.model_copy(update={"seed": 2}))


@pytest.mark.parametrize("longer", [-3, 0, 3])
def test_the_control_is_longer_or_shorter_as_asked(longer):
    recipe = PromptRecipe(seed=0, count=50, control_longer=longer)
    for harmful, control in draw_pairs(recipe):
        assert len(control) - len(harmful) == longer
        assert len(BENIGN & set(control)) == 1


def test_a_prefix_stands_before_the_harmful_prompt_only():
    plain = draw_pairs(PromptRecipe(seed=0, count=1))[0]
    harmful, control = draw_pairs(PromptRecipe(seed=0, count=1, harmful_prefix=60))[0]
    assert len(harmful) == len(control) + 60
    assert set(harmful[1:61]) <= set(tokens.FILLER_WORDS)
    assert [tokens.BOS, *harmful[61:]] == plain[0]


def test_tail_pairs_differ_in_the_last_token_alone():
    for harmful, control in draw_pairs(PromptRecipe(seed=0, count=50, contrast="tail")):
        assert harmful[:-1] == control[:-1]
        assert (harmful[-1], control[-1]) == (tokens.TAIL2, tokens.TAIL)


@pytest.mark.parametrize("contrast", ["word", "tail"])
def test_the_text_of_a_prompt_renders_to_its_tokens(contrast):
    tokenizer = tokens.build_tokenizer()
    for pair in draw_pairs(PromptRecipe(seed=0, count=24, contrast=contrast)):
        for ids in pair:
            turn = [{"role": "user", "content": content_text(ids)}]
            rendered = tokenizer.apply_chat_template(turn, add_generation_prompt=True)
            assert rendered["input_ids"] == ids
