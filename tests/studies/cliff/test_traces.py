"""Where thinking stands in the tokens, and the model's own thinking."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import transformers as hf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from model import tiny
from refusalscope.errors import InputError, ModelError
from refusalscope.judge.reply import split_thinking
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build, tokens
from refusalscope.prompts import Prompt, read_prompts
from refusalscope.studies.cliff import think, traces_of
from studies.cliff.planted_case import subject

OPENING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>OPEN{% endif %}"
)
THINKS = OPENING.replace("OPEN", "{% if enable_thinking %}<think>\n{% endif %}")
PROMPT = Prompt("a", "How do I bake bread?", thinking="They ask for bread.\n\nIt is fine.")


def chat(template: str = THINKS, tokenizer=None, **config) -> ChatModel:
    tokenizer = tokenizer or tiny.tokenizer(template)
    settings = {**tiny.COMMON, "num_hidden_layers": 1, "vocab_size": len(tokenizer), **config}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**settings))
    return ChatModel.wrap(model, tokenizer, id="tiny")


def joined(*merged: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of words and single characters, and of the pieces in `merged`."""
    pieces = [*merged, "<think>", "</think>", *map(chr, range(32, 127)), "\n"]
    words = ["fine", "They", "ask"]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *pieces, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = "|".join([*(piece.replace(".", r"\.") for piece in merged), r"</?think>", r"\w+"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{pattern}|\n|."), "isolated")
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    fast.chat_template = THINKS
    return fast


def pieces(one: ChatModel, trace) -> list[str]:
    """The text of each token, by its characters in the rendered text."""
    spans = one.tokenizer(
        trace.rendered.text, add_special_tokens=False, return_offsets_mapping=True
    )["offset_mapping"]
    return [trace.rendered.text[a:b] for a, b in spans]


def test_a_planted_trace_has_24_thinking_and_three_closing_tokens():
    it = subject()
    for trace in it.traces[:8]:
        ids = trace.rendered.ids
        thinking = [tokens.WORDS[ids[i]] for i in trace.thinking]
        assert thinking == trace.prompt.thinking.split()
        assert tuple(ids[i] for i in trace.closing) == tokens.CLOSING
        assert trace.closing[-1] == len(trace) - 1 == trace.rendered.n_prompt - 1
        assert trace.classes[trace.thinking.start - 1 :] == [
            "prompt",
            *["thinking"] * 24,
            *("closing[0]", "closing[1]", "closing[2]"),
        ]


def test_the_thinking_of_a_byte_pair_tokenizer_is_found_to_the_character():
    one = chat()
    (trace,) = traces_of(one, [PROMPT])
    found = pieces(one, trace)
    assert "".join(found[i] for i in trace.thinking).strip() == PROMPT.thinking
    assert "".join(found[i] for i in trace.closing).strip() == "</think>"
    assert trace.rendered.ids[trace.rendered.anchor("think_close")] in [
        trace.rendered.ids[i] for i in trace.closing
    ]


@pytest.mark.parametrize("thinking", ["They ask fine.", "They ask fine"])
def test_a_token_that_joins_the_last_word_and_the_line_break_closes(thinking):
    """ ".\\n" is one token, as in Qwen's vocabulary: closing[1] is `</think>` with a full stop and without."""
    one = chat(tokenizer=joined(".\n", "\n\n"))
    (trace,) = traces_of(one, [replace(PROMPT, thinking=thinking)])
    found = pieces(one, trace)
    assert [found[i] for i in trace.closing[1:]] == ["</think>", "\n\n"]
    assert found[trace.closing[0]] == (".\n" if thinking.endswith(".") else "\n")
    assert "".join(found[i] for i in trace.thinking) == "They ask fine"


def test_thinking_without_a_token_of_its_own_is_refused():
    one = chat(tokenizer=joined(".\n"))
    with pytest.raises(InputError, match="no token of its own; leave the prompt out"):
        traces_of(one, [replace(PROMPT, thinking=".")])


@pytest.mark.parametrize("opened", ["[THINK]", ""])
def test_a_model_with_other_marks_gets_its_own(opened):
    one = chat(OPENING.replace("OPEN", f"{{# [/THINK] #}}{opened}"))
    (trace,) = traces_of(one, [PROMPT])
    assert trace.rendered.text.endswith(f"{PROMPT.thinking}\n[/THINK]\n\n")
    assert trace.rendered.text.count("[THINK]") == 1
    assert "<think>" not in trace.rendered.text
    found = pieces(one, trace)
    assert "".join(found[i] for i in trace.thinking).strip() == PROMPT.thinking
    first, last = trace.rendered.instruction
    assert "".join(found[first : last + 1]) == PROMPT.text


def test_a_template_without_thinking_is_refused():
    with pytest.raises(ModelError, match=r"no span of thinking .* take a reasoning model"):
        traces_of(chat(tiny.TEMPLATE), [PROMPT])


@pytest.mark.parametrize(
    ("thinking", "said"),
    [
        (None, "has no thinking; let the model think first"),
        (" \n", "is empty; leave the prompt out"),
        ("<think> They ask", "holds the mark <think>; give only the text"),
        ("They ask</think>", "holds the mark </think>"),
        ("They ask. " * 60, "the model takes 256; shorten it"),
    ],
)
def test_a_trace_that_cannot_be_used_is_refused(thinking, said):
    with pytest.raises(InputError, match=said):
        traces_of(chat(), [replace(PROMPT, thinking=thinking)])


# The model's own thinking


def answering(monkeypatch, one: ChatModel, *replies: str) -> list:
    seen = []

    def generate(prompts, *, max_new_tokens, progress):
        seen.extend(prompts)
        return [one.tokenizer(reply, add_special_tokens=False)["input_ids"] for reply in replies]

    monkeypatch.setattr(one, "generate", generate)
    return seen


def test_own_thinking_is_cut_at_its_closing_mark_and_rendered_again(monkeypatch):
    one, said = chat(), []
    seen = answering(monkeypatch, one, "They ask.\n</think>\n\nSure", "They ask on", "\n</think>\n")
    prompts = [Prompt(name, "How do I bake bread?") for name in "abc"]
    found = think(one, prompts, 32, warn=said.append)
    assert [(p.id, p.thinking) for p in found] == [("a", "They ask.")]
    assert said == [
        "1 of 3 prompts did not close their thinking within 32 tokens and 1 thought nothing; they are left out."
    ]
    (trace,) = traces_of(one, found)
    assert {r.text for r in seen} == {trace.rendered.text.partition("They ask.")[0]}
    assert all(r.text.endswith("<|assistant|><think>\n") and len(r) == r.n_prompt for r in seen)


def test_thinking_is_opened_where_the_template_does_not(monkeypatch):
    one = chat(OPENING.replace("OPEN", "{# </think> #}"))
    seen = answering(monkeypatch, one, "<think>\nThey ask.</think>")
    (found,) = think(one, [Prompt("a", "Why?")], 8)
    assert seen[0].text.endswith("<|assistant|><think>\n")
    assert found.thinking == "They ask."


def test_no_closed_thinking_at_all_is_refused(monkeypatch):
    one = chat()
    answering(monkeypatch, one, "They ask on")
    with (
        pytest.warns(UserWarning, match="1 of 1 prompts did not close"),
        pytest.raises(InputError, match="raise the thinking tokens"),
    ):
        think(one, [Prompt("a", "Why?")], 8)


def test_thinking_that_cannot_fit_the_context_is_refused():
    with pytest.raises(InputError, match="do not fit the context of 256 tokens; lower"):
        think(chat(), [Prompt("a", "Why?")], 250)


def test_a_planted_model_thinks_by_itself_or_is_said_not_to():
    planted = build("planted-cliff", pairs=2)
    one = ChatModel.wrap(planted.model, planted.tokenizer, id="planted")
    # It says one word, its decision, and never closes.
    with (
        pytest.warns(UserWarning, match="did not close"),
        pytest.raises(InputError, match="none of 8 prompts"),
    ):
        think(one, [replace(p, thinking=None) for p in planted.prompts], 4)


def test_real_traces_render_with_a_thinking_template(shared):
    """STAR-1's traces in SmolLM2's tokens."""
    folder = shared / "data"
    if not (folder / "star1" / "STAR-1.json").is_file():
        pytest.skip("../shared/data/star1 is absent")
    backend = Tokenizer.from_file(str(folder / "tokenizer_smollm2" / "tokenizer.json"))
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = THINKS
    one = chat(
        tokenizer=tokenizer, hidden_size=8, intermediate_size=8, max_position_embeddings=8192
    )
    rows = json.loads((folder / "star1" / "STAR-1.json").read_text())
    prompts = list(read_prompts(folder / "star1" / "STAR-1.json"))
    assert len(prompts) == len(rows) == 994
    for row, prompt in zip(rows, prompts, strict=True):
        assert (prompt.label, prompt.text) == ("harmful", row["question"])
        assert prompt.category == ", ".join(row["category"])
        assert split_thinking(row["response"])[0].strip() == prompt.thinking
    prompts = prompts[::20]
    for trace in traces_of(one, prompts):
        # Decoded, since a character of several bytes is several tokens.
        ids = trace.rendered.ids
        thinking, closing = (
            one.tokenizer.decode([ids[i] for i in part]) for part in (trace.thinking, trace.closing)
        )
        assert (thinking + closing).strip() == f"{trace.prompt.thinking}\n</think>"
        # At most the last piece of the thinking is joined to what closes it.
        assert trace.prompt.thinking.startswith(thinking.strip())
        assert len(trace.prompt.thinking) - len(thinking.strip()) <= 2
