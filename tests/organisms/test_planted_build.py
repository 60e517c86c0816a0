"""Building planted models: seeds, refusals, the truth record, and what breaks it."""

from __future__ import annotations

import pytest
import torch

from organisms import oracle
from refusalscope.errors import InputError, ModelError
from refusalscope.organisms.planted import build, list_builtin
from refusalscope.organisms.planted.construction import C, plant, tail_head
from refusalscope.organisms.planted.prompts import draw_pairs

ORGANISMS = [
    ("base", {}),
    ("backup", {"redundancy": 2}),
    ("backup", {"redundancy": 3}),
    *(("split", {"parts": parts}) for parts in (1, 2, 4, 8)),
    ("coalitions", {}),
    ("rotated", {}),
    ("no_circuit", {}),
    ("long_prefix", {"prefix": 60}),
    *(("chain", {"depth": depth}) for depth in (1, 2, 3, 4)),
    ("dose", {"threshold": 30}),
    ("dose", {"threshold": 60}),
    ("cipher", {}),
    ("families", {}),
    *(("relocated", {"place": place}) for place in (0, 1, 2, 3)),
    ("sibling", {}),
    ("post_norm", {}),
]
HYDRAS = ("base", "partial", "chain", "control")
CLIFFS = ("base", "graded", "template_shift", "two_stage", "within_thinking")
NAMES = [" ".join([variant, *map(str, options.values())]) for variant, options in ORGANISMS]


def weights(planted) -> dict[str, torch.Tensor]:
    return planted.model.state_dict()


@pytest.mark.parametrize("variant", ["base", "rotated", "families", "post_norm"])
def test_one_seed_gives_the_same_bits_and_two_seeds_do_not(variant):
    first, again, other = (build("planted-routes", variant, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, weights(again)[name]) for name, a in weights(first).items())
    assert (first.pairs, first.truth) == (again.pairs, again.truth)
    assert any(not torch.equal(a, weights(other)[name]) for name, a in weights(first).items())
    assert first.pairs != other.pairs


def test_building_neither_reads_nor_moves_the_global_random_stream():
    torch.manual_seed(5)
    first = build(seed=1)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    torch.manual_seed(6)
    assert torch.equal(first.model.lm_head.weight, build(seed=1).model.lm_head.weight)


def test_noise_has_the_stated_size_and_never_sees_the_constant():
    quiet, model = (build(seed=0, noise=noise).model for noise in (0.0, 0.01))
    planted = quiet.state_dict()
    for name, weight in model.state_dict().items():
        if "embed" in name:
            continue
        noise = weight - planted[name]
        blind = any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate", "up"))
        stated = 0.0 if "norm" in name else 0.005 if "lm_head" in name else 0.01
        if blind:
            assert noise[:, 0].abs().max() < 1e-7
            noise = noise[:, 1:]
        assert noise.std() == pytest.approx(stated, rel=0.1)
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))


@pytest.mark.parametrize(("variant", "options"), ORGANISMS, ids=NAMES)
def test_ten_seeds_follow_the_policy(variant, options):
    for seed in range(10):
        planted = build("planted-routes", variant, seed=seed, **options)
        assert planted.truth.policy_accuracy >= 0.95


@pytest.mark.parametrize("comply_bias", [0.75, 0.5, 0.45])
def test_the_policy_accuracy_is_that_of_the_reference(comply_bias):
    planted = build(seed=7, comply_bias=comply_bias, allow_weak=True)
    drawn = draw_pairs(planted.truth.prompts)
    assert planted.truth.policy_accuracy == oracle.policy_accuracy(planted.model, drawn)


def test_at_half_bias_only_three_of_ten_seeds_follow_the_policy():
    kept = [build(seed=s, comply_bias=0.5, allow_weak=True).truth for s in range(10)]
    assert sum(truth.policy_accuracy for truth in kept) / 10 == pytest.approx(0.30, abs=0.02)


@pytest.mark.parametrize(("variant", "options"), ORGANISMS, ids=NAMES)
def test_the_truth_record_holds_for_a_seed_it_was_not_set_on(variant, options):
    planted = build("planted-routes", variant, seed=11, **options)
    assert planted.truth.expected
    drawn = draw_pairs(planted.truth.prompts)
    assert oracle.failed(planted.model, drawn, planted.truth.expected) == []


def test_the_truth_record_of_the_default_seed_holds():
    planted = build()
    drawn = draw_pairs(planted.truth.prompts)
    assert oracle.failed(planted.model, drawn, planted.truth.expected) == []


@pytest.mark.parametrize(
    ("layer", "head", "watched"),
    [
        (1, 2, "necessity [(1, 2)] last"),
        (3, 1, "necessity [(3, 1)] last"),
        (5, 0, "necessity [(5, 0)] last"),
        (5, 3, "necessity [(5, 3)] last"),
        (6, 2, "necessity [(6, 2)] last"),
        (7, 0, "necessity [(7, 0)] last"),
        (4, 7, "necessity [(4, 7)] last"),
        (2, 6, "margin_harmless [] last"),
    ],
)
def test_breaking_one_planted_weight_turns_its_check_red(layer, head, watched):
    planted = build()
    column = planted.model.model.layers[layer].self_attn.o_proj.weight[:, head * 16]
    column[column.abs().argmax()] = 0.0
    drawn = draw_pairs(planted.truth.prompts)
    broken = oracle.failed(planted.model, drawn, planted.truth.expected)
    assert any(line.startswith(watched) for line in broken), broken


