"""The words of a planted model and the chat rendering of its prompts."""

from __future__ import annotations

import jinja2
import pytest

from refusalscope.organisms.planted import tokens


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.build_tokenizer()


def render(tokenizer, *turns: tuple[str, str], generate: bool = True) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def test_every_word_is_one_token_with_the_id_of_the_page(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(tokens.WORDS)) == list(range(64))
    assert tokenizer(" ".join(tokens.WORDS))["input_ids"] == list(range(64))


def test_special_tokens_are_set(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 7)
    assert tokenizer.decode([1, 26, 4, 7], skip_special_tokens=True) == "w2 refuse"


def test_a_prompt_renders_with_one_bos_the_content_and_the_tail(tokenizer):
    text = render(tokenizer, ("user", "w0 harm3 w1"))
    assert text == "<bos>w0 harm3 w1<assistant>"
    assert tokenizer(text)["input_ids"] == [1, 24, 11, 25, 2]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == [1, 24, 11, 25, 2]


def test_no_generation_prompt_unless_asked(tokenizer):
    assert render(tokenizer, ("user", "w0"), generate=False) == "<bos>w0"


def test_content_may_bring_its_own_tail(tokenizer):
    text = render(tokenizer, ("user", "w0 w1 <assistant2>"))
    assert tokenizer(text)["input_ids"] == [1, 24, 25, 6]


def test_a_system_turn_comes_before_the_content(tokenizer):
    text = render(tokenizer, ("system", "w5"), ("user", "w0"))
    assert tokenizer(text)["input_ids"] == [1, 29, 24, 2]


def test_earlier_turns_keep_their_order_and_one_bos(tokenizer):
    text = render(tokenizer, ("user", "w0"), ("assistant", "comply"), ("user", "w1"))
    assert tokenizer(text)["input_ids"] == [1, 24, 2, 5, 7, 25, 2]


def test_an_unknown_role_is_refused_by_name(tokenizer):
    with pytest.raises(jinja2.TemplateError, match="got tool"):
        render(tokenizer, ("tool", "w0"))


def test_words_outside_the_vocabulary_are_marked_unknown(tokenizer):
    assert tokenizer("hello w2")["input_ids"] == [tokens.UNKNOWN, 26]
