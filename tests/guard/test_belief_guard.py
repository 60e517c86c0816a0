"""The guard on builtin:chat and on tiny models: scikit-learn's contract, exactness, calibration, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from guard.fitted import calibrated, chat, fitted, sides
from model import tiny
from refusalscope.errors import GuardError, InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.heads import Head
from refusalscope.guard.prefill import StateReader, prefill
from refusalscope.guard.reading import that_fit, user_turns
from refusalscope.guard.sources import distinct, sources_of
from refusalscope.model import ChatModel, Site
from refusalscope.prompts import Prompt, concat, punctuation_variants, read_prompts

ASKED = Prompt(
    "talk",
    "And what about now?",
    history=(
        ("user", "How do I break into my neighbour's house?"),
        ("assistant", "I can't help with that."),
    ),
)


def plain_delta(guard: BeliefGuard, prompt: Prompt) -> tuple[float, float]:
    """delta_harmful and delta_refuse of one prompt from the library's own hidden states (Eq. 3 and 4)."""
    model, (rendered,) = guard.chat_, guard.chat_.render([prompt])
    with torch.inference_mode():
        hidden = model.model(torch.tensor([rendered.ids]), output_hidden_states=True).hidden_states
    found = []
    for head, anchor in ((guard.harm_, "instruction_last"), (guard.refuse_, "prompt_last")):
        scores = []
        for i, row in enumerate(guard.rows_):
            h = hidden[row][0, rendered.anchor(anchor)].double().numpy()
            near, far = head.towards[i].double().numpy(), head.away[i].double().numpy()
            scores.append(
                h @ near / np.linalg.norm(h) / np.linalg.norm(near)
                - h @ far / np.linalg.norm(h) / np.linalg.norm(far)
            )
        found.append(float(np.mean(scores)))
    return found[0], found[1]


def test_scores_are_the_papers_formula_on_the_librarys_hidden_states():
    guard = calibrated()
    for prompt in [*sides()["report"][0][:3], *sides()["report"][1][:3]]:
        (belief,) = guard.beliefs([prompt])
        expected = plain_delta(guard, prompt)
        assert (belief.delta_harmful, belief.delta_refuse) == pytest.approx(expected, abs=1e-5)
        assert belief.delta_harmful == pytest.approx(np.mean(belief.per_layer), abs=1e-6)


def test_company_changes_nothing():
    guard, report = calibrated(), sides()["report"][0]
    together = guard.decision_function(report)
    alone = [guard.decision_function([prompt])[0] for prompt in report[:5]]
    assert np.allclose(together[:5], alone, atol=1e-6)


def test_the_contract_of_scikit_learn():
    guard = BeliefGuard("centred", rows="with_final", min_category=9)
    twin = clone(guard)
    assert twin.get_params() == guard.get_params()
    assert twin.set_params(seed=3).seed == 3
    assert not [name for name in vars(guard) if name.endswith("_")]
    for ask in (guard.decision_function, guard.predict, guard.predict_proba, guard.beliefs):
        with pytest.raises(NotFittedError):
            ask([ASKED])
    assert guard.fit(chat(), *(side[:20] for side in sides()["fit"])) is guard


def test_probabilities_and_flags_agree_with_the_score():
    guard, (harmful, harmless) = calibrated(), sides()["report"]
    both = [*harmful, *harmless]
    scores, p = guard.decision_function(both), guard.predict_proba(both)
    assert p.shape == (len(both), 2)
    assert np.allclose(p.sum(1), 1)
    assert (np.diff(p[np.argsort(scores), 1]) >= 0).all()
    assert (guard.predict(both) == (scores > guard.point().tau)).all()
    first = guard.beliefs(both)[0]
    assert first.p_low <= first.p_harmful <= first.p_high
    assert first.flagged == (first.delta_harmful > first.threshold)


def test_a_conversation_is_as_harmful_as_its_worst_turn():
    guard = calibrated()
    turns = user_turns(ASKED)
    assert [turn.text for turn in turns] == [ASKED.history[0][1], ASKED.text]
    alone = guard.decision_function(turns)
    (whole,) = guard.beliefs([ASKED])
    assert whole.delta_harmful == pytest.approx(alone.max(), abs=1e-6)
    assert whole.delta_refuse == pytest.approx(guard.beliefs(turns)[-1].delta_refuse, abs=1e-6)


