"""Chat over the wire: the offline reply to the byte, verdicts inline, blocking, and clients that hang up."""

from __future__ import annotations

import copy
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import numpy as np
import openai
import pytest
import torch
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from guard.serving import (
    LOOSE,
    MODEL,
    WAIT_S,
    fitted,
    offline_ids,
    offline_reply,
    running,
    text_that_is,
    texts,
)
from refusalscope.guard.monitor import ReplyMonitor
from refusalscope.guard.serve.reply import Order, Reply
from refusalscope.guard.serve.writer import Writer
from refusalscope.prompts import Prompt

SMOOTHING, HOLD_BACK = 0.75, 4


@pytest.fixture(scope="module")
def server():
    with running(blocking="off") as server:
        yield server


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(server, text: str, **options):
    return server.client().chat.completions.create(model=MODEL, messages=user(text), **options)


def stream(server, text: str, **options) -> list[ChatCompletionChunk]:
    return list(ask(server, text, stream=True, **options))


def said(chunks) -> str:
    return "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)


def end_of(chunks):
    return next(one for one in chunks if one.choices and one.choices[0].finish_reason)


def verdicts(server, text: str, **options):
    policy = options.pop("policy", None)
    asked = {"model": "any", **({"policy": policy} if policy else {})}
    return ask(server, text, extra_body={"moderation": asked}, **options)


def peaks(text: str) -> list[float]:
    """Smoothed score after each token of the offline reply, the slow way: the whole text at once."""
    guard = fitted()
    rendered = guard.chat_.render([Prompt("x", text)])[0].with_reply(offline_ids(text))
    with torch.no_grad():
        out = guard.chat_.model(torch.tensor([rendered.ids]), output_hidden_states=True)
    states = torch.stack([out.hidden_states[row][0] for row in guard.rows_], dim=1)
    smoothed, found = None, []
    for score in guard.harm_.score(states[rendered.n_prompt :]).tolist():
        smoothed = score if smoothed is None else SMOOTHING * smoothed + (1 - SMOOTHING) * score
        found.append(smoothed)
    return found


def watched(tau: float):
    """The guard with a monitor over its own harm axis."""
    guard = copy.copy(fitted())
    guard.monitor_ = ReplyMonitor(
        guard.harm_, SimpleNamespace(tau=tau), SMOOTHING, HOLD_BACK, 256, (), None, None
    )
    return guard


def test_the_reply_is_the_offline_one_in_the_clients_own_type(server):
    text = text_that_is(False)
    reply = ask(server, text)
    assert reply.choices[0].message.content == offline_reply(text)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len(offline_ids(text))
    rendered = fitted().chat_.render([Prompt("x", text)])[0]
    assert reply.usage.prompt_tokens == len(rendered)
    assert reply.moderation is None
    raw = server.http().post("/v1/chat/completions", json={"model": MODEL, "messages": user(text)})
    ChatCompletion.model_validate(raw.json(), strict=True)


@pytest.mark.parametrize("text", texts()[:6])
def test_the_pieces_of_a_stream_join_to_the_offline_reply(server, text):
    chunks = stream(server, text)
    assert said(chunks) == offline_reply(text) == ask(server, text).choices[0].message.content
    assert len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].finish_reason for one in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len({one.id for one in chunks}) == 1


def test_replies_written_at_once_are_each_their_own_and_moderations_go_between():
    with running(concurrency=4) as server, ThreadPoolExecutor(12) as pool:
        given = texts()[:12]
        moderated = pool.submit(server.client().moderations.create, input=list(given))
        found = list(pool.map(lambda text: said(stream(server, text)), given))
        scores = [one.latent["delta_harmful"] for one in moderated.result(WAIT_S).results]
    assert found == [offline_reply(text) for text in given]
    expected = [fitted().beliefs([Prompt("x", text)])[0].delta_harmful for text in given]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_replies_take_turns(monkeypatch):
    """Between two tokens of one reply every other one has had its turn."""
    turns = []
    plain = Writer.step

    def noted(self, reply):
        turns.append(reply.order.id)
        yield from plain(self, reply)

    monkeypatch.setattr(Writer, "step", noted)
    done = threading.Semaphore(0)
    with running() as server:
        engine = server.served.engine

        def hear(event):
            if hasattr(event, "reason"):
                done.release()

        with engine.changed:
            for name in "abc":
                engine.chat(Order(name, Prompt("x", texts()[0]), max_new_tokens=6), hear)
        for _ in range(3):
            assert done.acquire(timeout=WAIT_S)
    together = [turns[i : i + 3] for i, name in enumerate(turns) if name == "a"][2:6]
    assert together
    assert all(set(group) == {"a", "b", "c"} for group in together)


