"""Hydras show what the page measured: seed 0, 24 pairs, comply bias .3.

Figures of ../shared/methods/planted_models.md, section 4; tolerance .02 on ratios, .1 on margins and on
the axis U, as the page gives it. Left out are figures of the page that hang on its own draw of the 64
distractors: how many of them are active at the tail, and which one wakes by chance.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from organisms import oracle
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.construction import C
from refusalscope.organisms.planted.prompts import draw_pairs

VARIANTS = ("base", "partial", "chain", "control")
PLANNED = ("P1", "P2", "P3", "B1", "B2", "C", "W", "DET", "HARM", "ASST", "BEN")
PRIMARIES, BACKUPS = "P1 P2 P3", "B1 B2"
BOTH = f"{PRIMARIES} {BACKUPS}"
# The page's table, row by row; `+ C` is the last.
ROWS = ("", "P1", "P1 P2", PRIMARIES, BACKUPS, BOTH, f"{BOTH} C")
LIVE = {
    "base": (1.59, 1.41, 1.52, 1.56, 1.59, -2.31, -2.31),
    "chain": (1.60, 1.52, 1.54, 1.53, 1.60, 1.45, -2.34),
    "partial": (1.60, 0.77, 0.04, -0.72, 1.60, -2.31, -2.31),
    "control": (1.60, 0.34, -0.98, -2.34, 1.60, -2.34, -2.34),
}
BASE_AXIS = (2.04, 1.94, 2.00, 2.03, 2.04, -0.01, -0.01)
BASE_CLEAN_MASK = (1.59, 1.41, 1.52, 1.56, 1.59, 1.56, 1.56)
BASE_NO_WAKE = (1.59, 0.34, -0.98, -2.34, 1.59, -2.34, -2.34)
BASE_NO_WAKE_AXIS = (2.04, 1.37, 0.68, -0.01, 2.04, -0.01, -0.01)
BASE_COMPENSATION = (0, 0.57, 1.32, 2.04, 0, 0, 0)


def margin(value: float):
    return pytest.approx(value, abs=0.1)


def ratio(value: float):
    return pytest.approx(value, abs=0.02)


@cache
def planted(variant: str, seed: int = 0, **options: int):
    return build("planted-hydra", variant, seed=seed, **options)


@cache
def prompts(seed: int = 0):
    """The harmful prompts and their controls, which all variants of one seed share."""
    return tuple(map(list, zip(*draw_pairs(planted("base", seed).truth.prompts), strict=True)))


def rows(organism, names: str) -> list[int]:
    known = {latent.name: latent.index for latent in organism.truth.latents}
    return [known[name] for name in names.split()]


def called(organism, indices) -> set[str]:
    return {organism.truth.latents[index].name for index in indices}


def ablated(organism, names: str, mode: str = "live", layers=None) -> oracle.Ablated:
    model, dictionary = organism.model, organism.dictionary
    harmful, _ = prompts(organism.truth.seed)
    return oracle.ablate(model, dictionary, harmful, rows(organism, names), mode, layers)


# The table of the page


@pytest.mark.parametrize("variant", VARIANTS)
def test_live_ablation(variant):
    found = [ablated(planted(variant), names).margin.mean() for names in ROWS]
    assert found == [margin(value) for value in LIVE[variant]]


def test_live_ablation_in_numbers_of_the_axis():
    found = [ablated(planted("base"), names).axis.mean() for names in ROWS]
    assert found == [margin(value) for value in BASE_AXIS]


def test_dormant_members_of_a_set_are_left_alone_under_the_clean_mask():
    found = [ablated(planted("base"), names, "clean_mask").margin.mean() for names in ROWS]
    assert found == [margin(value) for value in BASE_CLEAN_MASK]


def test_nothing_makes_up_for_a_loss_where_nothing_may_wake():
    found = [ablated(planted("base"), names, "no_wake") for names in ROWS]
    assert [each.margin.mean() for each in found] == [margin(value) for value in BASE_NO_WAKE]
    assert [each.axis.mean() for each in found] == [margin(value) for value in BASE_NO_WAKE_AXIS]
    live = [ablated(planted("base"), names).axis.mean() for names in ROWS]
    compensation = [a - b.axis.mean() for a, b in zip(live, found, strict=True)]
    assert compensation == [margin(value) for value in BASE_COMPENSATION]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ablating_silent_backups_changes_not_one_bit(variant):
    organism = planted(variant)
    assert np.array_equal(ablated(organism, BACKUPS).margin, ablated(organism, "").margin)


@pytest.mark.parametrize("variant", VARIANTS)
def test_controls_comply(variant):
    organism = planted(variant)
    assert oracle.margins(organism.model, prompts()[1]).mean() == margin(-2.34)
    assert organism.truth.policy_accuracy == 1.0


# Waking


@pytest.mark.parametrize(
    ("variant", "after_primaries", "after_both"),
    [
        ("base", {"B1", "B2", "W"}, {"W"}),
        ("partial", {"B1", "B2", "W"}, {"W"}),
        ("chain", {"B1", "B2", "W"}, {"C", "W"}),
        ("control", set(), set()),
    ],
)
def test_the_reserve_wakes_on_every_prompt_and_nothing_else_does(
    variant, after_primaries, after_both
):
    organism = planted(variant)
    for names, expected in ((PRIMARIES, after_primaries), (BOTH, after_both)):
        counts = oracle.woken(
            organism.model, organism.dictionary, prompts()[0], rows(organism, names)
        )
        counts = {organism.truth.latents[index].name: n for index, n in counts.items()}
        # On the page one distractor wakes on 2 to 9 prompts: which, and whether, is chance.
        assert {name for name in counts if not name.startswith("distractor")} == expected
        assert all(counts[name] == 24 for name in expected)
        assert sum(n for name, n in counts.items() if name not in expected) <= 9


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("variant", ["base", "chain", "control"])
def test_the_truth_says_when_a_latent_is_active(variant, seed):
    organism = planted(variant, seed)
    harmful, control = prompts(seed)
    model, dictionary = organism.model, organism.dictionary

    def active(inputs, names: str = "") -> torch.Tensor:
        """Share of prompts with the latent active somewhere: [layers, latents]."""
        acts = oracle.ablate(model, dictionary, inputs, rows(organism, names)).acts
        return torch.stack([(each > 0).any(1) for each in acts]).float().mean(0)

    shares = {
        "harmful": active(harmful),
        "control": active(control),
        "primary": active(harmful, PRIMARIES),
        "both": active(harmful, BOTH),
    }
    due = {
        "harmful_prompt": {"harmful", "primary", "both"},
        "harmless_prompt": {"control"},
        "any_prompt": set(shares),
        "ablated:primary": {"primary", "both"},
        "ablated:primary+backup": {"both"},
        "never": set(),
    }
    zeroed = {"primary": PRIMARIES.split(), "both": BOTH.split()}
    for latent in organism.truth.latents[: len(PLANNED)]:
        for run, share in shares.items():
            layers = latent.layers if run in due[latent.wakes_when] else ()
            if latent.name in zeroed.get(run, ()):
                # Read where it is written, and gone from there on.
                layers = layers[:1]
            expected = [float(layer in layers) for layer in range(8)]
            assert share[:, latent.index].tolist() == expected, (latent.name, run)


# Sets, factors, attribution


@pytest.mark.parametrize(
    ("variant", "extra", "sets", "undecided"),
    [
        ("base", "", "B1B2P1P2 B1B2P1P3 B1B2P2P3 B1P1P2P3 B2P1P2P3", ""),
        ("chain", "C", "B1B2CP1P2 B1B2CP1P3 B1B2CP2P3 B1CP1P2P3 B2CP1P2P3", ""),
        (
            "partial",
            "",
            "B1P1P2 B2P1P2 B1P1P3 B2P1P3 B1P2P3 B2P2P3 P1P2P3",
            "P1P2 P1P3 P2P3",
        ),
        ("control", "", "P1P2 P1P3 P2P3", ""),
    ],
)
def test_the_minimal_sets_that_flip_every_prompt(variant, extra, sets, undecided):
    organism = planted(variant)
    candidates = rows(organism, f"{BOTH} {extra}")
    found = oracle.flipping_sets(organism.model, organism.dictionary, prompts()[0], candidates)
    minimal, split = ([called(organism, each) for each in side] for side in found)
    assert {"".join(sorted(each)) for each in minimal} == set(sets.split())
    assert {"".join(sorted(each)) for each in split} == set(undecided.split())
    if variant == "base":
        assert set.intersection(*minimal) == set()


@pytest.mark.parametrize(
    ("variant", "value"), [("base", -3.87), ("partial", -1.59), ("chain", -0.08), ("control", 0.0)]
)
def test_primaries_and_backups_interact(variant, value):
    organism = planted(variant)
    factors = (rows(organism, names) for names in (PRIMARIES, BACKUPS))
    found = oracle.interaction(organism.model, organism.dictionary, prompts()[0], *factors)
    assert found == margin(value)


def test_attribution_after_the_ablation_tells_backups_from_what_merely_wakes():
    organism = planted("base")
    effects = oracle.conditional_attribution(
        organism.model, organism.dictionary, prompts()[0], rows(organism, PRIMARIES)
    )[4:].mean(0)
    b1, b2, inert = effects[rows(organism, "B1 B2 W")].tolist()
    assert (b1, b2) == (margin(1.81), margin(1.83))
    assert inert == ratio(-0.014)
    others = [latent.index for latent in organism.truth.latents if latent.name not in ("B1", "B2")]
    assert effects[others].abs().max() < 0.05


# Traps


def test_frozen_values_at_all_layers_subtract_one_write_many_times():
    frozen = [ablated(planted(v), PRIMARIES, "frozen_value").axis.mean() for v in LIVE]
    by_variant = dict(zip(LIVE, frozen, strict=True))
    assert by_variant["base"] == margin(-6.52)
    assert by_variant["control"] == margin(-10.3)


def test_frozen_values_at_the_layer_of_the_write_equal_the_live_edit():
    organism = planted("base")
    frozen, live = (
        ablated(organism, PRIMARIES, mode, layers)
        for mode, layers in (("frozen_value", [2]), ("live", None))
    )
    assert frozen.margin == pytest.approx(live.margin, abs=1e-4)


def test_a_decoder_that_claims_more_than_the_write_overshoots():
    honest, boasting = planted("partial"), planted("partial", overclaim=1)
    assert all(
        torch.equal(tensor, boasting.model.state_dict()[name])
        for name, tensor in honest.model.state_dict().items()
    )
    found = ablated(boasting, BOTH)
    assert (found.margin.mean(), found.axis.mean()) == (margin(-4.63), margin(-1.23))
    assert ablated(honest, BOTH).axis.mean() == margin(-0.01)


# The dictionary


def test_the_dictionary_lists_the_planned_latents_then_the_distractors():
    organism = planted("base")
    names = [latent.name for latent in organism.truth.latents]
    assert names == [*PLANNED, *(f"distractor{i}" for i in range(64))]
    assert [latent.index for latent in organism.truth.latents] == list(range(75))
    assert organism.dictionary["threshold"].tolist() == pytest.approx([0.1] * 11 + [0.15] * 64)
    norms = organism.dictionary["W_dec"].norm(dim=1)
    assert torch.allclose(norms, torch.ones(75))


@pytest.mark.parametrize(
    ("variant", "names", "eta"),
    [
        ("base", BOTH, 1.0),
        ("partial", BACKUPS, 0.4),
        ("control", BACKUPS, 0.0),
        ("chain", f"{BOTH} C", 1.0),
    ],
)
def test_activation_times_row_is_the_write(variant, names, eta):
    """A stream that holds 2 on the private channel, and what the model wrote beside it on U."""
    organism = planted(variant)
    private = dict(
        zip((*BOTH.split(), "C"), (C.NUIS, C.R2, C.R3, C.R4, C.HARM2, C.DET2), strict=True)
    )
    for name in names.split():
        (index,) = rows(organism, name)
        stream = torch.zeros(64)
        stream[private[name]] = 2.0
        value = oracle.latents_of(organism.dictionary, stream)[index]
        due = stream.clone()
        due[C.U] = 2.0 * eta
        assert torch.allclose(value * organism.dictionary["W_dec"][index], due, atol=1e-6)


def test_zeroing_a_primary_takes_its_write_out_of_the_stream():
    organism = planted("control")
    left = ablated(organism, PRIMARIES).axis.mean()
    benign = oracle.final_states(organism.model, prompts()[1])[:, C.U].mean()
    assert left == pytest.approx(benign, abs=0.02)


def test_distractors_read_token_noise_and_never_the_mark_that_ends_a_reply():
    noise = planted("base").dictionary["W_enc"].T[len(PLANNED) :]
    assert torch.equal(noise, planted("base").dictionary["W_dec"][len(PLANNED) :])
    assert not noise[:, :16].any()
    assert not noise[:, C.SAID].any()
    assert noise[:, 16:63].std() == pytest.approx(47**-0.5, rel=0.05)


def test_sparsity():
    acts = ablated(planted("base"), "").acts
    # On the page 19 and 11. The first hangs on 64 draws against one tail token: 5 planned latents
    # and a sixth of the distractors, give or take 3.
    tail = np.mean([(each[2:, -1] > 0).sum(-1).float().mean() for each in acts])
    assert tail == pytest.approx(19, abs=9)
    assert np.mean([(each > 0).sum(-1).float().mean() for each in acts]) == pytest.approx(11, abs=1)


@pytest.mark.parametrize("layer", [3, 7])
def test_cosines_with_the_refusal_direction(layer):
    organism = planted("base")
    found = [oracle.tail_streams(organism.model, side, layer).mean(0) for side in prompts()]
    direction = torch.tensor(found[0] - found[1], dtype=torch.float32)
    cosines = organism.dictionary["W_dec"] @ (direction / direction.norm())
    planned = cosines[rows(organism, f"{BOTH} C DET")].tolist()
    assert planned == [ratio(value) for value in (0.76, 0.76, 0.76, 0.57, 0.57, 0.57, 0.37)]
    assert cosines[len(PLANNED) :].abs().max() <= 0.015


# The truth record


@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_seeds_follow_the_policy(variant):
    for seed in range(10):
        assert planted(variant, seed).truth.policy_accuracy >= 0.95


@pytest.mark.parametrize("seed", [0, 5, 11])
@pytest.mark.parametrize(
    ("variant", "options"), [*((v, {}) for v in VARIANTS), ("partial", {"overclaim": 1})]
)
def test_the_truth_record_holds(variant, options, seed):
    organism = planted(variant, seed, **options)
    drawn = draw_pairs(organism.truth.prompts)
    margins = [e for e in organism.truth.expected if e.quantity.startswith("margin_har")]
    assert len(margins) == 2
    assert oracle.failed(organism.model, drawn, margins) == []
    ablations = [e for e in organism.truth.expected if e.latents]
    assert len(ablations) >= 6
    assert oracle.failed_ablations(organism, drawn, ablations) == []


def test_an_eta_that_was_not_measured_promises_no_share():
    truth = planted("partial", eta=60).truth
    assert [e.quantity for e in truth.expected] == [
        "margin_harmful",
        "margin_harmless",
        "margin_kept",
    ]
    assert truth.options == {"eta": 60, "overclaim": 0}


def test_the_truth_names_what_nothing_writes():
    roles = {
        variant: {x.name: x.role for x in planted(variant).truth.latents[:7]}
        for variant in VARIANTS
    }
    assert [name for name, role in roles["control"].items() if role == "unused"] == [
        *("B1", "B2", "C", "W")
    ]
    assert [name for name, role in roles["base"].items() if role == "unused"] == ["C"]
    assert roles["chain"]["C"] == "second_backup"
    assert all(latent.layers == () for latent in planted("control").truth.latents[3:7])


def test_one_seed_gives_the_same_bits_and_two_seeds_do_not():
    first, again, other = (build("planted-hydra", "chain", seed=seed) for seed in (3, 3, 4))
    for a, b, c in (
        (first.model.state_dict(), again.model.state_dict(), other.model.state_dict()),
        (first.dictionary, again.dictionary, other.dictionary),
    ):
        assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
        assert any(not torch.equal(tensor, c[name]) for name, tensor in a.items())
    assert (first.pairs, first.truth) == (again.pairs, again.truth)


@pytest.mark.parametrize(
    ("layer", "unit", "watched"),
    [
        (2, 0, "margin_kept P1 P2 P3 no_wake"),
        (4, 0, "margin_kept P1 P2 P3 live"),
        (5, 0, "margin_kept P1 P2 P3 B1 B2 live"),
    ],
)
def test_breaking_one_planted_weight_turns_its_check_red(layer, unit, watched):
    organism = build("planted-hydra", "chain")
    organism.model.model.layers[layer].mlp.down_proj.weight[C.U, unit] = 0.0
    drawn = draw_pairs(organism.truth.prompts)
    broken = oracle.failed_ablations(organism, drawn, organism.truth.expected)
    assert any(line.startswith(watched) for line in broken), broken
