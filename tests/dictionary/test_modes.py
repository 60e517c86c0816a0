"""The four modes of ablation over layers, each against a naive loop that follows its definition."""

from __future__ import annotations

import pytest
import torch

from dictionary import oracle, synthetic
from dictionary.synthetic import LAYERS, WIDTH
from dictionary.synthetic import ON_MODEL as D_SAE
from model import oracle as model_oracle
from refusalscope.dictionary import activations, latent_variant, load_dictionary
from refusalscope.errors import InputError
from refusalscope.model import LogitDifference, Plan, Site, StateMetric, measure
from refusalscope.model.generate import generate

LD = {"ld": LogitDifference(7, 11)}
CHOSEN = {0: (1, 5, 8), 1: tuple(range(0, D_SAE, 3)), 3: (2, 4)}
MODES = ("live", "clean_mask", "no_wake")


@pytest.fixture(scope="module")
def clean(chat, prompts, pool):
    return activations(chat, prompts, pool)


def naive(chat, made, prompt, mode, positions):
    """Steps of the oracle: clean activations from plain reads, the mode by its definition."""
    places = prompt.resolve(positions)
    steps = []
    for layer in range(LAYERS):
        weights = made[layer][1]
        state = model_oracle.read(chat.model, prompt, Site("resid_post", layer))
        slept = {t: oracle.acts(weights, state[[t]])[0] == 0 for t in places}
        chosen = set(CHOSEN.get(layer, ()))

        def write(x, n, w=weights, s=chosen, slept=slept):
            t = places[n]
            if mode == "live":
                out = s
            elif mode == "clean_mask":
                out = {i for i in s if not slept[t][i]}
            else:
                out = s | {i for i in range(D_SAE) if slept[t][i]}
            return oracle.changed(w, x, out, lambda i, f: 0.0)

        steps.append((layer, places, write))
    return steps


@pytest.mark.parametrize("positions", ["all", "no_bos", "instruction", "template", "last"])
def test_each_mode_follows_its_definition(chat, prompts, made, pool, clean, positions):
    own = [
        [
            latent_variant(
                pool, CHOSEN, mode=mode, positions=positions, prompt=prompt, clean=clean[p]
            )
            for mode in MODES
        ]
        for p, prompt in enumerate(prompts)
    ]
    found = measure(chat.anatomy, prompts, own, LD).scores["ld"]
    for p, prompt in enumerate(prompts):
        for v, mode in enumerate(MODES):
            steps = naive(chat, made, prompt, mode, positions)
            row = oracle.logits(chat.model, prompt, steps)[-1]
            assert found[p, v] == pytest.approx(float(row[7] - row[11]), abs=2e-5)
    if positions == "all":
        # The modes are not the same edit on these models, so a mix-up would show.
        assert abs(found[:, 0] - found[:, 1]).max() > 1e-3
        assert abs(found[:, 0] - found[:, 2]).max() > 1e-3


def test_dormant_members_under_a_clean_mask_change_nothing_at_all(chat, prompts, pool, clean):
    alone = Plan(prefix=False, restart=False, batch=False)
    tried = 0
    for p, prompt in enumerate(prompts):
        sleeping = {
            layer: (clean[p][layer] == 0).all(0).nonzero().flatten().tolist()
            for layer in range(LAYERS)
        }
        tried += sum(map(len, sleeping.values()))
        masked, live = (
            latent_variant(
                pool, sleeping, mode=mode, positions="all", prompt=prompt, clean=clean[p]
            )
            for mode in ("clean_mask", "live")
        )
        metrics = {
            **LD,
            "state": StateMetric(Site("final"), "last", torch.linspace(-1, 1, WIDTH)),
        }
        found = measure(chat.anatomy, [prompt], [(), masked], metrics, plan=alone)
        for scores in found.scores.values():
            assert scores[0, 1] - scores[0, 0] == 0.0
        # In the very run that the mask was read from, live has nothing to do either.
        assert len(live) == sum(bool(latents) for latents in sleeping.values())
    assert tried > 0


def test_frozen_values_take_the_clean_write_out_of_one_layer(chat, prompts, made, pool, clean):
    for p, prompt in enumerate(prompts):
        variant = latent_variant(
            pool, {1: CHOSEN[1]}, mode="frozen_value", prompt=prompt, clean=clean[p]
        )
        live = latent_variant(pool, {1: CHOSEN[1]})
        found = measure(chat.anatomy, [prompt], [variant, live], LD).scores["ld"][0]
        # With one layer edited, the stream there is the clean one, and frozen is live.
        assert found[0] == pytest.approx(found[1], abs=2e-5)