def test_usage_stands_in_the_last_chunk_when_asked(server):
    text = texts()[0]
    chunks = stream(server, text, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(offline_ids(text))
    assert all(one.usage is None for one in chunks[:-1])


def test_the_wire_of_a_stream_ends_with_done(server):
    body = {"model": MODEL, "messages": user(texts()[0]), "stream": True}
    answer = server.http().post("/v1/chat/completions", json=body)
    events = answer.text.split("\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        ChatCompletionChunk.model_validate(json.loads(event.removeprefix("data: ")), strict=True)


def pieces_of(ids: list[int], stops: tuple[str, ...] = (), hold_back: int = 0) -> list[str]:
    """What leaves a reply whose tokens are forced, piece by piece."""
    chat = fitted().chat_
    size = chat.anatomy.vocab_size
    end = chat.tokenizer.eos_token_id
    reply = Reply(
        Order("x", Prompt("x", "y"), stops=stops),
        chat.tokenizer,
        None,
        ends=[end],
        limit=len(ids),
        logits=torch.zeros(size),
        cache=None,
    )
    reply.hold_back = hold_back
    found = []
    for token in ids:
        reply.logits = torch.nn.functional.one_hot(torch.tensor(token), size).float()
        assert reply.choose() == token
        reason = reply.reason_to_end()
        found.append(reply.release() if reason is None else reply.rest())
        if reason is not None:
            break
    return found


@pytest.mark.parametrize("hold_back", [0, 3])
@pytest.mark.parametrize(
    "text",
    [
        "naïve café",
        "日本語 and 🙂🙃",
        "  spaced   out \n\n text  ",
        "a\n\n\nb",
        "\n",
        "don't . , !",
    ],
)
def test_a_character_of_several_tokens_leaves_whole(text, hold_back):
    chat = fitted().chat_
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces_of(ids, hold_back=hold_back)
    assert "".join(found) == chat.decode(ids)
    assert not any("�" in piece for piece in found)


@pytest.mark.parametrize("stop", ["ab", "aab", "b c", " ", "zzz", "aaabaa"])
def test_a_stop_string_never_leaves_not_even_in_part(stop):
    chat = fitted().chat_
    text = "aaaab aab c aaabaac"
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = chat.decode(ids)
    # The tokenizer joins letters: what is cut is the text, wherever its tokens end.
    assert "".join(pieces_of(ids, (stop,))) == whole.split(stop)[0].strip()


def test_a_stop_string_ends_the_reply_over_the_wire(server):
    text = text_that_is(False)
    whole = offline_reply(text)
    stop = whole[6:9]
    expected = whole.split(stop)[0].strip()
    reply = ask(server, text, stop=[stop, "never said"])
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].finish_reason == "stop"
    assert said(stream(server, text, stop=stop)) == expected


def test_a_reply_is_cut_at_its_length_and_says_so(server):
    text = text_that_is(False)
    for name in ("max_tokens", "max_completion_tokens"):
        reply = ask(server, text, **{name: 5})
        assert reply.choices[0].message.content == offline_reply(text, 5)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 5


def test_a_draw_is_repeated_by_its_seed(server):
    def draw(seed: int) -> str:
        return ask(server, texts()[0], temperature=1.5, seed=seed).choices[0].message.content

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1
    nearly_greedy = ask(server, texts()[0], temperature=5e-324).choices[0].message.content
    assert nearly_greedy == offline_reply(texts()[0])


def test_earlier_turns_and_a_system_turn_are_read(server):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": texts()[0]}]},
        {"role": "assistant", "content": "I cannot help with that."},
        {"role": "user", "content": texts()[1]},
    ]
    prompt = Prompt(
        "x",
        texts()[1],
        system="Be brief.",
        history=(("user", texts()[0]), ("assistant", "I cannot help with that.")),
    )
    chat = fitted().chat_
    expected = chat.decode(chat.generate(chat.render([prompt]), max_new_tokens=256)[0])
    reply = server.client().chat.completions.create(
        model=MODEL, messages=messages, extra_body={"moderation": {"model": "any"}}
    )
    assert reply.choices[0].message.content == expected
    latent = reply.moderation.input.results[0].latent
    belief = fitted().beliefs([prompt], LOOSE)[0]
    assert latent["delta_harmful"] == pytest.approx(belief.delta_harmful, abs=1e-4)
    assert latent["delta_refuse"] == pytest.approx(belief.delta_refuse, abs=1e-4)
    assert latent["t_inst_token"] == belief.t_inst_token


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        ({"model": "other"}, 404, "there is no model 'other' here"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages: the last message"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages.0.content: it is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: "),
        ({"n": 2}, 400, "n: "),
        ({"tools": [{"type": "function"}]}, 400, "tools: "),
        ({"temperature": 3}, 400, "temperature: "),
        ({"max_tokens": 257}, 400, "257 tokens of a reply were asked for, the server writes 256"),
        ({"stop": ["a"] * 5}, 400, "stop: "),
        (
            {"messages": user("one two " * 1_200)},
            400,
            "messages is ",
        ),
        (
            {"moderation": {"model": "m", "policy": {"output": {"mode": "block"}}}},
            400,
            "the server's guard has no reply monitor",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
                    }
                ]
            },
            400,
            "messages.0.content.0 is an image",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_that_cannot_be_met_is_told_in_a_sentence(server, given, status, says, streamed):
    body = {"model": MODEL, "messages": user(texts()[0]), "stream": streamed, **given}
    answer = server.http().post("/v1/chat/completions", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].startswith(says)


