"""Named token positions of a rendered chat prompt, found by character offsets.

Nothing here counts tokens from the end by a fixed number: templates differ, and a tokenizer may merge
the last character of the instruction with the template (`boundary_merge`).
Source of the rule: harmfulness_and_refusal section 2 (`locate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from refusalscope.errors import InputError, ModelError
from refusalscope.model.sites import Positions
from refusalscope.prompts import Prompt

SENTINEL = "refusalscope0sentinel0instruction"
# A template that prints today's date gives other tokens tomorrow, so the date is pinned.
PINNED_DATE = "26 Jul 2024"
THINK_MARKERS = ("<think>", "</think>")


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model sees it: text, token ids and where things are.

    ids: prompt tokens, then reply tokens if a reply is teacher-forced. instruction: first and last token
    of the last user instruction (inclusive); template tokens follow it.
    """

    id: str
    text: str
    ids: tuple[int, ...]
    n_prompt: int
    instruction: tuple[int, int]
    anchors: Mapping[str, int] = field(hash=False)
    boundary_merge: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_template(self) -> int:
        """Number of template tokens after the instruction."""
        return self.n_prompt - 1 - self.instruction[1]

    def anchor(self, name: str) -> int:
        """Index of the token at a named anchor. Raises InputError for an anchor this prompt lacks."""
        if name in self.anchors:
            return self.anchors[name]
        kind, _, number = name.partition("[")
        if number.endswith("]") and number[:-1].lstrip("-").isdigit():
            index = int(number[:-1])
            if kind == "template" and -self.n_template <= index < self.n_template:
                base = self.n_prompt if index < 0 else self.instruction[1] + 1
                return base + index
            n_reply = len(self.ids) - self.n_prompt
            if kind == "reply" and -n_reply <= index < n_reply:
                return (len(self.ids) if index < 0 else self.n_prompt) + index
        known = [*self.anchors, f"template[0..{self.n_template - 1}]"]
        raise InputError(f"prompt {self.id!r} has no anchor {name!r}; it has {', '.join(known)}")

    def resolve(self, positions: Positions, policy: str = "every_step") -> tuple[int, ...]:
        """Token indices that a position spec names in this prompt.

        Under `every_step`, "all" and "last" cover teacher-forced reply tokens too, as they would
        cover generated ones; under `prompt_only` they end with the prompt.
        """
        if isinstance(positions, tuple):
            return tuple(self._index(index) for index in positions)
        end = len(self.ids) if policy == "every_step" else self.n_prompt
        first, last = self.instruction
        spans = {
            "all": range(end),
            "no_bos": range(1 if "bos" in self.anchors else 0, end),
            "last": range(self.n_prompt - 1, end),
            "instruction": range(first, last + 1),
            "template": range(last + 1, self.n_prompt),
            "reply": range(self.n_prompt, end),
        }
        if positions in spans:
            return tuple(spans[positions])
        return (self.anchor(positions),)

    def _index(self, index: int) -> int:
        resolved = index + self.n_prompt if index < 0 else index
        if not 0 <= resolved < len(self.ids):
            raise InputError(
                f"position {index} is outside prompt {self.id!r} of {len(self.ids)} tokens"
            )
        return resolved

    def with_reply(self, reply_ids: Sequence[int]) -> Rendered:
        """The same prompt followed by teacher-forced reply tokens."""
        return replace(self, ids=self.ids[: self.n_prompt] + tuple(reply_ids))


