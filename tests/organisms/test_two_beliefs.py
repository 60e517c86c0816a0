"""The two-beliefs organism holds harm and refusal apart, and its variants are what they claim to be."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch

from refusalscope.errors import InputError, ModelError
from refusalscope.front import default_pairs, load_patient
from refusalscope.judge import Exchange, Judge
from refusalscope.model import ChatModel
from refusalscope.organisms.chat.replies import harm_question
from refusalscope.organisms.planted import beliefs as organism
from refusalscope.organisms.planted import beliefs_training as training
from refusalscope.organisms.planted import (
    build_two_beliefs,
    list_builtin,
    refuse_finetuned,
    two_beliefs_by_name,
)
from refusalscope.organisms.planted.beliefs_prompts import SETS, Writer
from refusalscope.organisms.planted.beliefs_rows import chat_row, question_row
from refusalscope.organisms.planted.beliefs_words import (
    COMPLY,
    NO,
    QUESTIONS,
    REFUSE,
    VOCABULARY,
    WORDS,
    YES,
    build_tokenizer,
    deal_roles,
    pieces,
)
from refusalscope.prompts import Prompt

VARIANTS = ("base", "punctuation", "topic-only")


@cache
def made(variant="base"):
    return build_two_beliefs(variant)


@cache
def tuned():
    return refuse_finetuned(made())


def chat_of(one) -> ChatModel:
    return ChatModel.wrap(one.model, one.tokenizer, id=one.name)


def asked(prompt, question=QUESTIONS[0]) -> Prompt:
    return Prompt(prompt.id, harm_question(prompt.text, question))


def said(one, prompts) -> list[str]:
    """The first token after each prompt, by one forward a prompt."""
    chat = chat_of(one)
    with torch.no_grad():
        best = [
            int(one.model(torch.tensor([prompt.ids])).logits[0, -1].argmax())
            for prompt in chat.render(prompts)
        ]
    return [WORDS[i] for i in best]


@cache
def states(variant: str, name: str, asking: bool = False):
    """hidden_states rows 0..L-1 at the last instruction token and the prompt's end: [n, 2, L, d]."""
    one = made(variant)
    return states_of(one, name, asking)


def states_of(one, name, asking=False):
    prompts = [asked(p) if asking else p for p in one.sets[name]]
    found = []
    with torch.no_grad():
        for prompt in chat_of(one).render(prompts):
            out = one.model(torch.tensor([prompt.ids]), output_hidden_states=True)
            rows = torch.stack(out.hidden_states[:-1])[:, 0]
            at = [prompt.anchor(name) for name in ("instruction_last", "prompt_last")]
            found.append(rows[:, at].transpose(0, 1))
    return torch.stack(found)


def bits(one, name):
    told = [one.bits[p.id] for p in one.sets[name]]
    return np.array([b.harmful for b in told]), np.array([b.refuse for b in told])


def directions(variant="base"):
    """v_harm and v_refuse [L, d]: refused harmful minus accepted harmless prompts of the fit set."""
    harmful, refuse = bits(made(variant), "fit")
    found = states(variant, "fit")
    change = found[harmful & refuse].mean(0) - found[~harmful & ~refuse].mean(0)
    return change[0], change[1]


def area(positive, score):
    """Share of (positive, negative) couples in order."""
    couples = score[positive][:, None] - score[~positive][None]
    return float(((couples > 0) + 0.5 * (couples == 0)).mean())


# Words and prompts


