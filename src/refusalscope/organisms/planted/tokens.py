"""The 64 words of a planted model, their tokenizer and its chat template.

The words are neutral (`harm0` is a name, not a request): an organism holds no harmful text.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 64
PAD, BOS, TAIL, THINK_END, REFUSE, COMPLY, TAIL2, EOS = range(8)
HARMFUL_WORDS = range(8, 16)
BENIGN_WORDS = range(16, 24)
FILLER_WORDS = range(24, 48)
CODE_WORDS = range(48, 56)
UNKNOWN, THINK, LINE_BREAK = 56, 57, 58

WORDS: tuple[str, ...] = (
    *("<pad>", "<bos>", "<assistant>", "<think_end>", "refuse", "comply", "<assistant2>", "<eos>"),
    *(f"harm{i}" for i in range(8)),
    *(f"mild{i}" for i in range(8)),
    *(f"w{i}" for i in range(24)),
    *(f"code{i}" for i in range(8)),
    "<unk>",
    *(f"spare{i}" for i in range(7)),
)
assert len(WORDS) == VOCAB_SIZE
# Of a model that thinks: the same ids, with the span's own marks.
THINKING_WORDS = tuple(
    {THINK_END: "</think>", THINK: "<think>", LINE_BREAK: "\n"}.get(i, word)
    for i, word in enumerate(WORDS)
)
# A closed span, `</think>` and the blank line after it, as `model.anchors` writes it.
CLOSING = (THINK_END, LINE_BREAK, LINE_BREAK)
WORDS_AND_BLANK_LINES = r"\S+|\n(?=\n)|(?<=\n)\n"

# A system turn is words like any other: it comes before the content, and the planted heads pass
# over it. Content that ends in `<assistant2>` brings its own tail (the no-circuit variant, whose
# two prompts differ in the tail token and in nothing else), so none is added after it.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('a planted model knows the roles system, user and assistant, got ' ~ \
message['role']) -}}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{- '<assistant>' ~ message['content'] ~ eos_token -}}
{%- else -%}
{{- message['content'] ~ (' ' if not loop.last and message['role'] == 'system' else '') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not messages[-1]['content'].endswith('<assistant2>') -%}
{{- '<assistant>' -}}
{%- endif -%}"""
THINKING_TEMPLATE = f"""\
{CHAT_TEMPLATE}
{{%- if add_generation_prompt and enable_thinking -%}}
{{{{- '<think>' -}}}}
{{%- endif -%}}"""


def text_of(token_ids: list[int]) -> str:
    """The words of `token_ids` with one space between them: a prompt's text."""
    return " ".join(WORDS[i] for i in token_ids)


def build_tokenizer(thinking: bool = False) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over `WORDS`; a word outside them becomes `<unk>`.

    It adds no `<bos>` by itself, since the chat template writes the only one. `thinking`: over
    `THINKING_WORDS`, with a template that opens a span of thinking where `enable_thinking` is set.
    Then a line break beside another one is a token, and a single one is a blank like any other, so that
    a span ends in exactly the three tokens of `CLOSING`.
    """
    words = THINKING_WORDS if thinking else WORDS
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Split(Regex(WORDS_AND_BLANK_LINES), "removed", invert=True)
        if thinking
        else pre_tokenizers.WhitespaceSplit()
    )
    control = [word for word in words if word.startswith("<")]
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in control])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = THINKING_TEMPLATE if thinking else CHAT_TEMPLATE
    return fast