def test_what_clients_send_by_habit_is_accepted(server):
    body = {
        **{"model": MODEL, "messages": user(texts()[0]), "n": 1, "top_p": 1, "user": "u"},
        **{"presence_penalty": 0, "metadata": {}, "tools": None, "logprobs": False},
    }
    assert server.http().post("/v1/chat/completions", json=body).status_code == 200


def test_a_context_without_room_for_the_reply_is_told_with_the_counts(server):
    chat = fitted().chat_
    word, n = " bread", 940
    text = "bread" + word * n
    n_prompt = len(chat.render([Prompt("x", text)])[0])
    room = 1024 - n_prompt
    assert 20 < room < 256
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, text, max_tokens=room + 1)
    assert caught.value.code == "context_length_exceeded"
    assert f"{n_prompt} tokens long, and {room + 1} of a reply" in caught.value.message
    assert ask(server, text, max_tokens=room).choices


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize(
    ("blocking", "mode", "shown", "blocks"),
    [
        ("off", None, False, False),
        ("off", "score", True, False),
        ("off", "block", True, True),
        ("flag", None, True, False),
        ("flag", "block", True, True),
        ("block", None, True, True),
        ("block", "score", True, True),
    ],
)
def test_a_request_may_ask_for_more_than_the_server_does_never_for_less(
    server, monkeypatch, blocking, mode, shown, blocks, flagged, streamed
):
    app_settings = server.served.settings.model_copy(update={"blocking": blocking})
    monkeypatch.setattr("refusalscope.guard.serve.app.order_of", _with(app_settings))
    text = text_that_is(flagged)
    asked = {"model": "m", "policy": {"input": {"mode": mode}}} if mode else None
    options = {"extra_body": {"moderation": asked}} if mode else {}
    reply = stream(server, text, **options) if streamed else [ask(server, text, **options)]
    end = end_of(reply) if streamed else reply[0]
    told = end.choices[0].delta if streamed else end.choices[0].message
    assert (end.moderation is not None) == shown
    if shown:
        assert end.moderation.input.results[0].flagged == flagged
        assert end.moderation.output.code == "no_monitor"
    if shown and streamed:
        assert reply[0].moderation.input.results[0].flagged == flagged
    content = said(reply) if streamed else told.content
    if blocks and flagged:
        assert content == ""
        assert end.choices[0].finish_reason == "content_filter"
        assert "above the threshold" in told.refusal
    else:
        assert content == offline_reply(text)
        assert end.choices[0].finish_reason == "stop"
        assert told.refusal is None


def _with(settings):
    from refusalscope.guard.serve.orders import order_of

    return lambda body, _, guard, model: order_of(body, settings, guard, model)


def test_the_inline_belief_is_that_of_the_moderations_route(server):
    for text in texts()[:4]:
        inline = verdicts(server, text).moderation.input.results[0]
        alone = server.client().moderations.create(input=text).results[0]
        for name in ("delta_harmful", "delta_refuse"):
            assert inline.latent[name] == pytest.approx(alone.latent[name], abs=1e-4)
        assert inline.flagged == alone.flagged
        assert inline.categories == alone.categories.model_dump(by_alias=True)


@cache
def late_record() -> tuple[str, int]:
    """A reply with a new highest score past what is held back, and before its last token; and where."""
    for text in texts():
        flagged = fitted().beliefs([Prompt("x", text)], LOOSE)[0].flagged
        scores = peaks(text)
        for i in range(HOLD_BACK + 2, len(scores) - 1):
            if not flagged and scores[i] > max(scores[:i]) + 1e-3:
                return text, i
    raise AssertionError("the fixture has no such reply")


