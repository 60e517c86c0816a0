"""The training file of a repair: JSON lines of chat messages, the model's own thinking kept.

{"id": "pool-0007", "kind": "repair", "category": "scam", "loss": "response", "messages": [
    {"role": "user", "content": "..."},
    {"role": "assistant", "thinking": "the model's own", "content": "the corrected answer"}]}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from refusalscope.errors import InputError
from refusalscope.judge.reply import split_thinking
from refusalscope.prompts import Prompt
from refusalscope.prompts.files import read_table
from refusalscope.runs import write_atomic

Loss = Literal["response", "tail+response"]
Kind = Literal["repair", "general"]


@dataclass(frozen=True)
class TrainingRow:
    """A request, the thinking that is kept (`prompt.thinking`), and the answer that is taught.

    loss: on the answer alone, or on the tail of the thinking, the closing tokens and the answer
    ("tail+response"). kind: "repair", or "general" for harmless rows that hold everything else in place.
    """

    prompt: Prompt
    answer: str
    loss: Loss = "response"
    kind: Kind = "repair"

    def __post_init__(self) -> None:
        name = self.prompt.id
        if not self.answer.strip():
            raise InputError(f"the training row {name!r} has an empty answer; give it one")
        if self.prompt.thinking is not None and not self.prompt.thinking.strip():
            raise InputError(
                f"the training row {name!r} has an empty thinking; fill it or leave it out"
            )
        for field, value, known in (("loss", self.loss, Loss), ("kind", self.kind, Kind)):
            if value not in get_args(known):
                raise InputError(
                    f"the training row {name!r} has the {field} {value!r}; "
                    f"choose {' or '.join(get_args(known))}"
                )
        if self.loss == "tail+response" and self.prompt.thinking is None:
            raise InputError(
                f"the training row {name!r} has its loss on the thinking's tail but no thinking; "
                f"give it its thinking, or the loss response"
            )


def write_rows(path: Path, rows: Sequence[TrainingRow]) -> None:
    """Write the file, whole or not at all. Raises InputError for no rows or an id that stands twice."""
    _require_distinct(rows, str(path))
    lines = (json.dumps(_to_json(row), ensure_ascii=False) for row in rows)
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_rows(path: Path | str) -> list[TrainingRow]:
    """The rows of a training file, in order; `id`, `kind`, `category` and `loss` may be missing.

    Raises InputError, naming the line, for the first row that cannot be used: none is left out silently.
    """
    table = read_table(path)
    if table.bad:
        raise InputError(f"{path} line {table.bad[0].line}: {table.bad[0].reason}; mend the line")
    rows = []
    for line, values in table.rows:
        try:
            rows.append(_from_json(values, f"line-{line}"))
        except InputError as error:
            raise InputError(f"{path} line {line}: {error}") from None
    _require_distinct(rows, str(path))
    return rows


def _to_json(row: TrainingRow) -> dict[str, Any]:
    prompt = row.prompt
    turns = [("system", prompt.system)] if prompt.system else []
    messages = [{"role": role, "content": text} for role, text in [*turns, *prompt.history]]
    messages.append({"role": "user", "content": prompt.text})
    thinking = {} if prompt.thinking is None else {"thinking": prompt.thinking}
    messages.append({"role": "assistant", **thinking, "content": row.answer})
    return {
        "id": prompt.id,
        "kind": row.kind,
        "category": prompt.category,
        "source": prompt.source,
        "loss": row.loss,
        "messages": messages,
    }


def _from_json(values: Mapping[str, Any], name: str) -> TrainingRow:
    messages = values.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        raise InputError(
            "a training row has a list `messages` of at least a user and an assistant turn"
        )
    for message in messages:
        text = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not text or not isinstance(message.get("role"), str):
            raise InputError("every message has a `role` and a `content`, both text")
    *earlier, user, assistant = messages
    if (user["role"], assistant["role"]) != ("user", "assistant"):
        raise InputError("the last two messages are those of the user and of the assistant")
    system = earlier.pop(0)["content"] if earlier and earlier[0]["role"] == "system" else None
    thinking = assistant.get("thinking")
    if thinking is not None and not isinstance(thinking, str):
        raise InputError("the `thinking` of a message is text")
    inside, _, unclosed = split_thinking(assistant["content"])
    if inside or unclosed:
        raise InputError("the answer holds a thinking span; put it under `thinking` of the message")
    prompt = Prompt(
        id=str(values.get("id") or name),
        text=user["content"],
        category=values.get("category"),
        source=values.get("source"),
        system=system,
        thinking=thinking,
        history=tuple((turn["role"], turn["content"]) for turn in earlier),
    )
    return TrainingRow(
        prompt, assistant["content"], values.get("loss", "response"), values.get("kind", "repair")
    )


def _require_distinct(rows: Sequence[TrainingRow], path: str) -> None:
    if not rows:
        raise InputError(f"{path} would hold no training row; select at least one")
    name, count = Counter(row.prompt.id for row in rows).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path} has {count} rows with the id {name!r}; rename all but one")