def test_frozen_values_ignore_what_an_earlier_edit_left(chat, prompts, made, pool, clean):
    prompt = prompts[0]
    before = latent_variant(pool, {0: tuple(range(D_SAE))}, positions="all")
    frozen = latent_variant(
        pool, {1: CHOSEN[1]}, mode="frozen_value", positions="all", prompt=prompt, clean=clean[0]
    )
    found = measure(chat.anatomy, [prompt], [(*before, *frozen)], LD).scores["ld"][0, 0]
    state = model_oracle.read(chat.model, prompt, Site("resid_post", 1))
    acts = oracle.acts(made[1][1], state)
    writes = [sum(a[i] * made[1][1]["W_dec"][i] for i in CHOSEN[1]) for a in acts]
    places = range(len(prompt))
    steps = [
        (0, places, lambda x, n: oracle.changed(made[0][1], x, range(D_SAE), lambda i, f: 0.0)),
        (1, places, lambda x, n: x - writes[n]),
    ]
    row = oracle.logits(chat.model, prompt, steps)[-1]
    assert found == pytest.approx(float(row[7] - row[11]), abs=2e-5)


def test_frozen_values_are_refused_beyond_one_layer(prompts, pool, clean):
    with pytest.raises(InputError, match="frozen_value would take one persistent write out again"):
        latent_variant(pool, CHOSEN, mode="frozen_value", prompt=prompts[0], clean=clean[0])


def test_the_bos_token_is_left_alone_unless_asked_for(chat, prompts, pool):
    """The default excludes BOS: whatever fires there is out of the edit."""
    anatomy = chat.anatomy
    probe = {"bos": StateMetric(Site("final"), "bos", torch.ones(WIDTH))}
    default, everywhere = (
        latent_variant(pool, CHOSEN),
        latent_variant(pool, CHOSEN, positions="all"),
    )
    found = measure(anatomy, prompts, [(), default, everywhere], probe).scores["bos"]
    assert abs(found[:, 1] - found[:, 0]).max() < 1e-6
    assert abs(found[:, 2] - found[:, 0]).min() > 1e-4


def test_masks_hold_in_generation_of_the_prompt_and_not_beyond(chat, prompts, made, pool, clean):
    def made_for(p, policy):
        return latent_variant(
            pool,
            CHOSEN,
            mode="clean_mask",
            prompt=prompts[p],
            clean=clean[p],
            policy=policy,
        )

    edits = [made_for(p, "prompt_only") for p in range(len(prompts))]
    runs = [
        generate(
            chat.anatomy,
            chat.tokenizer,
            prompts,
            edits,
            max_new_tokens=4,
            policy="prompt_only",
            use_cache=cached,
        )[0]
        for cached in (True, False)
    ]
    assert runs[0] == runs[1]
    for p, prompt in enumerate(prompts):
        first = oracle.logits(chat.model, prompt, naive(chat, made, prompt, "clean_mask", "no_bos"))
        assert runs[0][p][:1] in ([int(first[-1].argmax())], [])
    with pytest.raises(InputError, match="no clean run of a token that is yet to come"):
        generate(chat.anatomy, chat.tokenizer, prompts, edits, max_new_tokens=4)


def test_what_a_mode_lacks_is_named(prompts, pool, clean, made, tmp_path):
    prompt = prompts[0]
    given = {"prompt": prompt, "clean": clean[0]}
    small = {1: made[1][0].slice([0, 3])}
    for match, arguments, options in (
        ("unknown mode 'dead'", (pool, CHOSEN), {"mode": "dead"}),
        ("no slice of that layer", (small, CHOSEN), {}),
        ("needs prompt=... and clean", (pool, CHOSEN), {"mode": "clean_mask"}),
        ("is for mode='live'", (pool, CHOSEN), {"mode": "no_wake", "kind": "set", **given}),
        (
            "clean activations of layer 3 are missing",
            (pool, CHOSEN),
            {"mode": "clean_mask", "prompt": prompt, "clean": {0: clean[0][0], 1: clean[0][1]}},
        ),
        (
            "one column for each of the 2 latents",
            (small, {1: (3,)}),
            {"mode": "clean_mask", **given},
        ),
        (
            "its slices hold all 24 latents",
            (small, {1: (3,)}),
            {"mode": "no_wake", "prompt": prompt, "clean": {1: clean[0][1][:, [0, 3]]}},
        ),
    ):
        with pytest.raises(InputError, match=match):
            latent_variant(*arguments, **options)
    normed = load_dictionary(
        synthetic.saelens(
            tmp_path,
            "standard",
            weights=synthetic.tensors(0, WIDTH, D_SAE),
            normalize_activations="layer_norm",
        )
    ).slice()
    with pytest.raises(InputError, match="does not normalise each token"):
        latent_variant({1: normed}, {1: (3,)}, mode="frozen_value", **given)


def test_kinds_other_than_zero_go_through_by_layer(pool):
    variant = latent_variant(pool, {0: (1, 2), 2: ()}, kind="mean", value={0: (0.5, 0.25)})
    assert [(e.site.layer, e.kind, e.value) for e in variant] == [(0, "mean", (0.5, 0.25))]
    assert latent_variant(pool, {}) == ()


def test_positions_that_a_prompt_lacks_make_no_edit(chat, prompts, pool, clean):
    own = [
        [
            latent_variant(
                pool, CHOSEN, mode=mode, positions="reply", prompt=prompt, clean=clean[p]
            )
            for mode in MODES
        ]
        for p, prompt in enumerate(prompts)
    ]
    found = measure(chat.anatomy, prompts, [[(), *row] for row in own], LD).scores["ld"]
    assert (found == found[:, :1]).all()
