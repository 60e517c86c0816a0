"""Training rows as tokens, and which of them the loss is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refusalscope.errors import InputError, ModelError
from refusalscope.model import ChatModel
from refusalscope.model.anchors import SENTINEL
from refusalscope.studies.cliff.traces import MARKERS, traces_of
from refusalscope.studies.cliff.training_file import TrainingRow

# What the loss of the transformers library leaves out.
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """ids: prompt, thinking, closing tokens, answer, end of turn. start: the first token the loss is on."""

    id: str
    ids: tuple[int, ...]
    start: int

    @property
    def labels(self) -> list[int]:
        """The ids that are learnt, IGNORED elsewhere: [tokens]."""
        return [IGNORED] * self.start + list(self.ids[self.start :])


def encode(chat: ChatModel, rows: Sequence[TrainingRow], tail: int = 20) -> list[Encoded]:
    """Rows as the model reads them, located by the chat template's character offsets.

    The loss is on the answer and its end of turn; under "tail+response" also on the last `tail` tokens of
    the thinking and on the closing tokens. Raises InputError for a row that is too long, or that has no
    thinking where the template opens a span of it.
    """
    end = _end_of_turn(chat)
    return [_encode(chat, row, tail, end) for row in rows]


def _encode(chat: ChatModel, row: TrainingRow, tail: int, end: Sequence[int]) -> Encoded:
    name = row.prompt.id
    if row.prompt.thinking is None:
        (rendered,) = chat.render([row.prompt])
        if rendered.text.rstrip().endswith(tuple(opening for opening, _ in MARKERS)):
            raise InputError(
                f"the chat template opens a span of thinking, but the training row {name!r} has none; "
                f"give it the model's own under `thinking`"
            )
        start = rendered.n_prompt
    else:
        (trace,) = traces_of(chat, [row.prompt])
        rendered, thinking = trace.rendered, trace.thinking
        kept = max(thinking.start, thinking.stop - tail)
        start = kept if row.loss == "tail+response" else rendered.n_prompt
    ids = (*chat.with_reply(rendered, row.answer.strip()).ids, *end)
    limit = getattr(chat.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and len(ids) > limit:
        raise InputError(
            f"the training row {name!r} is {len(ids)} tokens long with its answer, the model takes {limit}; "
            f"shorten it or leave it out"
        )
    return Encoded(name, ids, start)


def _end_of_turn(chat: ChatModel) -> list[int]:
    """What the template writes after an answer, up to the token that ends generation."""
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": SENTINEL}]
    try:
        text = chat.tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:
        raise ModelError(
            f"the chat template of {chat.id} refuses an assistant turn ({error}); mend the template"
        ) from error
    after = chat.tokenizer(text.rpartition(SENTINEL)[2], add_special_tokens=False)["input_ids"]
    ends = _ends(chat)
    found = next((i for i, token in enumerate(after) if token in ends), None)
    if found is not None:
        return after[: found + 1]
    if chat.tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {chat.id} has no end token; set tokenizer.eos_token")
    return [*after, chat.tokenizer.eos_token_id]


def _ends(chat: ChatModel) -> set[int]:
    configured = chat.model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {end for end in (*listed, chat.tokenizer.eos_token_id) if end is not None}
