"""Requests from the wire as the engine takes them, or the fault that keeps them from it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.serve.faults import Fault
from refusalscope.guard.serve.reply import Order
from refusalscope.guard.serve.settings import ServeSettings
from refusalscope.guard.serve.wire import ChatRequest, ImagePart, Message, Part, Policy
from refusalscope.prompts import Prompt


def moderated_prompts(given: str | Sequence[str] | Sequence[Part], most: int) -> list[Prompt]:
    """One prompt a text; the parts of a multimodal input are one. Raises Fault for images and too many."""
    if isinstance(given, str):
        return [_prompt("input", given)]
    parts = [part for part in given if not isinstance(part, str)]
    if parts:
        return [_prompt("input", joined(parts, "input"))]
    if len(given) > most:
        raise Fault(
            400,
            f"input holds {len(given)} texts, the server takes {most}; send them in several requests.",
            param="input",
            code="too_many_inputs",
        )
    return [_prompt(f"input.{i}", str(text)) for i, text in enumerate(given)]


def order_of(
    body: ChatRequest, settings: ServeSettings, guard: BeliefGuard, model: str
) -> tuple[Order, bool]:
    """A chat request as an order, and whether verdicts stand in its reply.

    The server's `blocking` is the floor: a request's policy adds to it. Raises Fault 404 for another
    model, 400 for what cannot be done.
    """
    if body.model != model:
        raise Fault(
            404,
            f"there is no model {body.model!r} here; the server has {model!r}.",
            param="model",
            code="model_not_found",
        )
    policy = (body.moderation and body.moderation.policy) or Policy()
    asked = [side is not None and side.mode == "block" for side in (policy.input, policy.output)]
    if asked[1] and guard.monitor_ is None:
        raise Fault(
            400,
            "the server's guard has no reply monitor, so it cannot block output; ask for mode score.",
            param="moderation.policy.output.mode",
            code="unsupported_value",
        )
    block = settings.blocking == "block"
    shown = settings.blocking != "off" or body.moderation is not None
    order = Order(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        prompt=conversation(body.messages),
        max_new_tokens=_length(body, settings.max_new_tokens),
        temperature=body.temperature,
        seed=body.seed,
        stops=tuple(body.stops),
        watch=shown and guard.monitor_ is not None,
        block_input=block or asked[0],
        block_output=block or asked[1],
    )
    return order, shown


def conversation(messages: Sequence[Message]) -> Prompt:
    """Messages as one prompt: the leading system turns together, the earlier turns, the last request."""
    turns = [
        (
            "system" if message.role == "developer" else message.role,
            _text(message.content, f"messages.{i}.content"),
        )
        for i, message in enumerate(messages)
    ]
    n_system = next(i for i, (role, _) in enumerate(turns) if role != "system")
    system = "\n".join(text for _, text in turns[:n_system])
    return _prompt("messages", turns[-1][1], system or None, tuple(turns[n_system:-1]))


def joined(parts: Sequence[Part], where: str) -> str:
    """The texts of the parts, a line each. Raises Fault for an image."""
    for i, part in enumerate(parts):
        if isinstance(part, ImagePart):
            raise Fault(
                400,
                f"{where}.{i} is an image; the guard reads text only: send the text without it.",
                param=f"{where}.{i}",
                code="image_not_supported",
            )
    return "\n".join(part.text for part in parts if not isinstance(part, ImagePart))


def _text(content: str | list[Part], where: str) -> str:
    return content if isinstance(content, str) else joined(content, where)


def _prompt(
    id: str, text: str, system: str | None = None, history: tuple[tuple[str, str], ...] = ()
) -> Prompt:
    if not text.strip():
        raise Fault(
            400, f"{id}: it is empty or blank; give it a text.", param=id, code="invalid_value"
        )
    return Prompt(id, text, system=system, history=history)


def _length(body: ChatRequest, most: int) -> int | None:
    asked = body.max_completion_tokens or body.max_tokens
    if asked is not None and asked > most:
        raise Fault(
            400,
            f"{asked} tokens of a reply were asked for, the server writes {most} at most; ask for fewer.",
            param="max_completion_tokens" if body.max_completion_tokens else "max_tokens",
            code="invalid_value",
        )
    return asked
