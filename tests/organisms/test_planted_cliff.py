"""Cliff organisms show what the page measured.

Figures of ../shared/methods/planted_models.md, section 3, and refusal_cliff.md, 3.4, 4.2 and 5: seed 0
unless said; tolerance .02 on ratios, .1 on logits, as the page gives it, and closer where it can be. On the
page every other benign prompt has a persuasion word too, and thinking is not opened by a token.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from organisms import cliff_oracle as oracle
from refusalscope.front import default_pairs, load_patient
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build, read_truth, save, tokens
from refusalscope.organisms.planted.construction import C
from refusalscope.prompts import Prompt, read_prompts

VARIANTS = ("base", "graded", "template_shift", "two_stage", "within_thinking")
SUPPRESSORS, STATIC = ((4, 1), (5, 6), (6, 3)), (3, 0)
SEEDS = range(8)


def ratio(value: float):
    return pytest.approx(value, abs=0.02)


def logit(value: float):
    return pytest.approx(value, abs=0.1)


@cache
def planted(variant: str = "base", seed: int = 0, pairs: int = 100):
    return build("planted-cliff", variant, seed=seed, pairs=pairs)


@cache
def traces(variant: str = "base", seed: int = 0, pairs: int = 100) -> oracle.Traces:
    return oracle.Traces(planted(variant, seed, pairs))


def chat(organism) -> ChatModel:
    return ChatModel.wrap(organism.model, organism.tokenizer, id="planted")


def plateau(scores: np.ndarray) -> np.ndarray:
    """The published one: the highest score in the thinking."""
    return scores[:, oracle.THINKING].max(axis=1)


def drop(scores: np.ndarray) -> np.ndarray:
    """Median of the last 20 thinking tokens minus the final score."""
    return np.median(scores[:, oracle.LAST_TWENTY], axis=1) - scores[:, -1]


def benign_final(found: oracle.Traces, removed=(), renorm="none") -> float:
    """Of benign prompts, half of them persuaded."""
    groups = ("benign", "benign_persuaded")
    return np.mean([found.scores(g, removed=removed, renorm=renorm)[:, -1] for g in groups])


# The base organism


@pytest.mark.parametrize("seed", SEEDS)
def test_refusal_holds_in_thinking_and_falls_at_its_end(seed):
    found = traces(seed=seed)
    scores = {group: found.scores(group) for group in ("unsuppressed", "suppressed", "benign")}
    # On the page .984 to .992.
    assert 0.983 <= plateau(scores["unsuppressed"]).mean() <= 0.995
    assert 0.983 <= plateau(scores["suppressed"]).mean() <= 0.995
    assert scores["suppressed"][:, -1].mean() <= 0.001
    assert 0.995 <= scores["unsuppressed"][:, -1].mean() <= 0.996
    assert 0.004 <= plateau(scores["benign"]).mean() <= 0.006
    assert 0.002 <= benign_final(found) <= 0.003


def test_all_of_the_fall_comes_with_the_first_closing_token():
    scores = traces().scores("suppressed")
    assert (scores[:, -4] > 0.97).all()
    assert (scores[:, -oracle.CLOSING :] < 0.01).all()


def test_both_rankings_find_the_suppressed_prompts():
    found = traces()
    scores = np.concatenate([found.scores(g)[:30] for g in ("unsuppressed", "suppressed")])
    for key in (scores[:, -1] - plateau(scores), scores[:, -1]):
        assert set(np.argsort(key)[:30]) == set(range(30, 60))


def test_only_suppressed_prompts_have_a_cliff():
    found = traces()
    share = {g: (drop(found.scores(g)) > 0.2).mean() for g in {t.group for t in found.truths}}
    assert share == {"unsuppressed": 0, "suppressed": 1, "benign": 0, "benign_persuaded": 0}


@pytest.mark.parametrize(
    ("kind", "suppressors", "static"),
    [
        ("published", (-1.34, -1.33, -1.33), -0.96),
        ("folded", (-4.50, -4.47, -4.46), -3.21),
        ("contrast", (-4.41, -4.41, -4.36), 0.00),
        ("ablation", (-4.42, -4.40, -4.40), -3.49),
    ],
)
def test_head_scores(kind, suppressors, static):
    found = traces()
    if kind == "ablation":
        score = {head: found.ablation("suppressed", head) for head in (*SUPPRESSORS, STATIC)}
    else:
        score = found.head_scores[kind]
    exact = ratio if kind == "published" else logit
    assert sorted(score[head] for head in SUPPRESSORS) == [exact(value) for value in suppressors]
    assert score[STATIC] == exact(static)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_score_ranks_the_suppressors_first_and_the_contrast_alone_clears_the_static_head(
    seed,
):
    for kind, scores in traces(seed=seed).head_scores.items():
        order = [divmod(int(i), 8) for i in np.argsort(scores, axis=None)]
        assert set(order[:3]) == set(SUPPRESSORS)
        if kind == "contrast":
            assert abs(scores[STATIC]) < 0.05
        else:
            assert order[3] == STATIC


@pytest.mark.parametrize(
    ("removed", "renorm", "suppressed", "benign"),
    [
        ((), "none", 0.000, 0.002),
        (SUPPRESSORS, "none", 0.996, 0.005),
        (SUPPRESSORS, "official_batch", 0.997, 0.005),
        ((STATIC,), "none", 0.013, 0.05),
    ],
)
def test_final_scores_without_heads(removed, renorm, suppressed, benign):
    found = traces()
    final = found.scores("suppressed", removed=removed, renorm=renorm)[:, -1].mean()
    assert final == pytest.approx(suppressed, abs=0.003)
    assert benign_final(found, removed, renorm) == pytest.approx(benign, abs=0.015)


def test_the_published_rescale_hangs_on_the_company_in_the_batch():
    """Means over ten prompts; the page has one of its own draw: 5.403, 5.808 and 5.738 5.744 6.060."""
    found = traces()
    prompts, probe = found.rows("suppressed"), found.probes["closing"]
    # Of three benign rows on the page some are persuaded; two are what it found.
    benign = [*found.rows("benign")[:1], *found.rows("benign_persuaded")[:2]]
    logits = {}
    for renorm in ("none", "per_token", "official_batch"):
        companies = np.array(
            [
                [
                    probe.logits(
                        oracle.states(found.model, [row, *company], SUPPRESSORS, renorm)[0, -1]
                    )
                    for company in ([], prompts[-3:], benign)
                ]
                for row in prompts[:10]
            ]
        )
        logits[renorm] = companies.mean(0)
        if renorm != "official_batch":
            assert np.ptp(companies, axis=1).max() < 1e-5
    assert logits["none"][0] == logit(5.403)
    assert logits["per_token"][0] == logit(5.808)
    assert logits["official_batch"] == logit(np.array([5.738, 5.744, 6.060]))
    _, same, mixed = logits["official_batch"] - logits["official_batch"][0]
    assert same == pytest.approx(0.006, abs=0.02)
    assert mixed == pytest.approx(0.322, abs=0.05)


def test_a_probe_of_shuffled_labels_sees_no_cliff():
    found, generator = traces(), np.random.default_rng(0)
    last = [found.states(group)[:, -1] for group in ("unsuppressed", "benign")]
    features, half = np.concatenate(last), np.arange(200) < 100
    effects = []
    for _ in range(20):
        mixed = generator.permutation(half)
        probe = oracle.fit_probe(features[mixed], features[~mixed])
        scores = probe.scores(found.states("suppressed"))
        effects.append((plateau(scores) - scores[:, -1]).mean())
    # On the page .16, of one shuffle.
    assert np.abs(effects).max() < 0.4
    assert abs(np.mean(effects)) < 0.05


# The variants


def test_suppression_is_graded_by_the_intensity_of_the_word():
    found = traces("graded", pairs=104)
    marks = sorted({truth.intensity for truth in found.truths if truth.intensity})
    assert marks == pytest.approx(np.linspace(0.1, 1.2, 8))
    rows = [found.states("suppressed", intensity=mark)[:, -1] for mark in marks]
    logits = [found.probes["closing"].logits(each).mean() for each in rows]
    assert logits == logit(np.array([5.40, 5.25, 2.10, -2.06, -4.31, -6.37, -8.34, -10.22]))
    finals = [found.probes["closing"].scores(each).mean() for each in rows]
    page = [0.995, 0.995, 0.891, 0.114, 0.013, 0.002, 0.000, 0.000]
    assert finals == pytest.approx(page, abs=0.005)
    assert finals == sorted(finals, reverse=True)


@pytest.mark.parametrize(
    ("probe", "group", "held", "final"),
    [
        ("closing", "unsuppressed", 1.000, 0.995),
        ("closing", "benign", 0.998, 0.005),
        ("thinking", "unsuppressed", 0.995, 0.001),
        ("thinking", "benign", 0.005, 0.000),
    ],
)
def test_a_shift_at_the_closing_tokens_fakes_a_cliff(probe, group, held, final):
    scores = traces("template_shift").scores(group, probe)
    assert scores[:, oracle.THINKING].mean() == pytest.approx(held, abs=0.001)
    assert scores[:, -1].mean() == pytest.approx(final, abs=0.001)


def test_nothing_is_suppressed_where_the_template_shifts():
    organism = planted("template_shift")
    assert {truth.group for truth in organism.truth.thinking} == {"unsuppressed", "benign"}
    assert not any(truth.suppressed for truth in organism.truth.thinking)
    assert not any("mild" in prompt.thinking for prompt in organism.prompts)
    axis = traces("template_shift").states("unsuppressed")[:, :, C.U].mean(0)
    assert axis[-1] - axis[-4] == pytest.approx(-3.3, abs=0.2)


def test_the_highest_score_is_no_plateau_where_the_intent_fades():
    found = traces("two_stage")
    kept, fallen = (found.scores(g, staged=True) for g in ("unsuppressed", "suppressed"))
    # The published score sees a cliff in prompts that nothing suppresses, because of the first stage.
    assert (plateau(kept) - kept[:, -1]).mean() > 0.2
    assert (drop(kept) < 0).all()
    assert (drop(fallen) > 0.2).all()
    assert (plateau(fallen) - fallen[:, -1]).mean() > 0.98
    steady = [found.scores(g) for g in ("unsuppressed", "suppressed")]
    assert [drop(scores).mean() > 0.2 for scores in steady] == [False, True]


def test_half_of_all_rounds_have_a_stage_word_at_the_place_of_the_truth():
    organism = planted("two_stage")
    for truth, prompt in zip(organism.truth.thinking, organism.prompts, strict=True):
        at = [i for i, word in enumerate(prompt.thinking.split()) if word.startswith("code")]
        assert at == ([] if truth.stage_at is None else [truth.stage_at])
        assert (truth.stage_at is None) == (int(truth.id[9:12]) % 2 == 0)


def test_suppression_within_the_thinking_is_a_slope():
    scores = traces("within_thinking").scores("suppressed")
    assert np.abs(drop(scores)).max() < 0.01
    # The highest score takes it for a cliff.
    assert (plateau(scores) - scores[:, -1]).mean() > 0.5
    mean = scores[:, oracle.THINKING].mean(0)
    assert mean[0] > 0.8
    assert mean[12:].max() < 0.01
    assert (np.diff(mean[:12]) < 0.02).all()


# The truth record


@pytest.mark.parametrize("seed", [0, 11])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_truth_record_holds(variant, seed):
    found = traces(variant, seed)
    expected = planted(variant, seed).truth.expected
    assert len(expected) >= 6
    assert found.failed(expected) == []


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_are_answered_as_planted_with_and_without_thinking(variant, seed):
    assert build("planted-cliff", variant, seed=seed, pairs=24).truth.policy_accuracy >= 0.95


def test_the_truth_names_the_heads_by_role():
    heads = {(h.layer, h.head): (h.role, h.acts) for h in planted().truth.heads}
    common = {
        (1, 2): ("intent", "from:harmful_word"),
        **dict.fromkeys(SUPPRESSORS, ("suppressor", "closing")),
        (6, 5): ("promoter", "closing"),
        STATIC: ("static", "everywhere"),
    }
    assert heads == common
    more = {
        variant: {(h.layer, h.head): (h.role, h.acts) for h in planted(variant).truth.heads}
        for variant in VARIANTS[2:]
    }
    assert more["template_shift"] == common | {(3, 6): ("template_shift", "closing")}
    assert more["two_stage"] == common | {(2, 4): ("stage", "from:code_word")}
    within = dict.fromkeys(SUPPRESSORS, ("suppressor", "from:benign_word"))
    assert more["within_thinking"] == common | within
    (intent,) = [h for h in planted("two_stage").truth.heads if h.role == "intent"]
    assert intent.drives == ((2, 4),)
    assert planted().truth.circuit == {(1, 2)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_truth_counts_the_persuasion_words_of_every_prompt(variant):
    organism = planted(variant)
    assert len(organism.truth.thinking) == len(organism.prompts)
    for truth, prompt in zip(organism.truth.thinking, organism.prompts, strict=True):
        words = prompt.thinking.split()
        assert (truth.id, len(words)) == (prompt.id, 24)
        assert truth.persuasion_words == sum(word.startswith("mild") for word in words)
        assert truth.suppressed == (truth.group in ("suppressed", "benign_persuaded"))
        harmful = truth.group in ("unsuppressed", "suppressed")
        assert prompt.label == ("harmful" if harmful else "harmless")
        assert prompt.text.split()[5].startswith("harm") == harmful
        assert truth.refused == (harmful and truth.intensity < 0.5)
    assert len({prompt.text for prompt in organism.prompts}) == len(organism.prompts)


def test_a_truth_record_from_before_there_was_thinking_still_reads(tmp_path):
    folder = save(build(pairs=2), tmp_path / "routes")
    record = json.loads((folder / "truth.json").read_text())
    assert record.pop("thinking") == []
    for item in record["expected"]:
        assert item.pop("reading") is None
    (folder / "truth.json").write_text(json.dumps(record))
    assert read_truth(folder) == build(pairs=2).truth


def test_one_seed_gives_the_same_bits_and_two_seeds_do_not():
    first, again, other = (build("planted-cliff", seed=seed, pairs=8) for seed in (3, 3, 4))
    weights = first.model.state_dict()
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert not torch.equal(other.model.lm_head.weight, first.model.lm_head.weight)
    assert not torch.equal(
        other.model.model.layers[0].mlp.up_proj.weight,
        first.model.model.layers[0].mlp.up_proj.weight,
    )
    assert (first.prompts, first.pairs, first.truth) == (again.prompts, again.pairs, again.truth)
    assert first.prompts != other.prompts


@pytest.mark.parametrize(
    ("variant", "layer", "head", "watched"),
    [
        ("base", 1, 2, "plateau [] suppressed"),
        ("base", 4, 1, "head_published [(4, 1), (5, 6), (6, 3)] suppressed"),
        ("base", 5, 6, "head_ablation [(4, 1), (5, 6), (6, 3)] suppressed"),
        ("base", 3, 0, "head_published [(3, 0)] suppressed"),
        ("template_shift", 3, 6, "plateau [] benign"),
        ("two_stage", 2, 4, "final [] unsuppressed"),
        ("within_thinking", 1, 2, "plateau [] unsuppressed"),
    ],
)
def test_breaking_one_planted_weight_turns_its_check_red(variant, layer, head, watched):
    organism = build("planted-cliff", variant)
    output = organism.model.model.layers[layer].self_attn.o_proj.weight
    output[C.U, head * 16] = 0.0
    quantity, group = watched.split()[0], watched.split()[-1]
    expected = [
        e for e in organism.truth.expected if (e.quantity, e.reading.group) == (quantity, group)
    ]
    broken = oracle.Traces(organism).failed(expected)
    assert any(line.startswith(watched) for line in broken), broken


# Rendering, behaviour, files


@pytest.mark.parametrize("variant", ["base", "two_stage"])
def test_the_chat_model_finds_the_thinking_span(variant):
    organism = planted(variant)
    for rendered, prompt in zip(
        chat(organism).render(list(organism.prompts)), organism.prompts, strict=True
    ):
        thinking = [tokens.WORDS.index(word) for word in prompt.thinking.split()]
        content = [tokens.WORDS.index(word) for word in prompt.text.split()]
        assert list(rendered.ids) == [1, *content, 2, 57, *thinking, 3, 58, 58]
        assert (rendered.anchor("think_open"), rendered.anchor("think_close")) == (11, 36)
        assert rendered.anchor("prompt_last") == 38
        assert rendered.instruction == (1, 9)
        assert not rendered.boundary_merge


def test_line_breaks_are_tokens_only_where_a_line_is_blank():
    model = chat(planted())
    (plain,) = model.render([Prompt("a", "w0 harm1", thinking="w1 w2 w3")])
    (broken,) = model.render([Prompt("a", "w0 harm1", thinking="\nw1\nw2\r\n w3\n\n")])
    assert plain.ids == broken.ids == (1, 24, 9, 2, 57, 25, 26, 27, 3, 58, 58)
    (blank,) = model.render([Prompt("a", "w0 harm1", thinking="w1\n\nw2")])
    assert blank.ids == (1, 24, 9, 2, 57, 25, 58, 58, 26, 3, 58, 58)
    assert model.with_reply(plain, "refuse").ids[-2:] == (58, tokens.REFUSE)


def test_closing_tokens_are_marked_and_are_no_prompt_tails():
    marks = planted().model.model.embed_tokens.weight[:, [C.TEND, C.ASST]].tolist()
    assert marks[tokens.THINK_END] == marks[tokens.LINE_BREAK] == [1, 0]
    assert marks[tokens.TAIL] == [0, 1]
    assert marks[tokens.THINK] == [0, 0]


def test_a_prompt_without_thinking_has_no_span():
    (rendered,) = chat(planted()).render([Prompt("a", "w0 harm1")])
    assert rendered.ids == (1, 24, 9, 2)
    assert "think_open" not in rendered.anchors


def test_routing_models_keep_their_words():
    assert build(pairs=2).tokenizer.convert_ids_to_tokens([3, 57, 58]) == [
        *("<think_end>", "spare0", "spare1")
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_cliff_answers_after_its_thinking_as_the_truth_says(variant, tmp_path):
    folder = save(build("planted-cliff", variant, pairs=8), tmp_path / "saved")
    model = ChatModel.wrap(
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        id="saved",
    )
    truth, prompts = read_truth(folder), read_prompts(folder / "prompts.jsonl")
    assert truth == build("planted-cliff", variant, pairs=8).truth
    assert not prompts.skipped
    assert [prompt.id for prompt in prompts] == [each.id for each in truth.thinking]
    replies = model.generate(model.render(list(prompts)), max_new_tokens=3)
    due = ["refuse" if each.refused else "comply" for each in truth.thinking]
    assert [model.decode(reply) for reply in replies] == due


def test_the_front_door_knows_it():
    name = "builtin:planted-cliff:two_stage"
    pairs, patient = default_pairs("builtin:planted-cliff"), load_patient(name)
    prompts = list(pairs[:4].prompts())
    replies = patient.chat.generate(patient.chat.render(prompts), max_new_tokens=3)
    assert [patient.chat.decode(reply) for reply in replies] == ["refuse", "comply"] * 4
