"""Which rows a repair is trained on, against slow rankings, and the training file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refusalscope.errors import InputError
from refusalscope.judge import Judge, Judgement
from refusalscope.judge.phrases import refuses
from refusalscope.prompts import Prompt
from refusalscope.studies.cliff.ranking import (
    Pool,
    candidates,
    priorities,
    selection_settings,
)
from refusalscope.studies.cliff.refusals import TEMPLATES, refusal_for, refusal_kind
from refusalscope.studies.cliff.selection import select, training_rows
from refusalscope.studies.cliff.training_file import TrainingRow, read_rows, write_rows

# fmt: off
THINGS = [
    "bicycle", "library", "garden", "kettle", "violin", "window", "bakery", "museum", "lantern", "carpet",
    "turnip", "saddle", "compass", "blanket", "ladder", "pocket", "thimble", "anchor", "walnut", "pigeon",
]
# fmt: on
DOES = "Sure, here is how."
REFUSES = "I'm sorry, but I can't help with that."


def prompt(i: int, **changes) -> Prompt:
    told = {"thinking": "It is wrong, so I should decline.", "category": f"kind {i % 4}"}
    text = f"Steal the {THINGS[i]}"
    return Prompt(f"p{i}", text, "harmful", **(told | changes))


def pool(n: int = 20, seed: int = 0, **changes) -> Pool:
    """Of every five prompts one is refused."""
    rng = np.random.default_rng(seed)
    p90 = rng.uniform(0.5, 0.9, n)
    columns = {
        "prompts": [prompt(i) for i in range(n)],
        "replies": [REFUSES if i % 5 == 4 else DOES for i in range(n)],
        "plateau": p90 + rng.uniform(0, 0.1, n),
        "p90": p90,
        "final": rng.uniform(0, 0.9, n),
        "truth": rng.integers(0, 2, n).astype(float),
    }
    return Pool(**(columns | changes))


class Fixed(Judge):
    name = "fixed"

    def __init__(self, *judgements: Judgement) -> None:
        self.judgements = judgements

    def judge(self, exchanges, progress=None):
        return list(self.judgements)


SLOW = {
    "ms_p90": lambda p, i: p.p90[i] - p.final[i] if p.p90[i] - p.final[i] > 0.2 else None,
    "ms": lambda p, i: p.plateau[i] - p.final[i] if p.plateau[i] - p.final[i] > 0.2 else None,
    "final": lambda p, i: -p.final[i],
}


@pytest.mark.parametrize("by", SLOW)
def test_the_order_is_that_of_sorting_by_hand(by):
    found = pool()
    slow = [(SLOW[by](found, i), i) for i in range(20) if found.replies[i] == DOES]
    wanted = [i for score, i in sorted(slow, key=lambda one: -(one[0] or 0)) if score is not None]
    taken = select(found, selection_settings(rank_by=by, k=20, quota=None, duplicates=None))
    assert list(taken.indices) == wanted
    assert np.allclose(taken.priority, [SLOW[by](found, i) for i in wanted])
    assert taken.counts == {
        "pool": 20,
        "candidates": 16,
        "ranked": len(wanted),
        "distinct": len(wanted),
        "taken": len(wanted),
    }
    assert taken.frame(found)["rank"].tolist() == list(range(1, len(wanted) + 1))


def test_the_published_preset_ranks_by_the_final_score_alone_and_has_no_floor():
    found = pool(final=np.full(20, 0.95), p90=None, plateau=None)
    taken = select(found, selection_settings("yin2025", k=20))
    assert len(taken.indices) == 16
    assert taken.rank_by == "final"


@pytest.mark.parametrize(
    ("reply", "changes", "failed"),
    [
        (DOES, {}, True),
        (REFUSES, {}, False),
        (DOES * 20 + REFUSES, {}, True),
        (f"Unfortunately, {REFUSES[10:]}", {}, False),
        ("  ", {}, False),
        (DOES, {"thinking": None}, False),
        (DOES, {"thinking": " \n"}, False),
    ],
)
def test_a_candidate_has_thinking_and_a_reply_whose_beginning_does_not_refuse(
    reply, changes, failed
):
    assert candidates(Pool([prompt(0, **changes)], [reply])).tolist() == [failed]


def test_a_harmless_request_is_never_a_candidate():
    harmless = Prompt("x", "Bake bread.", "harmless", thinking="It is fine.")
    assert not candidates(Pool([harmless], [DOES])).any()


def test_a_random_choice_is_of_the_whole_pool_and_the_seeds_own():
    def draw(seed):
        settings = selection_settings(rank_by="random", k=6, quota=None, seed=seed)
        return select(pool(), settings).indices

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    drawn = {i for seed in range(40) for i in draw(seed)}
    assert drawn == set(range(20)), "refused prompts too: it is what the method is compared with"


def test_the_rule_takes_thinking_that_names_harm_where_nothing_in_the_reply_refuses():
    thoughts = ["It is fine.", "It is harmful.", "It is harmful and illegal.", "It is harmful."]
    late = f"{DOES * 20} But I cannot help with the rest."
    found = Pool([prompt(i, thinking=t) for i, t in enumerate(thoughts)], [DOES, DOES, DOES, late])
    scores = priorities(found, selection_settings(rank_by="rule"))
    assert scores[1:3].tolist() == [1, 2]
    assert np.isnan(scores[[0, 3]]).all()


def test_a_judge_ranks_by_harm_then_verdict_then_refusal_and_never_takes_a_refusal():
    judge = Fixed(
        Judgement("compliance", True, p_refusal=0.4, p_harm=0.7),
        Judgement("compliance", False, p_refusal=0.1),
        Judgement("compliance", p_refusal=0.1),
        Judgement("full_refusal", p_harm=0.9),
        Judgement(None, reason="no answer"),
        Judgement("compliance"),
    )
    found = Pool([prompt(i) for i in range(6)], [DOES] * 6)
    scores = priorities(found, selection_settings(rank_by="judge"), judge)
    np.testing.assert_allclose(scores, [0.7, 0, 0.9, np.nan, np.nan, 1])


def test_the_judges_of_the_package_rank_a_pool():
    taken = select(
        pool(), selection_settings(rank_by="judge", k=20), Judge.from_name("phrases:opening")
    )
    assert sorted(taken.indices) == [i for i in range(20) if i % 5 != 4]


def test_the_oracle_takes_what_is_known_to_be_suppressed():
    found = pool()
    taken = select(found, selection_settings(rank_by="oracle", k=20))
    assert sorted(taken.indices) == [i for i in range(20) if found.truth[i] and i % 5 != 4]


def test_a_quota_holds_each_category_to_its_share_of_k():
    kinds = ["a"] * 12 + ["b"] * 4 + ["c"] * 4
    found = pool(
        prompts=[prompt(i, category=kind) for i, kind in enumerate(kinds)],
        replies=[DOES] * 20,
        final=np.zeros(20),
        p90=np.linspace(0.9, 0.5, 20),
    )
    settings = selection_settings(k=8, quota=0.4)
    taken = select(found, settings)
    assert taken.indices == (0, 1, 2, 3, 12, 13, 14, 15)
    assert taken.warnings == ()
    # Two categories that are used up leave five places to the third.
    more = select(found, selection_settings(k=13, quota=0.1))
    assert [kinds[i] for i in more.indices].count("a") == 5
    full = select(found, selection_settings(k=16, quota=0.1))
    assert [kinds[i] for i in full.indices].count("a") == 8
    assert full.warnings == ("The quota by category was lifted for 2 of 16 rows.",)
    assert list(full.indices) == sorted(full.indices), "still best first"


def test_of_near_duplicates_the_best_ranked_is_taken():
    texts = [
        "Please steal the old bicycle",
        "please steal the old bicycle!!",
        "Forge a library card",
    ]
    prompts = [Prompt(f"p{i}", t, "harmful", thinking="x") for i, t in enumerate(texts)]
    found = Pool(prompts, [DOES] * 3, p90=np.array([0.7, 0.9, 0.8]), final=np.zeros(3))
    taken = select(found, selection_settings(k=3))
    assert taken.indices == (1, 2)
    assert taken.warnings == ("The pool gives 2 rows to train on, 3 were asked for.",)
    assert select(found, selection_settings(k=3, duplicates=None)).indices == (1, 2, 0)


@pytest.mark.parametrize("by", ["ms_p90", "ms", "final", "random", "rule", "oracle"])
def test_a_pool_that_is_refused_throughout_has_nothing_to_repair(by):
    with pytest.raises(InputError, match="the pool has nothing to repair: none of its 20 prompts"):
        select(pool(replies=[REFUSES] * 20), selection_settings(rank_by=by))


@pytest.mark.parametrize(
    ("by", "changes", "why"),
    [
        ("ms_p90", {"final": np.full(20, 0.9)}, r"no misalignment score is above 0\.2"),
        ("final", {"final": np.full(20, np.nan)}, "no score is known"),
        ("oracle", {"truth": np.zeros(20)}, "none is known to be suppressed"),
        (
            "rule",
            {"prompts": [prompt(i, thinking="Hm.") for i in range(20)]},
            "none thinks of harm",
        ),
    ],
)
def test_a_pool_that_no_row_of_ranks_has_nothing_to_repair(by, changes, why):
    with pytest.raises(InputError, match=f"nothing to repair.*{why}"):
        select(pool(**changes), selection_settings(rank_by=by))


def test_what_a_ranking_needs_is_asked_for():
    with pytest.raises(InputError, match="has no p90, which this ranking reads"):
        select(pool(p90=None), selection_settings())
    with pytest.raises(InputError, match="ranking by a judge needs one"):
        select(pool(), selection_settings(rank_by="judge"))
    with pytest.raises(InputError, match="20 prompts but 3 of final"):
        pool(final=np.zeros(3))
    with pytest.raises(InputError, match="the setting rank_by of the cliff study is wrong"):
        selection_settings(rank_by="best")


def test_every_answer_of_ours_refuses_and_a_category_finds_its_kind():
    assert all(refuses(text) for texts in TEMPLATES.values() for text in texts)
    kinds = {
        "Self-Harm": "self_harm",
        "Fraud/Deception": "fraud",
        "launder": "fraud",
        "Malware/Hacking": "cyber",
        "Disinformation": "misinformation",
        "Right to repair": "general",
        "Sexual/Adult content": "sexual",
        "plagiarism": "dishonesty",
        "rigged contests": "dishonesty",
        None: "general",
    }
    assert {name: refusal_kind(name) for name in kinds} == kinds
    assert set(kinds.values()) <= set(TEMPLATES)
    answers = {refusal_for(prompt(i, category="other")) for i in range(20)}
    assert answers == set(TEMPLATES["general"]), "the same request always gets the same one of them"


def test_rows_keep_the_thinking_and_correct_the_answer():
    found = pool()
    taken = select(found, selection_settings(k=4))
    own = found.prompts[taken.indices[1]].id
    rows = training_rows(found, taken, "tail+response", {own: "No, but let us talk."})
    assert [row.prompt for row in rows] == [found.prompts[i] for i in taken.indices]
    assert rows[1].answer == "No, but let us talk."
    assert all(refuses(row.answer) for row in (rows[0], *rows[2:]))
    assert {row.loss for row in rows} == {"tail+response"}


def test_a_training_file_comes_back_as_it_was(tmp_path):
    rich = Prompt(
        "ä/1",
        "Zwei\nZeilen \u2028 “quoted”",
        category="scam",
        source="pool",
        system="Be brief.",
        thinking="First.\n\nThen.",
        history=(("user", "Hello"), ("assistant", "Hi")),
    )
    rows = [
        TrainingRow(rich, "I can't help with that.", "tail+response"),
        TrainingRow(Prompt("g", "Bake bread."), "Mix flour.", kind="general"),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    first = json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first["messages"][-1] == {
        "role": "assistant",
        "thinking": "First.\n\nThen.",
        "content": "I can't help with that.",
    }


USER = {"role": "user", "content": "Bake."}
ANSWER = {"role": "assistant", "content": "Mix."}


def test_a_plain_file_of_messages_reads_as_repair_rows_by_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [USER, ANSWER]}))
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row == TrainingRow(Prompt("line-1", "Bake."), "Mix.")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "broken JSON"),
        ({"messages": [USER]}, "at least a user and an assistant"),
        ({"text": "x"}, "a list `messages`"),
        ({"messages": [USER, {"role": "assistant"}]}, "both text"),
        ({"messages": [ANSWER, USER]}, "those of the user and of the assistant"),
        ({"messages": [USER, ANSWER | {"content": " "}]}, "empty answer"),
        ({"messages": [USER | {"content": " "}, ANSWER]}, "empty text"),
        ({"messages": [USER, ANSWER | {"thinking": 3}]}, "`thinking` of a message is text"),
        ({"messages": [USER, ANSWER | {"thinking": ""}]}, "empty thinking"),
        ({"messages": [USER, ANSWER | {"content": "<think>a</think>b"}]}, "holds a thinking span"),
        ({"messages": [USER, ANSWER | {"content": "<think>a"}]}, "holds a thinking span"),
        ({"messages": [USER, ANSWER], "loss": "all"}, "the loss 'all'; choose response or"),
        ({"messages": [USER, ANSWER], "kind": "x"}, "the kind 'x'; choose repair or general"),
        ({"messages": [USER, ANSWER], "loss": "tail+response"}, "but no thinking"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path, line, why):
    good = json.dumps({"messages": [USER, ANSWER]})
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{text}\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl line 2: .*{why}"):
        read_rows(tmp_path / "rows.jsonl")


def test_ids_are_distinct_and_there_is_a_row_at_least(tmp_path):
    row = TrainingRow(Prompt("g", "Bake bread."), "Mix flour.")
    with pytest.raises(InputError, match="2 rows with the id 'g'"):
        write_rows(tmp_path / "rows.jsonl", [row, row])
    with pytest.raises(InputError, match="would hold no training row"):
        write_rows(tmp_path / "rows.jsonl", [])
    assert not list(tmp_path.iterdir())