@pytest.mark.parametrize("streamed", [False, True])
def test_an_alarm_stops_the_reply_and_what_was_held_back_never_leaves(streamed):
    text, at = late_record()
    ids, chat = offline_ids(text), fitted().chat_
    highest = np.maximum.accumulate(peaks(text))
    tau = float(highest[at] + highest[at - 1]) / 2
    with running(watched(tau), blocking="block") as server:
        if streamed:
            chunks = stream(server, text)
            end, content = end_of(chunks), said(chunks)
            assert content == chat.decode(ids[: at - HOLD_BACK]).strip()
            refusal = end.choices[0].delta.refusal
            assert chunks[0].moderation.output.code == "pending"
        else:
            end = ask(server, text)
            assert end.choices[0].message.content == ""
            refusal = end.choices[0].message.refusal
        page = server.http().get("/metrics").text
    assert end.choices[0].finish_reason == "content_filter"
    assert "reply was stopped" in refusal
    verdict = end.moderation.output.results[0]
    assert verdict.flagged
    assert verdict.latent["peak"] == pytest.approx(highest[at], abs=1e-4)
    assert verdict.latent["threshold"] == pytest.approx(tau)
    assert 'refusalscope_blocked_total{where="output"} 1.0' in page


@pytest.mark.parametrize("max_tokens", [7, 256])
def test_a_reply_without_alarm_is_whole_and_scored_to_its_last_token(max_tokens):
    text = text_that_is(False)
    expected = max(peaks(text)[:max_tokens])
    with running(watched(10.0), blocking="block") as server:
        chunks = stream(server, text, max_tokens=max_tokens)
        whole = ask(server, text, max_tokens=max_tokens)
    assert said(chunks) == whole.choices[0].message.content == offline_reply(text, max_tokens)
    for end in (end_of(chunks), whole):
        verdict = end.moderation.output.results[0]
        assert not verdict.flagged
        assert verdict.latent["peak"] == pytest.approx(expected, abs=1e-4)


def test_an_alarm_at_the_very_last_token_still_stops_what_is_held_back():
    text = text_that_is(False)
    scores = peaks(text)
    at = int(np.argmax(scores))
    tau = (max(scores[:at], default=-1.0) + scores[at]) / 2
    with running(watched(tau), blocking="block") as server:
        chunks = stream(server, text, max_tokens=at + 1)
    assert end_of(chunks).choices[0].finish_reason == "content_filter"
    ids = offline_ids(text)
    assert said(chunks) == fitted().chat_.decode(ids[: max(0, at - HOLD_BACK)])


def test_flagging_alone_lets_an_alarming_reply_through_with_its_verdict():
    text = text_that_is(False)
    with running(watched(-10.0), blocking="flag") as server:
        chunks = stream(server, text)
    assert said(chunks) == offline_reply(text)
    assert end_of(chunks).choices[0].finish_reason == "stop"
    assert end_of(chunks).moderation.output.results[0].flagged


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_hangs_up_stops_its_reply_and_frees_its_place(monkeypatch, streamed):
    """The reply is held at its fourth token until the server knows that the client is gone."""
    jobs, known, reached = [], threading.Event(), threading.Event()
    plain = Writer.step

    def held(self, reply):
        if len(reply.ids) == 4:
            assert known.wait(WAIT_S)
            reached.set()
            assert jobs[0].cancelled.wait(WAIT_S)
        yield from plain(self, reply)

    monkeypatch.setattr(Writer, "step", held)
    with running(concurrency=1) as server:
        engine = server.served.engine
        admit = engine.chat

        def noted(order, deliver):
            jobs.append(admit(order, deliver))
            known.set()
            return jobs[-1]

        monkeypatch.setattr(engine, "chat", noted)
        body = {"model": MODEL, "messages": user(text_that_is(False)), "stream": streamed}
        # A bare socket hangs up when the test says so, not when a client's clock does.
        host, port = server.url.removeprefix("http://").split(":")
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + content)
            assert reached.wait(WAIT_S)
        server.wait(lambda: not engine.writing)
        assert len(jobs[0].reply.ids) <= 5
        assert len(offline_ids(text_that_is(False))) > 5
        monkeypatch.setattr(Writer, "step", plain)
        assert said(stream(server, texts()[0])) == offline_reply(texts()[0])


def test_a_reply_that_fails_midway_ends_its_stream_with_an_error_and_no_other_reply(monkeypatch):
    plain = Writer._read

    def broken(self, reply, token):
        if len(reply.ids) == 3:
            raise RuntimeError("the weights are gone")
        plain(self, reply, token)

    with running() as server:
        monkeypatch.setattr(Writer, "_read", broken)
        with pytest.raises(openai.APIError) as caught:
            stream(server, texts()[0])
        assert "weights" not in str(caught.value)
        with pytest.raises(openai.InternalServerError):
            ask(server, texts()[0])
        monkeypatch.undo()
        assert said(stream(server, texts()[0])) == offline_reply(texts()[0])