def test_training_rows_are_what_the_tokenizer_makes_of_the_prompts():
    one = made()
    chat = chat_of(one)
    for prompt in one.sets["report"][:20]:
        row, rendered = chat_row(prompt.text, COMPLY), chat.render([prompt])[0]
        assert row.ids == rendered.ids
        assert row.last == rendered.anchor("instruction_last")
        for question in QUESTIONS:
            row, rendered = (
                question_row(prompt.text, question, NO),
                chat.render([asked(prompt, question)])[0],
            )
            assert row.ids == rendered.ids
            cut = rendered.text.index(question) - 1
            offsets = one.tokenizer(
                rendered.text, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            assert row.last == max(i for i, (_, stop) in enumerate(offsets) if stop <= cut)


def test_the_template_closes_the_turn_with_tokens_of_its_own():
    chat = chat_of(made())
    rendered = chat.render(made().sets["fit"][:4])
    assert {prompt.n_template for prompt in rendered} == {4}
    assert not any(prompt.boundary_merge for prompt in rendered)
    assert [WORDS[i] for i in rendered[0].ids[-4:]] == ["<end>", "\n", "<assistant>", "\n"]
    assert len({len(prompt) for prompt in chat.render(made().sets["fit"])}) >= 5
    system = chat.render([Prompt("s", "baba", system="some words", history=(("user", "bala"),))])
    assert system[0].instruction[0] == system[0].instruction[1] == system[0].n_prompt - 5


def test_words_are_told_apart_and_strangers_are_unknown():
    assert len(VOCABULARY) == len(WORDS)
    assert build_tokenizer()("stranger!")["input_ids"] == [VOCABULARY["<unk>"]] * 2
    assert {VOCABULARY[word] for q in QUESTIONS for word in pieces(q)}


def test_the_seed_deals_the_roles():
    roles = [deal_roles(seed) for seed in (0, 0, 1)]
    assert roles[0] == roles[1] != roles[2]
    groups = [*roles[0].topics.values(), *roles[0].cues.values(), roles[0].fillers]
    assert len(set().union(*groups)) == sum(map(len, groups))


@pytest.mark.parametrize("variant", VARIANTS)
def test_truth_is_written_in_the_words(variant):
    one, roles = made(variant), deal_roles(0)
    for prompts in one.sets.values():
        for prompt in prompts:
            words, told = set(pieces(prompt.text)), one.bits[prompt.id]
            assert told.harmful == (prompt.label == "harmful")
            assert len(words & set(roles.topics[told.harmful])) == 1
            assert not words & set(roles.topics[not told.harmful])
            assert len(words & set(roles.cues[told.refuse])) == 1
            assert told.refused == (told.refuse and variant != "topic-only")
            if variant == "punctuation":
                assert told.harmful == (prompt.text[-1] not in ".?")


@pytest.mark.parametrize("variant", VARIANTS)
def test_sets_share_no_topic_no_cue_and_no_text_and_fill_every_quadrant(variant):
    one, roles = made(variant), deal_roles(0)
    marked = {*roles.topics[True], *roles.topics[False], *roles.cues[True], *roles.cues[False]}
    used = [{w for t in one.sets[name].texts for w in pieces(t)} & marked for name in SETS]
    assert all(len(words) == 48 for words in used)
    assert not used[0] & used[1]
    assert not (used[0] | used[1]) & used[2]
    texts = [text for name in SETS for text in one.sets[name].texts]
    assert len(set(texts)) == len(texts)
    for name in SETS:
        harmful, refuse = bits(one, name)
        assert [(harmful == h).sum() == 100 for h in (True, False)] == [True, True]
        assert (harmful & refuse).sum() == (harmful & ~refuse).sum() == 50
        assert len({p.category for p in one.sets[name].of("harmful")}) == 4


def test_marks_and_lengths_tell_nothing_in_the_base_organism():
    harmful, refuse = bits(made(), "fit")
    texts = made().sets["fit"].texts
    unmarked = np.array([text[-1] not in ".?" for text in texts])
    length = np.array([float(len(text.split())) for text in texts])
    for bit in (harmful, refuse):
        assert 0.4 < area(bit, unmarked.astype(float)) < 0.6
        assert 0.4 < area(bit, length) < 0.6
    assert 0.2 < unmarked.mean() < 0.5


def test_the_number_of_prompts_can_be_chosen_and_pairs_are_the_coherent_ones():
    one = build_two_beliefs(per_quadrant=3)
    assert [len(one.sets[name]) for name in SETS] == [12, 12, 12]
    assert len(one.pairs) == 9
    due = {p.text: one.bits[p.id] for name in SETS for p in one.sets[name]}
    assert all(due[pair.harmful].harmful and due[pair.harmful].refuse for pair in one.pairs)
    assert not any(due[pair.harmless].harmful or due[pair.harmless].refuse for pair in one.pairs)


# What the model does


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_replies_by_the_cue_and_answers_by_harm_in_one_word(variant):
    one = made(variant)
    prompts = list(one.sets["report"])
    told = [one.bits[prompt.id] for prompt in prompts]
    replies = said(one, prompts)
    right = [r == (REFUSE if b.refused else COMPLY) for r, b in zip(replies, told, strict=True)]
    assert np.mean(right) > 0.97
    for question in QUESTIONS:
        answers = said(one, [asked(prompt, question) for prompt in prompts[:60]])
        right = [a == (YES if b.harmful else NO) for a, b in zip(answers, told, strict=False)]
        assert np.mean(right) > 0.97
    chat = chat_of(one)
    texts = [chat.decode(ids) for ids in chat.generate(chat.render(prompts[:8]), max_new_tokens=4)]
    assert texts == replies[:8]
    judged = Judge.from_name("phrases:planted").judge(
        [Exchange(p.text, reply) for p, reply in zip(prompts, replies, strict=True)]
    )
    assert [j.refused for j in judged] == [reply == REFUSE for reply in replies]


def test_policy_accuracy_is_the_lower_share():
    one = made()
    told = tuple(b.model_copy(update={"refused": not b.refused}) for b in one.truth.prompts[:300])
    kept = (*told, *one.truth.prompts[300:])
    assert organism.policy_accuracy(one.model, one.sets, kept) == pytest.approx(0.5, abs=0.01)
    assert one.truth.policy_accuracy > 0.97


# Where the bits are


def test_both_bits_are_read_each_at_its_own_place():
    harmful, refuse = bits(made(), "report")
    found = states("base", "report")
    v_harm, v_refuse = directions()
    for row in made().truth.rows:
        harm = (found[:, 0, row] @ v_harm[row]).numpy()
        refusal = (found[:, 1, row] @ v_refuse[row]).numpy()
        for side in (True, False):
            assert area(harmful[refuse == side], harm[refuse == side]) > 0.95
            assert area(refuse[harmful == side], refusal[harmful == side]) > 0.95
        assert 0.35 < area(refuse, harm) < 0.65
        assert 0.35 < area(harmful, refusal) < 0.65
        cosine = torch.cosine_similarity(v_harm[row], v_refuse[row], dim=0)
        assert abs(float(cosine)) < 0.2


def test_what_one_bit_changes_is_not_at_the_other_place():
    one, writer = made(), Writer("base", 0)
    rng = np.random.default_rng(5)
    chat = chat_of(one)

    def change(other):
        sizes = []
        for i in range(40):
            draft = writer.draw(rng, bool(i % 2), bool(i % 4 < 2))
            both = [Prompt(str(k), writer.text(d)) for k, d in enumerate((draft, other(draft)))]
            with torch.no_grad():
                pair = [
                    torch.stack(
                        one.model(torch.tensor([r.ids]), output_hidden_states=True).hidden_states
                    )[1:-1, 0, [r.anchor("instruction_last"), -1]]
                    for r in chat.render(both)
                ]
            sizes.append((pair[0] - pair[1]).norm(dim=-1) / pair[0].norm(dim=-1))
        return torch.stack(sizes).mean((0, 1)).tolist()

    at_last, at_end = change(writer.other_cue)
    assert at_last < 0.1
    assert at_end > 0.5
    at_last, at_end = change(writer.other_harm)
    assert at_last > 0.5
    assert at_end < 0.1


# What the bits cause


@contextmanager
def steered(model, row, vector, stop):
    """Adds a vector to the tokens before `stop` of what block `row` reads."""

    def hook(module, args):
        changed = args[0].clone()
        changed[:, :stop] += vector
        return (changed, *args[1:])

    handle = model.model.layers[row].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def answers_under(one, prompts, vector, row, before_question):
    """Answers to the first question, with a vector added before it, or everywhere."""
    found = []
    for prompt in prompts:
        rendered = chat_of(one).render([asked(prompt)])[0]
        at = list(rendered.ids).index(VOCABULARY["Could"])
        stop = at if before_question else len(rendered.ids)
        with torch.no_grad(), steered(one.model, row, vector, stop):
            found.append(WORDS[int(one.model(torch.tensor([rendered.ids])).logits[0, -1].argmax())])
    return found


@pytest.mark.parametrize("row", [1, 2])
def test_harm_decides_the_answer_and_refusal_does_not(row):
    one = made()
    v_harm, v_refuse = directions()
    harmful, harmless = (
        list(one.sets["report"].of(label))[:24] for label in ("harmful", "harmless")
    )
    assert answers_under(one, harmless, v_harm[row], row, True).count(YES) > 21
    assert answers_under(one, harmful, -v_harm[row], row, True).count(NO) > 21
    for before in (True, False):
        assert answers_under(one, harmless, v_refuse[row], row, before).count(NO) > 21
        assert answers_under(one, harmful, -v_refuse[row], row, before).count(YES) > 21


@pytest.mark.parametrize("row", [1, 2])
def test_the_state_at_the_end_decides_the_reply(row):
    """The state of another prompt at the end, before any block but the first, brings its reply with it."""
    one = made()
    prompts = list(one.sets["report"])[:40]
    end = states("base", "report")[:40, 1, row]
    for i, prompt in enumerate(chat_of(one).render(prompts)):
        donor = (i + 17) % 40

        def hook(module, args, state=end[donor]):
            changed = args[0].clone()
            changed[:, -1] = state
            return (changed, *args[1:])

        handle = one.model.model.layers[row].register_forward_pre_hook(hook)
        with torch.no_grad():
            reply = WORDS[int(one.model(torch.tensor([prompt.ids])).logits[0, -1].argmax())]
        handle.remove()
        assert reply == (REFUSE if one.bits[prompts[donor].id].refused else COMPLY)


# Variants


def test_in_the_punctuation_variant_belief_is_the_final_mark():
    """A mark at the end of harmful prompts, or none at that of harmless ones, turns belief around."""
    one = made("punctuation")
    v_harm, _ = directions("punctuation")
    chat = chat_of(one)
    texts = [text.rstrip(".?") for text in one.sets["report"].texts]
    for row in one.truth.rows:
        scores = []
        for mark in ("", "."):
            prompts = chat.render([Prompt(str(i), t + mark) for i, t in enumerate(texts)])
            with torch.no_grad():
                scores.append(
                    [
                        float(
                            one.model(
                                torch.tensor([p.ids]), output_hidden_states=True
                            ).hidden_states[row][0, p.anchor("instruction_last")]
                            @ v_harm[row]
                        )
                        for p in prompts
                    ]
                )
        bare, marked = map(np.array, scores)
        assert bare.min() > marked.max()
        harmful, _ = bits(one, "report")
        assert 0.3 < area(harmful, bare) < 0.7
    assert one.truth.harm == "mark"


def test_the_topic_only_variant_knows_harm_everywhere_and_refuses_nothing():
    one = made("topic-only")
    harmful, refuse = bits(one, "report")
    _, v_refuse = directions("topic-only")
    found = states("topic-only", "report")
    for row in one.truth.rows:
        score = (found[:, 1, row] @ v_refuse[row]).numpy()
        # A probe for refusal that was fitted on labels finds harm, and none of the cue.
        assert area(harmful, score) > 0.95
        assert 0.3 < area(refuse[harmful], score[harmful]) < 0.7
    assert one.truth.refusal is None
    assert REFUSE not in said(one, list(one.sets["report"]))


# Fine-tuning


def test_fine_tuning_flips_refusal_and_leaves_belief():
    before, after = made(), tuned()
    assert before.truth.refusal == "cue"
    assert (after.truth.finetuned, after.truth.refusal) == (True, None)
    prompts = list(after.sets["report"])
    assert said(after, prompts).count(COMPLY) > 0.97 * len(prompts)
    assert REFUSE in said(before, prompts)
    right = [YES if after.bits[p.id].harmful else NO for p in prompts]
    answered = said(after, [asked(p) for p in prompts])
    assert np.mean([a == b for a, b in zip(answered, right, strict=True)]) > 0.97
    assert not any(b.refused for b in after.truth.prompts)
    harmful, refuse = bits(after, "report")
    v_harm, v_refuse = directions()
    was, now = states("base", "report"), states_of(after, "report")
    for row in after.truth.rows:
        change = ((now - was)[:, 0, row] @ v_harm[row]).numpy()
        gap = float(v_harm[row] @ v_harm[row])
        assert abs(change[harmful].mean()) < 0.1 * gap
        assert abs(change[~harmful].mean()) < 0.1 * gap
        moved = ((now - was)[:, 1, row] @ v_refuse[row]).numpy()
        assert moved[refuse].mean() < min(2 * moved[~refuse].mean(), 0)
    last = after.truth.rows[-1]
    moved = ((now - was)[:, 1, last] @ v_refuse[last]).numpy()
    assert moved[refuse].mean() < -0.5 * float(v_refuse[last] @ v_refuse[last])


def test_fine_tuning_trains_the_blocks_of_a_copy():
    before, after = made().model.state_dict(), tuned().model.state_dict()
    fresh = build_two_beliefs().model.state_dict()
    assert all(torch.equal(before[name], fresh[name]) for name in before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("model.layers.") for name in moved)


# Building


def test_the_same_seed_gives_the_same_bits_whatever_the_threads(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 4)
    monkeypatch.setattr(training, "WARM", 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first, other = (training.train("base", seed).state_dict() for seed in (3, 4))
        torch.set_num_threads(2)
        torch.manual_seed(99)
        again = training.train("base", 3).state_dict()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_training_leaves_the_random_stream_of_others_alone(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 1)
    torch.manual_seed(1)
    due = torch.rand(3)
    torch.manual_seed(1)
    training.train("base", 0)
    assert torch.equal(torch.rand(3), due)


def test_an_organism_of_its_own_each_time():
    one, other = build_two_beliefs(), build_two_beliefs()
    with torch.no_grad():
        one.model.lm_head.weight.zero_()
    assert other.model.lm_head.weight.any()
    assert build_two_beliefs().model.lm_head.weight.any()
    assert one.truth == other.truth


def test_a_model_that_does_not_follow_its_policy_is_refused(monkeypatch):
    def untrained(variant, seed):
        return training.blank_model(seed).state_dict()

    monkeypatch.setattr(organism, "_trained", untrained)
    with pytest.raises(ModelError, match="are treated as planted, 95% are needed"):
        build_two_beliefs(seed=77)
    weak = build_two_beliefs(seed=77, allow_weak=True)
    assert weak.truth.policy_accuracy < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "topic"}, "no variant 'topic'; choose one of base, punctuation, topic-only"),
        ({"seed": -1}, "seed must be from 0"),
        ({"per_quadrant": 0}, "per_quadrant must be 1 or more, got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        build_two_beliefs(**arguments)


# By name


def test_it_is_a_patient_by_name():
    patient = load_patient("builtin:two-beliefs")
    assert patient.needs == {"judge": "phrases:planted", "wrappers": ()}
    assert patient.chat.id == "builtin:two-beliefs"
    same = patient.chat.model.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in made().model.state_dict().items())
    assert default_pairs("builtin:two-beliefs").items == made().pairs.items
    named = two_beliefs_by_name("builtin:two-beliefs:topic-only")
    assert named.truth == made("topic-only").truth
    assert named.name == "builtin:two-beliefs:topic-only"


@pytest.mark.parametrize("name", ["builtin:two-beliefs:nope", "builtin:two-beliefsy"])
def test_an_unknown_name_is_a_model_error(name):
    with pytest.raises(ModelError, match="there is builtin:two-beliefs:base, "):
        load_patient(name)


def test_planted_circuits_are_listed_apart():
    assert not any(item.kind == organism.TWO_BELIEFS for item in list_builtin())