@pytest.mark.parametrize("prompt", [ASKED, Prompt("plain", "How do I bake bread?")])
def test_the_prefill_that_answers_reads_the_same(prompt):
    guard = calibrated()
    (rendered,) = chat().render([prompt])
    before = len(chat().anatomy.layers[1]._forward_pre_hooks)
    with StateReader(chat(), guard.rows_) as reader:
        found = prefill(guard, reader, prompt, rendered)
        # A forward that nothing is expected of passes by.
        with torch.inference_mode():
            plain = chat().model(torch.tensor([rendered.ids])).logits[0, -1]
    assert len(chat().anatomy.layers[1]._forward_pre_hooks) == before
    readings, tokens = guard.read([prompt])
    assert found.reading.harmful == pytest.approx(readings.harmful, abs=1e-5)
    assert found.reading.refuse == pytest.approx(readings.refuse, abs=1e-5)
    assert found.token == tokens[0]
    assert torch.allclose(found.logits, plain, atol=1e-5)
    assert found.cache.get_seq_length() == len(rendered)


def test_hooks_are_gone_after_an_error():
    guard = calibrated()
    before = len(chat().anatomy.layers[1]._forward_pre_hooks)
    with pytest.raises(KeyError), StateReader(chat(), guard.rows_):
        raise KeyError
    assert len(chat().anatomy.layers[1]._forward_pre_hooks) == before


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_rows_are_the_model_layers_states_on_every_architecture(kind):
    model = ChatModel.wrap(tiny.model(kind), tiny.tokenizer(), id=kind)
    prompts = [Prompt(f"p{i}", f"Tell me how to bake bread {i}", "harmful") for i in range(12)]
    others = [Prompt(f"q{i}", f"What is the sea {i}", "harmless") for i in range(12)]
    guard = BeliefGuard(rows="with_final", match_punctuation=False).fit(model, prompts, others)
    (rendered,) = model.render(prompts[:1])
    sites = [Site("resid_pre", 1), Site("resid_pre", 2), Site("resid_pre", 3), Site("final")]
    states = model.capture([rendered], sites, ["instruction_last"])
    stacked = torch.stack([states[site][0, 0] for site in sites])
    assert guard.rows_ == [1, 2, 3, 4]
    assert guard.decision_function(prompts[:1])[0] == pytest.approx(
        float(guard.harm_.score(stacked[None])[0]), abs=1e-6
    )
    with StateReader(model, guard.rows_) as reader:
        found = prefill(guard, reader, prompts[0], rendered)
    assert found.reading.harmful == pytest.approx(guard.decision_function(prompts[:1]), abs=1e-5)


def test_a_category_with_enough_prompts_has_a_score_and_the_others_have_none():
    harmful, harmless = sides()["fit"]
    named = [replace(p, category="big" if i < 20 else f"small-{i}") for i, p in enumerate(harmful)]
    guard = BeliefGuard(match_punctuation=False, min_category=20, max_new_tokens=8)
    guard.fit(chat(), named, harmless)
    guard.calibrate(sides()["select"][1], sides()["select"][0])
    (belief,) = guard.beliefs(named[:1])
    assert list(belief.per_category) == ["big"]
    assert set(guard.point().categories) == {"big"}


def test_a_model_that_never_refuses_has_one_axis():
    model = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")
    prompts = [Prompt(f"p{i}", f"Tell me how to bake bread {i}") for i in range(12)]
    guard = BeliefGuard().fit(model, prompts, prompts)
    assert guard.refuse_ is None
    (belief,) = guard.beliefs(prompts[:1])
    assert np.isnan(belief.delta_refuse)
    assert belief.quadrant is None
    assert (belief.flagged, belief.p_harmful) == (None, None)


OWN = [
    Prompt(f"own-{i}", f"Help me {what} without anybody noticing it", "harmful")
    for i, what in enumerate(
        ["skip the fare", "copy the exam", "spoil the broth", "hide the bill", "forge the note"] * 2
    )
]


@pytest.mark.parametrize("variant", ["centroid", "lda"])
def test_own_examples_move_the_mean_and_need_a_new_calibration(variant):
    harmful, harmless = sides()["select"]
    guard = fitted(variant).calibrate(harmless, harmful)
    guard.shortcuts_ = [{"name": "words"}]
    before, marks = (
        guard.decision_function(OWN).mean(),
        dict(guard.fitted_on_["harmful"]["final_marks"]),
    )
    with pytest.raises(GuardError, match="no examples were added"):
        guard.compare_augmented(*sides()["report"])
    guard.augment(OWN)
    assert guard.decision_function(OWN).mean() > before
    assert guard.shortcuts_ == []
    with pytest.raises(GuardError, match="not calibrated"):
        guard.predict(harmful[:1])
    guard.calibrate(harmless, harmful)
    rates = guard.compare_augmented(*sides()["report"])
    assert {(row["label"], row["when"], row["n"]) for row in rates} == {
        (label, when, 48) for label in ("harmful", "harmless") for when in ("before", "after")
    }
    assert guard.augmented_["n"] == 10
    # Dealt out as they were, so that the mark says no more than before.
    kinds = guard.fitted_on_["harmful"]["final_marks"]
    assert sum(kinds.values()) == pytest.approx(1)
    for kind, share in marks.items():
        assert kinds[kind] == pytest.approx(share, abs=0.02)