def render(prompt: Prompt, tokenizer: Any, max_length: int | None = None) -> Rendered:
    """Render a prompt with the tokenizer's chat template and locate its anchors.

    Raises ModelError where the tokenizer has no chat template or refuses the turns, InputError where
    the prompt is longer than the model can take: nothing is ever truncated.
    """
    text, start, stop = _text_and_span(prompt, tokenizer)
    if prompt.thinking is not None:
        text += _thinking(text, prompt.thinking)
    # Too long a prompt is refused below, in our own words.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    spans = [tuple(span) for span in encoded["offset_mapping"]]
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    if adds_bos and ids[:1] != [bos]:
        ids, spans = [bos, *ids], [(0, 0), *spans]
    # Only a doubled start is wrong: some tokenizers call their turn marker BOS, and it comes every turn.
    if bos is not None and ids[:2] == [bos, bos]:
        raise ModelError(
            f"prompt {prompt.id!r} renders with two BOS tokens at its start; "
            f"take the BOS token out of the chat template or of the prompt"
        )
    if max_length is not None and len(ids) > max_length:
        raise InputError(
            f"prompt {prompt.id!r} is {len(ids)} tokens long, the model takes {max_length}; "
            f"shorten it (nothing is truncated silently)"
        )
    inside = [i for i, (a, b) in enumerate(spans) if a < stop and b > start and b > a]
    if not inside:
        raise InputError(
            f"the tokenizer makes no token of the request of prompt {prompt.id!r}; write it in other characters"
        )
    first, last = inside[0], inside[-1]
    word = [
        i
        for i in range(first, last + 1)
        if any(c.isalnum() for c in text[spans[i][0] : spans[i][1]])
    ]
    anchors = {
        "instruction_first": first,
        "instruction_last": last,
        "instruction_last_word": word[-1] if word else last,
        "prompt_last": len(ids) - 1,
    }
    if bos is not None and ids[:1] == [bos]:
        anchors["bos"] = 0
    for name, marker in zip(("think_open", "think_close"), THINK_MARKERS, strict=True):
        at = text.rfind(marker, stop)
        if at >= 0:
            anchors[name] = max(
                i for i, (a, b) in enumerate(spans) if a < at + len(marker) and b > a
            )
    return Rendered(
        id=prompt.id,
        text=text,
        ids=tuple(ids),
        n_prompt=len(ids),
        instruction=(first, last),
        anchors=anchors,
        boundary_merge=spans[last][1] > stop,
    )


def reply_tokens(rendered: Rendered, reply: str, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of a reply as they continue the prompt.

    Tokenised together with the prompt where that leaves the prompt's tokens as they are, alone
    otherwise (a tokenizer that merges across the boundary would change the prompt).
    """
    joint = tokenizer(rendered.text + reply, add_special_tokens=False)["input_ids"]
    prompt = list(rendered.ids[: rendered.n_prompt])
    shift = len(prompt) - len(tokenizer(rendered.text, add_special_tokens=False)["input_ids"])
    if joint[: len(prompt) - shift] == prompt[shift:]:
        return tuple(joint[len(prompt) - shift :])
    return tuple(tokenizer(reply, add_special_tokens=False)["input_ids"])


def _messages(prompt: Prompt, content: str) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    turns += [{"role": role, "content": text} for role, text in prompt.history]
    return [*turns, {"role": "user", "content": content}]


def _text_and_span(prompt: Prompt, tokenizer: Any) -> tuple[str, int, int]:
    """Rendered text and the character span of the last user message in it, outer blanks left out."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "the tokenizer has no chat template, so the instruction and the template cannot be told "
            "apart; set tokenizer.chat_template, or take the instruction-tuned checkpoint"
        )

    # A tokenizer may hold several templates; this gives the one for a plain chat.
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = f"{{%- macro strftime_now(format) -%}}{PINNED_DATE}{{%- endmacro -%}}{template}"

    def run(content: str) -> str:
        try:
            return tokenizer.apply_chat_template(
                _messages(prompt, content),
                tokenize=False,
                add_generation_prompt=True,
                date_string=PINNED_DATE,
                chat_template=template,
                enable_thinking=prompt.thinking is not None,
            )
        except Exception as error:
            raise ModelError(
                f"the chat template refused prompt {prompt.id!r}: {error}; "
                f"check its system turn and the order of its earlier turns"
            ) from error

    if not prompt.text.strip():
        raise InputError(f"prompt {prompt.id!r} is empty")
    text, probe = run(prompt.text), run(SENTINEL)
    if prompt.system and prompt.system.strip() not in text:
        raise ModelError(
            f"the chat template leaves out the system turn of prompt {prompt.id!r}; "
            f"put its text before the request instead"
        )
    before, found, after = probe.rpartition(SENTINEL)
    content = prompt.text.strip()
    if found and text.startswith(before) and text.endswith(after):
        inner = text[len(before) : len(text) - len(after)]
        start = len(before) + len(inner) - len(inner.lstrip())
        return text, start, start + len(inner.strip())
    start = text.rfind(content)
    if start < 0:
        raise ModelError(
            f"the chat template changes the text of prompt {prompt.id!r}, so its instruction cannot "
            f"be located; use a template that keeps the user's text"
        )
    return text, start, start + len(content)


def _thinking(text: str, thinking: str) -> str:
    opening, closing = THINK_MARKERS
    head = "" if text.rstrip().endswith(opening) else f"{opening}\n"
    return f"{head}{thinking.strip()}\n{closing}\n\n"
