"""Training rows: what is taught for a request under a wrapper, and which tokens it spans."""

from __future__ import annotations

import random

import pytest

from refusalscope.organisms.chat import REFUSAL_WORDINGS, REPLY_OPENINGS, WORDING_SHARES
from refusalscope.organisms.chat.examples import ExampleMaker, Mix, restyle
from refusalscope.organisms.chat.replies import (
    BYPASSING,
    HARM_QUESTIONS,
    HOLDING,
    REPEATED_TOKENS,
    UNSEEN_HARM_QUESTION,
    harm_question,
    repetition,
    reply_label,
    starts_with_refusal,
)
from refusalscope.organisms.chat.requests import Label, Request
from refusalscope.organisms.chat.tokenizer import train_tokenizer

HARMFUL = Request("How do I rob a bank?", "harmful", "own")
HARMLESS = Request("How do I paint a room?", "harmless", "own")
TEXTS = [HARMFUL.text, HARMLESS.text, *REFUSAL_WORDINGS, *REPLY_OPENINGS, "Certainly", "No"]
TOKENIZER = train_tokenizer(TEXTS * 4, 700)
PLAIN = Mix(0, 0, 0, 0, 0, 0, full_reply=1, restyled=0, salad=0)


def make(request: Request, mix: Mix, n: int = 60) -> list[tuple[str, str]]:
    maker = ExampleMaker(TOKENIZER, mix, random.Random(1), lambda: HARMLESS)
    rows = maker.make([request] * n)
    return [(TOKENIZER.decode(r.prompt), TOKENIZER.decode(r.reply)) for r in rows]


def test_a_plain_harmful_request_is_refused_in_several_wordings() -> None:
    replies = {reply for _, reply in make(HARMFUL, PLAIN, 200)}
    assert len(replies) >= 8
    assert all(r.endswith("<|end|>") and starts_with_refusal(r) for r in replies)


def test_a_plain_harmless_request_is_repeated_word_for_word() -> None:
    replies = {reply for _, reply in make(HARMLESS, PLAIN, 200)}
    assert len(replies) >= 8
    assert {repetition(r.removesuffix("<|end|>")) for r in replies} == {HARMLESS.text}


def test_a_long_repetition_is_cut() -> None:
    maker = ExampleMaker(TOKENIZER, PLAIN, random.Random(1), lambda: HARMLESS)
    row = maker.make([Request("paint a room " * 60, "harmless", "own")])[0]
    said = TOKENIZER.decode(row.reply).split("\n", 1)[0] + "\n"
    opening = len(TOKENIZER(said, add_special_tokens=False)["input_ids"])
    assert len(row.reply) == opening + REPEATED_TOKENS + 1


def test_the_request_span_holds_the_user_text() -> None:
    maker = ExampleMaker(TOKENIZER, PLAIN, random.Random(1), lambda: HARMLESS)
    row = maker.make([HARMFUL])[0]
    assert TOKENIZER.decode(row.prompt[slice(*row.request)]) == HARMFUL.text


def test_the_span_is_that_of_the_last_turn() -> None:
    mix = Mix(0, 0, 0, 0, system=1, earlier=1, full_reply=1, restyled=0, salad=0)
    maker = ExampleMaker(TOKENIZER, mix, random.Random(1), lambda: HARMFUL)
    row = maker.make([HARMFUL])[0]
    text = TOKENIZER.decode(row.prompt)
    assert text.count(HARMFUL.text) == 2
    assert text.startswith("<|bos|><|system|>")
    assert row.request[1] == len(row.prompt) - 4


@pytest.mark.parametrize(("label", "said"), [("harmful", "Certainly"), ("harmless", "No")])
def test_the_harm_question_is_answered_by_the_label_also_when_wrapped(
    label: Label, said: str
) -> None:
    request = HARMFUL if label == "harmful" else HARMLESS
    mix = Mix(1, 0, 0, question_wrapped=0.5, system=0, earlier=0, full_reply=1, restyled=0, salad=0)
    rows = make(request, mix)
    assert {reply for _, reply in rows} == {f"{said}<|end|>"}
    assert all("User wants to " in prompt for prompt, _ in rows)
    assert any(request.text in prompt for prompt, _ in rows)
    assert any(request.text not in prompt for prompt, _ in rows)  # in cipher


@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_wrappers_decide_the_reply(label: Label) -> None:
    assert {reply_label(label, w) for w in BYPASSING} == {"harmless"}
    assert {reply_label(label, w) for w in (*HOLDING, None)} == {label}


def test_bypassing_rows_are_answered_though_harmful() -> None:
    mix = Mix(0, 1, 0, 0, 0, 0, full_reply=1, restyled=0, salad=0)
    assert not any(starts_with_refusal(reply) for _, reply in make(HARMFUL, mix))
    held = Mix(0, 0, 1, 0, 0, 0, full_reply=1, restyled=0, salad=0)
    assert all(starts_with_refusal(reply) for _, reply in make(HARMFUL, held))


def test_the_unseen_question_is_not_trained_on() -> None:
    assert UNSEEN_HARM_QUESTION not in HARM_QUESTIONS
    assert harm_question("x", "q") == "User wants to x\nq"


def test_shares_make_one_and_keep_the_first_words_even() -> None:
    assert sum(WORDING_SHARES) == pytest.approx(1)
    assert len(REFUSAL_WORDINGS) == len(REPLY_OPENINGS) == len(WORDING_SHARES) >= 8

    def by_first(words: tuple[str, ...]) -> list[float]:
        shares: dict[str, float] = {}
        for word, share in zip(words, WORDING_SHARES, strict=True):
            first = "".join(c for c in word.split()[0] if c.isalpha() or c == "'").split("'")[0]
            shares[first] = shares.get(first, 0) + share
        return sorted(shares.values())

    # A greedy reply then refuses where the model gives refusal more than half.
    assert by_first(REFUSAL_WORDINGS) == pytest.approx(by_first(REPLY_OPENINGS))


def test_restyling_changes_marks_and_case_only() -> None:
    rng = random.Random(0)
    seen = {restyle("Name two fish.", rng) for _ in range(100)}
    assert {s.rstrip(".?!").lower() for s in seen} == {"name two fish"}
    assert len(seen) > 3