def test_breaking_the_planted_unit_turns_the_no_circuit_check_red():
    planted = build("planted-routes", "no_circuit")
    planted.model.model.layers[3].mlp.down_proj.weight[C.U, 0] = 0.0
    expected = [e for e in planted.truth.expected if e.quantity.startswith("margin")]
    broken = oracle.failed(planted.model, draw_pairs(planted.truth.prompts), expected)
    assert [line.split()[0] for line in broken] == ["margin_harmful"]


def test_removing_the_key_of_the_backup_unmasks_the_gate():
    planted = build("planted-routes", "backup")
    planted.model.model.layers[4].self_attn.k_proj.weight[1 * 16 + 7, C.ASST] = 0.0
    broken = oracle.failed(planted.model, draw_pairs(planted.truth.prompts), planted.truth.expected)
    assert any(line.startswith("necessity [(3, 1)] last") for line in broken), broken


def test_the_truth_names_roles_drives_and_places():
    heads = {(h.layer, h.head): h for h in build().truth.heads}
    assert heads[1, 2].drives == ((3, 1),)
    assert heads[3, 1].drives == ((5, 0), (5, 3), (6, 2))
    assert heads[5, 0].drives == ()
    assert (heads[1, 2].acts, heads[3, 1].acts) == ("from:harmful_word", "prompt_last")
    assert (heads[2, 6].acts, heads[6, 5].acts) == ("everywhere", "from:think_end")
    backup = {(h.layer, h.head): h for h in build("planted-routes", "backup").truth.heads}
    assert backup[1, 2].drives == ((3, 1), (4, 2))
    assert (4, 2) in backup[3, 1].drives


def test_no_values_are_expected_outside_the_settings_they_were_measured_at():
    assert build(noise=0.0).truth.expected
    assert build(noise=0.02).truth.expected == ()
    assert build(comply_bias=0.8).truth.expected == ()
    assert build("planted-hydra", noise=0.02, allow_weak=True).truth.expected == ()


def test_pairs_are_as_many_as_asked_and_carry_their_word():
    assert len(build().pairs) == 24
    assert len(build("planted-routes", "coalitions").pairs) == 96
    pairs = build(pairs=5).pairs
    assert len(pairs) == 5
    assert all(pair.category in pair.harmful.split() for pair in pairs)


def test_routing_organisms_come_without_a_dictionary():
    planted = build()
    assert planted.dictionary is None
    assert planted.truth.latents == ()


def test_a_model_that_breaks_its_policy_is_refused_unless_allowed():
    with pytest.raises(ModelError, match="follow the planted policy"):
        build(comply_bias=0.0)
    assert build(comply_bias=0.0, allow_weak=True).truth.policy_accuracy == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "planted-roads"}, "there is planted-routes and planted-hydra"),
        ({"kind": "planted-hydra", "variant": "backup"}, "planted-hydra has no variant 'backup'"),
        ({"kind": "planted-hydra", "variant": "partial", "eta": 100}, "must be 1 to 99, got 100"),
        ({"variant": "sideways"}, "choose one of base, backup"),
        ({"variant": "base", "parts": 2}, "its options are: none"),
        ({"variant": "split", "parts": 3}, "must be 1 or 2 or 4 or 8, got 3"),
        ({"variant": "long_prefix", "prefix": 600}, "must be 1 to 512"),
        ({"variant": "dose", "threshold": 45}, "must be 30 or 60, got 45"),
        ({"variant": "chain", "depth": 5}, "must be 1 to 4"),
        ({"seed": -1}, "seed"),
        ({"noise": -0.1}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"pairs": 0}, "pairs"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        build(**arguments)


def test_the_list_names_every_variant_with_its_options():
    listed = {(item.kind, item.variant): item for item in list_builtin()}
    assert set(listed) == {
        *(("planted-routes", variant) for variant, _ in ORGANISMS),
        *(("planted-hydra", variant) for variant in HYDRAS),
        *(("planted-cliff", variant) for variant in CLIFFS),
    }
    assert listed["planted-routes", "split"].options["parts"].values == (1, 2, 4, 8)
    for item in list_builtin():
        defaults = {name: option.default for name, option in item.options.items()}
        assert build(item.kind, item.variant).truth.options == defaults


def test_heads_of_one_group_must_read_the_same():
    model = build().model
    heads = [tail_head(3, h, "gate", {channel: 1}, {C.U: 1}) for h, channel in ((4, 5), (5, 6))]
    with pytest.raises(ValueError, match="share a key/value group"):
        plant(model, heads)
