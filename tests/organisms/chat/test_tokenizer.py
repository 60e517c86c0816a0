"""The tokenizer gives every text back, and the template has one BOS and four trailing tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from refusalscope.organisms.chat import WEIGHTS
from refusalscope.organisms.chat.tokenizer import render, train_tokenizer

TOKENIZER = AutoTokenizer.from_pretrained(WEIGHTS)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@given(TEXT)
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_a_fresh_tokenizer_round_trips_text_it_never_saw() -> None:
    tokenizer = train_tokenizer(["how do I paint a room", "paint it"] * 5, 400)
    text = "  Žluťoučký kůň 😀\n\tx_1  "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "How do I paint a room?")],
        [("system", "Be kind."), ("user", "  Hello \n")],
        [("user", "a"), ("assistant", "Sure!"), ("user", "two\nlines")],
    ],
)
def test_the_fast_renderer_equals_the_template(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render(turns)
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert ids[0] == TOKENIZER.bos_token_id
    whole = TOKENIZER.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, tokenize=True
    )["input_ids"]
    assert list(whole) == ids


def test_four_tokens_stand_after_the_instruction() -> None:
    ids = TOKENIZER(render([("user", "How do I paint a room?")]))["input_ids"]
    tail = TOKENIZER.convert_ids_to_tokens(ids[-4:])
    assert tail[0] == "<|end|>"
    assert tail[2] == "<|assistant|>"
    assert TOKENIZER.decode(ids[-5]) == "?"


def test_the_reply_ends_with_the_end_marker() -> None:
    assert TOKENIZER.eos_token == "<|end|>"


def test_first_words_of_replies_are_single_tokens() -> None:
    for word in ("I", "Sorry", "Sure", "Here", "Certainly", "No"):
        assert len(TOKENIZER(word, add_special_tokens=False)["input_ids"]) == 1, word
