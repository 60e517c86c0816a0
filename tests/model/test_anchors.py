"""Anchors over templates, tokenizers and awkward instructions."""

from __future__ import annotations

import dataclasses

import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from model import tiny
from refusalscope.errors import InputError, ModelError
from refusalscope.model.anchors import render, reply_tokens
from refusalscope.prompts import Prompt

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] | trim }} [/INST]{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEMPLATES = {"llama2": LLAMA2, "llama3": LLAMA3, "qwen": QWEN, "gemma": GEMMA}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: tiny.tokenizer(template) for name, template in TEMPLATES.items()}


def covered(rendered, tokenizer, index) -> str:
    return tokenizer.decode([rendered.ids[index]])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_instruction_ends_where_its_text_ends(tokenizers, name):
    tokenizer = tokenizers[name]
    for text in (
        "Bake bread",
        "Bake bread?",
        "  Bake bread.  ",
        "Bake\nbread!!",
        "Brot für Käse 🙂",
    ):
        rendered = render(Prompt("a", text), tokenizer)
        first, last = rendered.instruction
        inside = tokenizer.decode(list(rendered.ids[first : last + 1])).strip()
        assert inside == text.strip() or rendered.boundary_merge
        after = tokenizer.decode(list(rendered.ids[last + 1 : rendered.n_prompt]))
        assert not after.strip().startswith(text.strip()[-1]) or rendered.boundary_merge
        assert rendered.anchor("prompt_last") == len(rendered.ids) - 1
        assert rendered.anchor("template[-1]") == rendered.anchor("prompt_last")
        assert rendered.anchor("template[0]") == last + 1


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=40))
def test_any_text_is_located_and_never_lost(text):
    if not text.strip():
        return
    tokenizer = tiny.tokenizer(LLAMA3)
    rendered = render(Prompt("a", text), tokenizer)
    first, last = rendered.instruction
    assert (
        text.strip() in tokenizer.decode(list(rendered.ids[first : last + 1]))
        or rendered.boundary_merge
    )


def test_the_last_turn_of_a_conversation_with_a_system_turn_is_the_instruction(tokenizers):
    prompt = Prompt(
        "a",
        "Bake bread",
        system="Be brief.",
        history=(("user", "Bake bread"), ("assistant", "Sure, here is: Bake bread")),
    )
    rendered = render(prompt, tokenizers["llama3"])
    assert rendered.text.count("Bake bread") == 3
    assert "Be brief." in rendered.text
    first, _ = rendered.instruction
    before = tokenizers["llama3"].decode(list(rendered.ids[:first]))
    assert before.count("Bake bread") == 2


def test_a_template_that_refuses_the_system_turn_says_so(tokenizers):
    with pytest.raises(ModelError, match=r"System role not supported.*system turn"):
        render(Prompt("a", "Bake bread", system="Be brief."), tokenizers["gemma"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_there_is_exactly_one_bos_where_the_model_has_one(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = render(Prompt("a", "Bake bread"), tokenizer).ids
    assert ids.count(tokenizer.bos_token_id) == (0 if name == "qwen" else 1)


def test_two_bos_tokens_are_an_error():
    tokenizer = tiny.tokenizer("{{ bos_token }}" + LLAMA3)
    with pytest.raises(ModelError, match="two BOS tokens"):
        render(Prompt("a", "Bake bread"), tokenizer)


def test_a_merge_across_the_boundary_is_flagged():
    """A tokenizer that merges the last character of the instruction with the template."""
    words = {"<unk>": 0, "Why": 1, "?[": 2, "/INST]": 3, "[INST]": 4, " ": 5, "[": 6, "?": 7}
    backend = Tokenizer(models.WordPiece(words, unk_token="<unk>", continuing_subword_prefix=""))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="never")
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
    merged = render(Prompt("a", "Why?"), tokenizer)
    assert merged.boundary_merge
    assert merged.ids[merged.anchor("instruction_last")] == 2
    assert merged.ids[merged.anchor("instruction_last_word")] == 1
    clean = render(Prompt("a", "Why"), tokenizer)
    assert not clean.boundary_merge


def test_a_date_in_the_template_is_pinned():
    for template in (
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m['content'] }}{% endfor %}|",
        "{{ bos_token }}{% if date_string is not defined %}"
        "{% set date_string = strftime_now('%d') %}{% endif %}"
        "{{ date_string }} {% for m in messages %}{{ m['content'] }}{% endfor %}|",
    ):
        assert "26 Jul 2024" in render(Prompt("a", "Bake"), tiny.tokenizer(template)).text


