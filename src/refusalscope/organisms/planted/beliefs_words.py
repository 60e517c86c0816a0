"""The words of a two-beliefs organism, their roles, its tokenizer and its chat template.

Topics, cues and fillers are made-up words of one shape, and a seed deals out their roles, so that no
spelling tells harmful from harmless. Only the questions of reply inversion are English.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refusalscope.organisms.chat.replies import HARM_QUESTIONS, harm_question

# The four published ones.
QUESTIONS = HARM_QUESTIONS[:4]
REFUSE, COMPLY, YES, NO = "refuse", "comply", "Certainly", "No"
PAD, BOS, END, UNKNOWN = "<pad>", "<bos>", "<end>", "<unk>"
CONTROL = (PAD, BOS, END, UNKNOWN, "<system>", "<user>", "<assistant>")
PER_CLASS = 36
FILLERS = 24
MADE_UP = 4 * PER_CLASS + FILLERS
PATTERN = r"\n|\w+|[^\w\s]"


def _made_up() -> tuple[str, ...]:
    """Two syllables a word, spread evenly over all pairs of syllables."""
    syllables = ["".join(pair) for pair in product("bdfklmnprstvz", "aiou")]
    pairs = ["".join(pair) for pair in product(syllables, syllables)]
    return tuple(pairs[i] for i in np.linspace(0, len(pairs) - 1, MADE_UP).astype(int))


def pieces(text: str) -> list[str]:
    """The tokens of a text, as the tokenizer cuts it: words, marks and line breaks."""
    return re.findall(PATTERN, text)


_ENGLISH = " ".join([harm_question("", q) for q in QUESTIONS] + [REFUSE, COMPLY, YES, NO, "."])
WORDS = (*CONTROL, *dict.fromkeys(pieces(_ENGLISH)), *_made_up())
VOCABULARY = {word: i for i, word in enumerate(WORDS)}

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<' ~ message['role'] ~ '>\n' ~ message['content'] | trim ~ '<end>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<assistant>\n' -}}
{%- endif -%}"""
HEAD, TAIL = (BOS, "<user>", "\n"), (END, "\n", "<assistant>", "\n")


@dataclass(frozen=True)
class Roles:
    """What the made-up words mean: `topics[harmful]` and `cues[refuse]` have PER_CLASS words each."""

    topics: dict[bool, tuple[str, ...]]
    cues: dict[bool, tuple[str, ...]]
    fillers: tuple[str, ...]


def deal_roles(seed: int) -> Roles:
    """The roles that a seed deals out; the tokenizer is the same for every seed."""
    words = [str(word) for word in np.random.default_rng((seed, 0)).permutation(WORDS[-MADE_UP:])]
    groups = [tuple(words[i * PER_CLASS : (i + 1) * PER_CLASS]) for i in range(4)]
    return Roles(
        {True: groups[0], False: groups[1]},
        {True: groups[2], False: groups[3]},
        tuple(words[4 * PER_CLASS :]),
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over `WORDS`: words, marks and line breaks are tokens, blanks are none."""
    tokenizer = Tokenizer(models.WordLevel(vocab=VOCABULARY, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in CONTROL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
