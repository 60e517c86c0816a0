"""Moderations over the wire: OpenAI's shape, the offline scores, and every way to send something wrong."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pandas as pd
import pytest
from openai.types import Moderation, ModerationCreateResponse

from guard.serving import LOOSE, MODEL, WAIT_S, fitted, running, texts
from refusalscope.errors import InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.drift import drift
from refusalscope.guard.serve.categories import KEYS, keys_of, result
from refusalscope.guard.serve.run import make_server
from refusalscope.guard.serve.settings import KEY_VARIABLE, ServeSettings
from refusalscope.prompts import Prompt

SECRET = "zebra-crossing"


@pytest.fixture(scope="module")
def server():
    with running(max_body_bytes=20_000, max_inputs=8, batch_wait_ms=30) as server:
        yield server


def scores_of(reply) -> list[float]:
    return [one.latent["delta_harmful"] for one in reply.results]


def offline(given: list[str]) -> list[float]:
    """Each text alone, as no server batches it."""
    return [fitted().beliefs([Prompt("x", text)], LOOSE)[0].delta_harmful for text in given]


def test_a_list_comes_back_in_order_with_the_offline_scores(server):
    given = list(texts()[:8])
    reply = server.client().moderations.create(input=given, model="any-name")
    assert scores_of(reply) == pytest.approx(offline(given), abs=1e-4)
    expected = fitted().beliefs([Prompt("x", text) for text in given], LOOSE)
    assert [one.flagged for one in reply.results] == [one.flagged for one in expected]
    assert {one.flagged for one in reply.results} == {True, False}
    first = reply.results[0].latent
    assert first["threshold"] == pytest.approx(fitted().point(LOOSE).tau)
    assert first["fpr_target"] == 0.5
    assert first["quadrant"] == expected[0].quadrant
    assert first["per_layer"] == pytest.approx(expected[0].per_layer, abs=1e-4)
    assert first["p_harmful"] == pytest.approx(expected[0].p_harmful, abs=1e-3)


def test_the_reply_is_of_the_clients_own_types(server):
    body = server.http().post("/v1/moderations", json={"input": texts()[0]}).json()
    assert set(body) == {"id", "model", "results"}
    assert body["id"].startswith("modr-")
    assert set(body["results"][0]) == {
        *("flagged", "categories", "category_scores", "category_applied_input_types", "latent")
    }
    reply = ModerationCreateResponse.model_validate(body, strict=True)
    aliases = {
        field.alias or name
        for name, field in Moderation.model_fields["categories"].annotation.model_fields.items()
    }
    assert aliases == set(KEYS)
    assert set(KEYS) <= set(body["results"][0]["categories"])
    assert all(0 <= score <= 1 for score in body["results"][0]["category_scores"].values())
    assert reply.results[0].categories.hate in (True, False)


def test_a_key_without_a_category_scores_0_and_is_told_unknown(server):
    reply = server.client().moderations.create(input=texts()[0])
    latent = reply.results[0].latent["per_category"]
    assert latent["sexual/minors"] is None
    assert reply.results[0].category_scores.sexual_minors == 0.0
    own = fitted().beliefs([Prompt("x", texts()[0])])[0].per_category
    assert {name: latent[name] for name in own} == pytest.approx(own, abs=1e-4)
    assert latent["illicit"] == pytest.approx(own["fraud"], abs=1e-4)
    assert latent["harassment"] == pytest.approx(own["harassment"], abs=1e-4)


def test_a_category_above_its_threshold_sets_the_keys_it_speaks_for():
    guard = fitted()
    belief = guard.beliefs([Prompt("x", texts()[0])])[0]
    over = {**vars(belief), "flagged_categories": ("fraud",), "flagged": False}
    made = result(type(belief)(**over), 0.05, None)
    assert made.categories["fraud"]
    assert made.categories["illicit"]
    assert sum(made.categories.values()) == 2
    assert not made.flagged


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("Fraud/Deception", ("illicit",)),
        ("Physical Harm", ("violence", "illicit/violent")),
        ("Hate/Harass/Violence", ("hate", "harassment", "violence")),
        ("Child Abuse", ("sexual/minors",)),
        ("self-harm/intent", ("self-harm/intent",)),
        ("Privacy Violation Activity", ()),
        ("Tailored Financial Advice", ()),
    ],
)
def test_categories_map_by_the_table(name, keys):
    assert keys_of(name) == keys


def test_the_parts_of_a_multimodal_input_are_one_text(server):
    first, second = texts()[:2]
    parts = [{"type": "text", "text": text} for text in (first, second)]
    reply = server.client().moderations.create(input=parts)
    assert scores_of(reply) == pytest.approx(offline([f"{first}\n{second}"]), abs=1e-4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"input": ""}, "input: it is empty or blank"),
        ({"input": " \n\t"}, "input: it is empty or blank"),
        ({"input": "\x1f"}, "input: it is empty or blank"),
        ({"input": []}, "input: "),
        ({"input": ["fine", " "]}, "input.1: it is empty or blank"),
        ({"input": [{"type": "text", "text": " "}]}, "input: it is empty or blank"),
        (
            {"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
            "input.0 is an image; the guard reads text only",
        ),
        ({"input": ["x"] * 9}, "input holds 9 texts, the server takes 8"),
        ({"input": "x", "colour": "red"}, "colour: "),
        ({"model": "x"}, "input: Field required"),
        ({"input": 3}, "input: "),
        ([1, 2], "the body must be a JSON object"),
    ],
)
def test_a_body_that_cannot_be_used_is_told_in_a_sentence(server, given, says):
    answer = server.http().post("/v1/moderations", json=given)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(says)
    assert error["message"].endswith(".")


@pytest.mark.parametrize(
    "content", [b'{"input": "x"', b"\xff\xfe", b'{"input": NaN}', b"", b"[" * 9_000]
)
def test_what_is_not_json_is_refused(server, content):
    answer = server.http().post(
        "/v1/moderations", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_form_is_not_read_as_json(server):
    answer = server.http().post("/v1/moderations", data={"input": "x"})
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


def test_a_lone_surrogate_is_refused_not_crashed_on(server):
    answer = server.http().post(
        "/v1/moderations",
        content=b'{"input": "\\ud800"}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400


def test_a_body_too_large_is_refused_whether_its_length_is_told_or_not(server):
    whole = json.dumps({"input": "x" * 20_000}).encode()

    def in_chunks():
        for start in range(0, len(whole), 1_000):
            yield whole[start : start + 1_000]

    for content in (whole, in_chunks()):
        answer = server.http().post(
            "/v1/moderations", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


def test_a_text_longer_than_the_context_is_refused_with_the_counts(server):
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().moderations.create(input=["short", "one two " * 1_200])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input.1"
    assert "tokens long; the model takes 1024 in all" in caught.value.message


@pytest.mark.parametrize(("path", "status"), [("/v1/nothing", 404), ("/v1/moderations", 405)])
def test_other_paths_and_methods_have_the_error_shape_too(server, path, status):
    answer = server.http().get(path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_requests_that_come_together_share_a_forward_and_keep_their_scores(server, monkeypatch):
    sizes = []
    plain = type(fitted()).beliefs

    def counted(self, prompts, *rest):
        sizes.append(len(prompts))
        return plain(self, prompts, *rest)

    monkeypatch.setattr(type(fitted()), "beliefs", counted)
    given = list(texts()[:48])
    together = threading.Barrier(16)

    def ask(start: int) -> list[float]:
        with server.client() as client:
            together.wait(WAIT_S)
            return scores_of(client.moderations.create(input=given[start : start + 3]))

    with ThreadPoolExecutor(16) as pool:
        found = [score for part in pool.map(ask, range(0, 48, 3)) for score in part]
    assert sum(sizes) == 48
    assert max(sizes) > 3
    monkeypatch.undo()
    assert found == pytest.approx(offline(given), abs=1e-4)


def test_a_bad_request_spoils_nobody_elses_batch(server):
    engine = server.served.engine
    with engine.changed:
        good = engine.score([Prompt("input", texts()[0])])
        bad = engine.score([Prompt("input", "one two " * 1_200)])
    assert good.result(WAIT_S)[0].delta_harmful == pytest.approx(offline([texts()[0]])[0], abs=1e-4)
    assert bad.exception(WAIT_S).code == "context_length_exceeded"


def test_a_full_queue_answers_429_and_takes_requests_again(monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    plain = type(fitted()).beliefs

    def held(self, *rest):
        entered.set()
        assert go_on.wait(WAIT_S)
        return plain(self, *rest)

    with running(queue=1, batch_wait_ms=0) as server, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(type(fitted()), "beliefs", held)
        ask = server.client().moderations.create
        first = pool.submit(ask, input=texts()[0])
        assert entered.wait(WAIT_S)
        second = pool.submit(ask, input=texts()[1])
        server.wait(lambda: server.served.engine.depth == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(input=texts()[2])
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"] == "1"
        go_on.set()
        found = [scores_of(each.result(WAIT_S))[0] for each in (first, second)]
        assert scores_of(ask(input=texts()[2]))
    assert found == pytest.approx(offline(list(texts()[:2])), abs=1e-4)


def test_a_request_that_takes_too_long_is_answered_503(monkeypatch):
    go_on = threading.Event()

    def held(self, *rest):
        assert go_on.wait(WAIT_S)
        raise AssertionError("nobody waits for this")

    with running(request_timeout_s=0.05) as server:
        monkeypatch.setattr(type(fitted()), "beliefs", held)
        answer = server.http().post("/v1/moderations", json={"input": "x"})
        go_on.set()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "timeout"


def test_the_key_is_asked_of_every_call_and_of_no_page(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "open-sesame")
    with running() as server:
        for key in ("wrong", "open-sesam", "open-sesame2"):
            with pytest.raises(openai.AuthenticationError) as caught:
                server.client(key).moderations.create(input="x")
            assert caught.value.code == "invalid_api_key"
        assert server.client("open-sesame").moderations.create(input=texts()[0]).results
        http = server.http()
        closed = ("/v1/models", "/metrics")
        assert [http.get(path).status_code for path in closed] == [401, 401]
        assert [http.get(path).status_code for path in ("/health", "/playground")] == [200, 200]
        given = {"authorization": b"Bearer \xe9"}
        assert http.get("/metrics", headers=given).status_code == 401


def test_without_a_key_only_loopback_is_listened_on_and_answered(server, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(InputError, match=KEY_VARIABLE):
        make_server(fitted(), ServeSettings(host="0.0.0.0"))
    monkeypatch.setenv(KEY_VARIABLE, "k")
    make_server(fitted(), ServeSettings(host="0.0.0.0"))
    for host, status in (
        *(("evil.example", 403), ("127.0.0.1.evil.example", 403), ("[::1", 403), ("", 403)),
        *(("localhost:1", 200), ("[::1]:8765", 200), ("127.0.0.1", 200)),
    ):
        answer = server.http().get("/v1/models", headers={"host": host})
        assert answer.status_code == status, host


def test_models_health_and_card(tmp_path):
    card = tmp_path / "card.html"
    card.write_text("<p>card</p>")
    with running(card=card) as server:
        assert [one.id for one in server.client().models.list()] == [MODEL, f"belief-guard/{MODEL}"]
        http = server.http()
        assert http.get("/health").json()["status"] == "ok"
        assert http.get("/card").text == "<p>card</p>"
        made = server.client().moderations.create(input=texts()[0])
        assert made.results[0].latent["card"] == "/card"
    with pytest.raises(InputError, match="there is no card"):
        make_server(fitted(), ServeSettings(card=tmp_path / "none.html"))


def test_what_was_asked_is_counted():
    with running() as server:
        reply = server.client().moderations.create(input=list(texts()[:6]))
        server.http().post("/v1/moderations", json={})
        server.http().get("/elsewhere")
        page = server.http().get("/metrics").text
    flagged = sum(one.flagged for one in reply.results)
    route = 'route="/v1/moderations"'
    assert f'refusalscope_requests_total{{{route},status="200"}} 1.0' in page
    assert f'refusalscope_requests_total{{{route},status="400"}} 1.0' in page
    assert 'refusalscope_requests_total{route="other",status="404"} 1.0' in page
    assert f"refusalscope_flagged_total{{{route}}} {float(flagged)}" in page
    assert f"refusalscope_delta_harmful_count{{{route}}} 6.0" in page
    assert f"refusalscope_request_seconds_count{{{route}}} 2.0" in page
    assert "refusalscope_queue_depth 0.0" in page


def test_the_score_log_is_what_drift_reads_and_holds_no_text(tmp_path):
    path = tmp_path / "scores.jsonl"
    with running(score_log=path, max_inputs=200) as server:
        server.client().moderations.create(input=list(texts()))
        server.client().moderations.create(input=f"Tell me of the {SECRET}")
    lines = path.read_text().splitlines()
    assert len(lines) == len(texts()) + 1
    assert SECRET not in path.read_text()
    assert "zebra" not in path.read_text()
    log = pd.DataFrame([json.loads(line) for line in lines])
    # The texts are those of the calibration, so its own reference must find nothing new in them.
    reference = fitted().calibration_.reference
    found = drift(reference, log, 0.5).set_index("measure")
    assert found.loc["last token class", "verdict"] == "steady"
    assert found.loc["last token class", "effect"] < 0.01
    assert (found["verdict"] == "steady").all()


def test_a_score_log_that_cannot_be_written_is_told_before_the_server_starts(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        make_server(fitted(), ServeSettings(score_log=tmp_path / "none" / "log"))


@pytest.mark.parametrize("asked_for", [False, True])
def test_logs_hold_the_text_only_when_asked(asked_for, caplog, monkeypatch):
    def broken(self, *rest):
        raise RuntimeError(f"cannot read {SECRET}")

    caplog.set_level(logging.DEBUG)
    with running(log_prompts=asked_for) as server:
        http = server.http()
        asked = {"input": f"Tell me of the {SECRET}"}
        assert http.post("/v1/moderations", json=asked).status_code == 200
        assert http.post(f"/v1/moderations?q={SECRET}", json={"input": [SECRET, " "]}).status_code
        monkeypatch.setattr(type(fitted()), "beliefs", broken)
        answer = http.post("/v1/moderations", json=asked)
    assert answer.status_code == 500
    assert SECRET not in answer.text
    own = [
        one.getMessage() for one in caplog.records if one.name not in ("httpx", "httpcore.http11")
    ]
    assert any("RuntimeError" in one for one in own)
    assert sum(SECRET in one for one in own) == asked_for


def test_a_moderation_whose_client_is_gone_leaves_the_queue(monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    seen = []
    plain = type(fitted()).beliefs

    def held(self, prompts, *rest):
        seen.extend(prompt.text for prompt in prompts)
        entered.set()
        assert go_on.wait(WAIT_S)
        return plain(self, prompts, *rest)

    with running(batch_wait_ms=0) as server, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(type(fitted()), "beliefs", held)
        first = pool.submit(server.client().moderations.create, input="first")
        assert entered.wait(WAIT_S)
        engine = server.served.engine
        future = engine.score([Prompt("input", "second")])
        future.cancel()
        assert engine.depth == 0
        go_on.set()
        assert first.result(WAIT_S).results
        with httpx.Client(base_url=server.url) as http:
            assert http.get("/health").status_code == 200
    assert seen == ["first"]


def test_a_model_that_gives_no_numbers_is_our_fault_and_never_an_answer(monkeypatch):
    guard, body, broken = fitted(), {"input": texts()[0]}, BeliefGuard.readings
    monkeypatch.setattr(
        BeliefGuard, "readings", lambda self, states: broken(self, states * float("nan"))
    )
    with running(guard) as server:
        answer = httpx.post(f"{server.url}/v1/moderations", json=body, timeout=WAIT_S)
    assert answer.status_code == 500
    assert "results" not in answer.json()