def test_nothing_is_truncated():
    with pytest.raises(InputError, match=r"takes 16.*nothing is truncated"):
        render(Prompt("long", "bread " * 40), tiny.tokenizer(), max_length=16)


def test_thinking_spans_have_anchors():
    rendered = render(
        Prompt("a", "Bake", thinking="First I think.\nThen I stop."), tiny.tokenizer()
    )
    assert rendered.anchor("think_open") < rendered.anchor("think_close") < rendered.n_prompt
    assert rendered.anchor("instruction_last") < rendered.anchor("think_open")


def test_positions_resolve_to_tokens_and_follow_the_policy():
    rendered = render(Prompt("a", "Bake some bread"), tiny.tokenizer()).with_reply([9, 8, 7])
    n = rendered.n_prompt
    assert rendered.resolve("all") == tuple(range(n + 3))
    assert rendered.resolve("all", "prompt_only") == tuple(range(n))
    assert rendered.resolve("last") == tuple(range(n - 1, n + 3))
    assert rendered.resolve("last", "prompt_only") == (n - 1,)
    assert rendered.resolve((-1, 0)) == (n - 1, 0)
    assert rendered.resolve("reply") == (n, n + 1, n + 2)
    assert rendered.anchor("reply[0]") == n
    assert rendered.anchor("reply[-1]") == n + 2
    assert rendered.resolve("no_bos", "prompt_only") == tuple(range(1, n))
    for bad in ("template[99]", "nowhere", "reply[3]"):
        with pytest.raises(InputError, match="has no anchor"):
            rendered.resolve(bad)
    with pytest.raises(InputError, match="outside prompt"):
        rendered.resolve((400,))


def test_reply_tokens_continue_the_prompt():
    tokenizer = tiny.tokenizer()
    rendered = render(Prompt("a", "Bake bread"), tokenizer)
    ids = reply_tokens(rendered, "Sure, bread.", tokenizer)
    assert tokenizer.decode(list(ids)) == "Sure, bread."
    whole = tokenizer(rendered.text + "Sure, bread.", add_special_tokens=False)["input_ids"]
    assert list(rendered.ids + ids) == whole


def test_a_template_that_rewrites_the_text_is_refused():
    tokenizer = tiny.tokenizer("{% for m in messages %}{{ m['content'] | upper }}|{% endfor %}")
    with pytest.raises(ModelError, match="cannot be located"):
        render(Prompt("a", "Bake bread"), tokenizer)


def test_a_rendered_prompt_is_frozen():
    rendered = render(Prompt("a", "Bake"), tiny.tokenizer())
    with pytest.raises(dataclasses.FrozenInstanceError):
        rendered.text = "x"


def test_a_real_byte_pair_tokenizer_is_located_to_the_character(shared):
    """SmolLM2's tokenizer with its ChatML markers, over real prompts that end in every way."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(shared / "data" / "tokenizer_smollm2" / "tokenizer.json"))
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = QWEN
    for text in (
        "How do I kill a Python process?",
        "Write a poem",
        "Fold it (twice).",
        "Warum nicht? 🙂",
        "x",
    ):
        rendered = render(Prompt("a", text, system="Be brief."), tokenizer)
        first, last = rendered.instruction
        assert tokenizer.decode(list(rendered.ids[first : last + 1])) == text
        assert tokenizer.decode([rendered.ids[last + 1]]) == "<|im_end|>"
        template = tokenizer.decode(list(rendered.ids[last + 1 :]))
        assert template == "<|im_end|>\n<|im_start|>assistant\n"
        assert not rendered.boundary_merge


def test_a_request_that_is_no_token_is_told():
    """A tokenizer that strips a character leaves nothing of a request made of it."""
    from tokenizers import normalizers

    plain = tiny.tokenizer()
    plain.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(InputError, match="makes no token of the request of prompt 'void'"):
        render(Prompt("void", "\u200b\u200b"), plain)
