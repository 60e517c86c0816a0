"""Where the thinking of a prompt stands in its tokens, and the model's own thinking.

text(x) is template, thinking, and what closes it (refusal_cliff section 2). Nothing is counted from the
end by a fixed number: tokenizers merge the closing characters in their own ways.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from refusalscope.errors import InputError, ModelError
from refusalscope.model import ChatModel, Rendered
from refusalscope.model.anchors import THINK_MARKERS
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import Prompt

# Marks of a span of thinking, as templates write them; the first that a model knows is its own.
MARKERS: tuple[tuple[str, str], ...] = (
    THINK_MARKERS,
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|think|>", "<|/think|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
)


@dataclass(frozen=True)
class Trace:
    """A prompt with its thinking, as tokens; `rendered` ends where the reply begins.

    thinking: indices of the tokens that hold nothing but thinking. closing: those after them, up to the
    prompt's last. A token that joins the last of the thinking with the line break after it is a closing
    token, so that closing[i] is the same piece of the template in every trace.
    """

    prompt: Prompt
    rendered: Rendered
    thinking: range
    closing: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rendered)

    @property
    def classes(self) -> list[str]:
        """The position class of each token: "prompt", "thinking", "closing[0]", "closing[1]", ..."""
        return [
            *["prompt"] * self.thinking.start,
            *["thinking"] * len(self.thinking),
            *(f"closing[{i}]" for i in range(len(self.closing))),
        ]


def markers_of(chat: ChatModel) -> tuple[str, str]:
    """The marks of thinking that the chat template or the vocabulary knows; ModelError where neither does."""
    template = chat.tokenizer.get_chat_template()
    vocabulary = chat.tokenizer.get_vocab()
    for opening, closing in MARKERS:
        if closing in template or opening in template or {opening, closing} <= vocabulary.keys():
            return opening, closing
    raise ModelError(
        f"the chat template of {chat.id} has no span of thinking (looked for "
        f"{', '.join(opening for opening, _ in MARKERS)}); take a reasoning model for this study"
    )


def traces_of(chat: ChatModel, prompts: Sequence[Prompt]) -> list[Trace]:
    """Prompts that carry their thinking, rendered and located.

    Raises ModelError for a model without spans of thinking, InputError for a prompt without thinking, with
    an empty one, with marks inside it, or longer than the context.
    """
    markers = markers_of(chat)
    for prompt in prompts:
        _check(prompt)
    return [
        _locate(chat, prompt, rendered, markers)
        for prompt, rendered in zip(prompts, chat.render(prompts), strict=True)
    ]


def think(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    warn: Callable[[str], None] = warnings.warn,
    progress: Progress | None = None,
) -> list[Prompt]:
    """The prompts with the model's own greedy thinking.

    A prompt whose thinking is not closed within `max_new_tokens`, or is empty, is left out, and `warn` says
    how many were. Raises InputError where none is left, or where prompt and thinking cannot fit the context.
    """
    opening, closing = markers_of(chat)
    opened = [
        _retold(chat, rendered, rendered.text.removesuffix(_tail(THINK_MARKERS[1])), opening)
        for rendered in chat.render([replace(prompt, thinking="") for prompt in prompts])
    ]
    limit, longest = _context(chat), max((len(one) for one in opened), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} of thinking do not fit the context of "
            f"{limit} tokens; lower the thinking tokens to {max(0, limit - longest)} or shorten the prompts"
        )
    track = (progress or Silent()).track("thinking")
    replies = chat.generate(opened, max_new_tokens=max_new_tokens, progress=track)
    kept, unclosed, empty = [], 0, 0
    for prompt, reply in zip(prompts, replies, strict=True):
        # The marks are special tokens of many tokenizers, so nothing may be left out.
        text, closed, _ = chat.tokenizer.decode(reply).partition(closing)
        thinking = text.strip().removeprefix(opening).strip()
        unclosed += not closed
        empty += bool(closed) and not thinking
        if closed and thinking:
            kept.append(replace(prompt, thinking=thinking))
    if unclosed or empty:
        warn(
            f"{unclosed} of {len(prompts)} prompts did not close their thinking within {max_new_tokens} "
            f"tokens and {empty} thought nothing; they are left out."
        )
    if prompts and not kept:
        raise InputError(
            f"none of {len(prompts)} prompts has thinking that is closed within {max_new_tokens} tokens; "
            f"raise the thinking tokens, or give traces in a column 'thinking'"
        )
    return kept


def _check(prompt: Prompt) -> None:
    if prompt.thinking is None:
        raise InputError(
            f"prompt {prompt.id!r} has no thinking; let the model think first, or give a column 'thinking'"
        )
    if not prompt.thinking.strip():
        raise InputError(
            f"the thinking of prompt {prompt.id!r} is empty; leave the prompt out or give it some"
        )
    inside = [mark for pair in MARKERS for mark in pair if mark in prompt.thinking]
    if inside:
        raise InputError(
            f"the thinking of prompt {prompt.id!r} holds the mark {inside[0]}; give only the text between "
            f"the marks, and leave out traces that never close"
        )


def _locate(chat: ChatModel, prompt: Prompt, rendered: Rendered, markers: tuple[str, str]) -> Trace:
    assert prompt.thinking is not None
    thinking, (opening, closing) = prompt.thinking.strip(), markers
    head = rendered.text.removesuffix(f"{thinking}{_tail(THINK_MARKERS[1])}")
    rendered = _retold(chat, rendered, head, opening, f"{thinking}{_tail(closing)}")
    stop = len(rendered.text) - len(_tail(closing))
    start = stop - len(thinking)
    spans = _spans(chat, rendered)
    after = next(i for i, (_, end) in enumerate(spans) if end > stop)
    first = next(i for i, (_, end) in enumerate(spans) if end > start)
    if first >= after:
        raise InputError(
            f"the thinking of prompt {prompt.id!r} has no token of its own; leave the prompt out"
        )
    return Trace(prompt, rendered, range(first, after), tuple(range(after, len(rendered))))


def _tail(closing: str) -> str:
    return f"\n{closing}\n\n"


def _retold(
    chat: ChatModel, rendered: Rendered, head: str, opening: str, rest: str = ""
) -> Rendered:
    """`rendered` with the text `head`, its opening mark made the model's own, and `rest`.

    All that changes comes after the instruction, whose place stays.
    """
    usual = f"{THINK_MARKERS[0]}\n"
    if opening != THINK_MARKERS[0]:
        head = head.removesuffix(usual)
        head = head if head.rstrip().endswith(opening) else f"{head}{opening}\n"
    text = head + rest
    if text == rendered.text:
        return rendered
    shift = len(rendered.ids) - len(_encode(chat, rendered.text)["input_ids"])
    ids = (*rendered.ids[:shift], *_encode(chat, text)["input_ids"])
    limit = _context(chat)
    if limit is not None and len(ids) > limit:
        raise InputError(
            f"prompt {rendered.id!r} is {len(ids)} tokens long, the model takes {limit}; shorten it"
        )
    names = ("bos", "instruction_first", "instruction_last", "instruction_last_word")
    anchors = {name: at for name, at in rendered.anchors.items() if name in names}
    anchors["prompt_last"] = len(ids) - 1
    return replace(rendered, text=text, ids=ids, n_prompt=len(ids), anchors=anchors)


def _spans(chat: ChatModel, rendered: Rendered) -> list[tuple[int, int]]:
    """Characters of each token; a BOS token that the text does not hold has none."""
    spans = [tuple(span) for span in _encode(chat, rendered.text)["offset_mapping"]]
    return [(0, 0)] * (len(rendered.ids) - len(spans)) + spans


def _encode(chat: ChatModel, text: str) -> dict:
    return chat.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )


def _context(chat: ChatModel) -> int | None:
    return getattr(chat.model.config.get_text_config(), "max_position_embeddings", None)