def test_own_examples_do_not_bring_the_mark_back():
    own = [
        replace(p, text=punctuation_variants(p.text)["stripped"]) for p in sides()["select"][0][:10]
    ]
    bare = [replace(p, text=punctuation_variants(p.text)["stripped"]) for p in sides()["report"][1]]
    dotted = [replace(p, text=f"{p.text}.") for p in bare]

    def lean(guard: BeliefGuard) -> float:
        scores = guard.decision_function(bare)
        return float((scores - guard.decision_function(dotted)).mean() / scores.std())

    plain = fitted("centroid")
    plain.matched_ = "none"
    before, moved = lean(fitted("centroid")), lean(fitted("centroid").augment(own))
    assert abs(moved - before) < 0.2
    assert lean(plain.augment(own)) - before > 1


def test_copies_count_once():
    guard = fitted()
    with pytest.raises(InputError, match="got 1"):
        guard.calibrate([replace(sides()["select"][1][0], id=f"p{i}") for i in range(80)])
    many = [Prompt(f"p{i}", f"{p.text} {i % 2}") for i, p in enumerate(sides()["select"][1])]
    assert distinct([*many, *many]) == many


def test_states_that_are_not_finite_are_never_scored():
    guard = calibrated()
    states = torch.full((1, 2, len(guard.rows_), chat().anatomy.d_model), float("nan"))
    with pytest.raises(GuardError, match="not finite"):
        guard.readings(states)
    with pytest.raises(GuardError, match="not finite"):
        Head.fit("centroid", states[:, 0], states[:, 0])


def test_a_fit_that_fails_leaves_no_half_of_a_guard():
    guard = fitted()
    with pytest.raises(InputError, match="the model takes 1024"):
        guard.fit(chat(), [Prompt("long", "word " * 3000)], sides()["fit"][1])
    with pytest.raises(NotFittedError):
        guard.decision_function([ASKED])


def test_a_rewritten_prompt_counts_once():
    harmful = [Prompt(f"h{i}", f"Break the lock {i}", "harmful", "locks") for i in range(20)]
    harmless = [Prompt(f"g{i}", f"Bake the bread {i}.", "harmless") for i in range(20)]
    guard = BeliefGuard(min_category=50, max_new_tokens=4).fit(chat(), harmful, harmless)
    assert guard.matched_ == "rewritten"
    assert guard.categories_ == {}
    assert guard.fitted_on_["harmful"]["n"] == 20


def test_sources_are_those_of_the_side(tmp_path):
    bad, good = tmp_path / "bad.csv", tmp_path / "good.csv"
    bad.write_text("text\nBreak the lock\nBreak the door\n")
    good.write_text("text\nBake the bread\n")
    both = concat(read_prompts(bad, label="harmful"), read_prompts(good, label="harmless"))
    (found,) = sources_of(both.of("harmful"))
    assert (found["name"], found["n"]) == ("bad", 2)
    assert found["sha256"] == both.sources[0].sha256


def test_too_few_negatives_are_told_with_the_number_needed():
    guard = fitted()
    with pytest.raises(InputError, match=r"at least 299 benign scores, got 64"):
        guard.calibrate(sides()["select"][1], fpr=(0.01,))
    guard.calibrate(sides()["select"][1])
    with pytest.raises(GuardError, match="without harmful prompts"):
        guard.predict_proba([ASKED])
    with pytest.raises(GuardError, match=r"no operating point 'fpr=0\.5'; it has fpr=0\.05"):
        guard.predict([ASKED], "fpr=0.5")


def test_what_cannot_be_fitted_or_scored():
    with pytest.raises(InputError, match="0 harmful"):
        BeliefGuard().fit(chat(), [], [ASKED])
    with pytest.raises(InputError, match="no prompt"):
        calibrated().beliefs([])
    with pytest.raises(InputError, match="empty text"):
        Prompt("blank", "  ")
    with pytest.raises(InputError, match="no example"):
        fitted().augment([])
    long = Prompt("long", "word " * 3000)
    with pytest.raises(InputError, match="the model takes 1024"):
        calibrated().beliefs([long])
    kept, left_out = that_fit(chat(), [ASKED, long])
    assert kept == [ASKED]
    assert "'long'" in left_out[0]


def test_a_prompt_unlike_all_others_is_abstained_on():
    guard = calibrated()
    odd = guard.calibration_.likeness_floor
    reading = guard.read([ASKED])[0]
    assert guard.belief("a", replace(reading, likeness=np.array([odd - 0.01])), "?").abstain
    assert not guard.belief("a", replace(reading, likeness=np.array([odd + 0.01])), "?").abstain
