"""Pairs of planted models."""

from __future__ import annotations

import pytest

from refusalscope.organisms.planted import tokens
from refusalscope.organisms.planted.prompts import (
    PromptRecipe,
    code_wrapper,
    content_text,
    draw_pairs,
)
from refusalscope.prompts import WRAPPERS

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


def test_a_centred_word_stands_between_two_and_two_and_the_words_take_turns():
    pairs = draw_pairs(PromptRecipe(seed=3, count=24, layout="centred"))
    for number, (harmful, control) in enumerate(pairs):
        assert len(harmful) == len(control) == 7
        assert harmful[3] == tokens.HARMFUL_WORDS[number % 8]
        assert control[3] in BENIGN
        for place in (0, 1, 2, 4, 5, 6):
            assert harmful[place] == control[place]
            assert harmful[place] in ORDINARY


def test_more_centred_pairs_begin_with_the_same_ones():
    few, many = (PromptRecipe(seed=3, count=n, layout="centred") for n in (8, 24))
    assert draw_pairs(many)[:8] == draw_pairs(few)


def test_the_planted_code_replaces_harmful_words_and_nothing_else():
    wrapper = code_wrapper()
    assert wrapper.wrap("w0 harm3 w1 mild3") == "w0 code3 w1 mild3"
    assert wrapper.wrap("harm7\n harm0") == "code7\n code0"
    assert wrapper.wrap("harm8 harm33 xharm3 harm3. Harm3") == "harm8 harm33 xharm3 harm3. Harm3"
    assert (wrapper.name, wrapper.kind) == ("planted_code", "encoding")
    assert wrapper.name not in WRAPPERS


@pytest.mark.parametrize("text", ["w0 harm3 w1", "code3 harm3", "code1", "", "a  harm0\tharm0 "])
def test_the_planted_code_is_undone_exactly(text):
    wrapper = code_wrapper()
    assert wrapper.unwrap(wrapper.wrap(text)) == text


def test_coded_pairs_are_the_plain_ones_with_a_code_word():
    wrapper, tokenizer = code_wrapper(), tokens.build_tokenizer()
    for harmful, control in draw_pairs(PromptRecipe(seed=0, count=24)):
        coded = tokenizer(wrapper.wrap(content_text(harmful)))["input_ids"]
        assert coded == [i + 40 if i in HARMFUL else i for i in harmful[1:-1]]
        assert wrapper.wrap(content_text(control)) == content_text(control)
