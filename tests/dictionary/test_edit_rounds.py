"""One round of edits of latents: its numbers, its batching, and what is refused."""

from __future__ import annotations

import pytest
import torch

from dictionary import synthetic
from dictionary.oracle import edit
from dictionary.synthetic import ON_MODEL as D_SAE
from dictionary.synthetic import WIDTH
from model import tiny
from refusalscope.dictionary import EditLatents, load_dictionary
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, LogitDifference, Plan, Site, measure
from refusalscope.model.edits import apply_round, batch_edits

ALONE = Plan(prefix=False, restart=False, batch=False)
LD = {"ld": LogitDifference(7, 11)}


def test_sets_of_one_slice_are_one_product(pool, monkeypatch):
    """Rows are batched over their sets: the encoder runs once a round, not once a row."""
    from refusalscope.dictionary.slices import DictionarySlice

    calls = []
    original = DictionarySlice.encode_scaled
    monkeypatch.setattr(
        DictionarySlice,
        "encode_scaled",
        lambda self, x: (calls.append(x.shape[0]), original(self, x))[1],
    )
    placed = [(row, edit(pool, 1, (row, row + 1)), (0, 1, 2)) for row in range(8)]
    (batch,) = batch_edits(placed, 4, torch.device("cpu"))
    apply_round(torch.randn(8, 3, WIDTH), batch)
    assert calls == [24]


def test_large_rounds_are_cut_and_stay_the_same(pool, monkeypatch):
    placed = [(row, edit(pool, 1, (row, row + 1)), (0, 1, 2)) for row in range(8)]
    (batch,) = batch_edits(placed, 4, torch.device("cpu"))
    hidden = torch.randn(8, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    whole = apply_round(hidden, batch)
    monkeypatch.setattr("refusalscope.dictionary.edits.CELLS", 5 * D_SAE)
    torch.testing.assert_close(apply_round(hidden, batch), whole, atol=1e-6, rtol=1e-6)


def test_edits_are_out_of_place_and_touch_their_rows_and_positions_alone(pool):
    hidden = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    before = hidden.clone()
    (batch,) = batch_edits(
        [(1, edit(pool, 1, None, "all", "set", 3.0), (0, 2))], 4, torch.device("cpu")
    )
    after = apply_round(hidden, batch)
    assert torch.equal(hidden, before)
    touched = (after != before).any(-1)
    assert touched.nonzero().tolist() == [[1, 0], [1, 2]]
    chosen = hidden[1, [0, 2]]
    new = batch.kind.compute(chosen, batch.parameters)
    assert torch.equal(chosen, before[1, [0, 2]])
    assert torch.equal(new, after[1, [0, 2]])


def test_all_parts_of_an_edit_move_to_the_device_of_the_stream(tmp_path):
    piece = load_dictionary(synthetic.saelens(tmp_path, "gated", apply_b_dec_to_input=True)).slice(
        [1, 4]
    )
    assert piece.to("cpu") is piece
    assert piece.to("meta") is piece.to("meta")
    mask = torch.ones(3, 2)
    placed = [(0, EditLatents(piece.site, dictionary=piece, where=mask), (0, 1, 2))]
    (batch,) = batch_edits(placed, 4, torch.device("cpu"))
    parameters = batch.parameters.to(torch.device("meta"))
    states = torch.empty(3, synthetic.D_IN, device="meta")
    assert EditLatents.compute(states, parameters).device == states.device
    (group,) = parameters.groups
    moved = (group.dictionary.W_enc, group.dictionary.b_in, group.gain, group.where, group.entries)
    assert {tensor.device.type for tensor in moved} == {"meta"}
    act = group.dictionary.activation
    assert {t.device.type for t in (act.bias, act.log_gain, act.magnitude_bias)} == {"meta"}


def test_edits_that_make_no_sense_are_refused(pool):
    site = Site("resid_post", 1)
    for match, options in {
        "needs dictionary": {},
        "unknown edit of latents 'kill'": {"dictionary": pool[1], "kind": "kill"},
        "takes no value": {"dictionary": pool[1], "value": 1.0},
        "takes value=..., a factor": {"dictionary": pool[1], "kind": "scale"},
        "one constant": {"dictionary": pool[1], "kind": "set"},
        "one number for each of the 2": {
            "dictionary": pool[1],
            "kind": "mean",
            "value": (1.0,),
            "latents": (1, 2),
        },
        "cannot be edited at": {"dictionary": pool[2]},
        "latent 99 .* is not in this slice": {"dictionary": pool[1], "latents": (99,)},
        "one column for each of the 24": {"dictionary": pool[1], "where": torch.ones(3, 2)},
    }.items():
        with pytest.raises(InputError, match=match):
            EditLatents(site, **options)


def test_edits_are_hashable_and_equal_where_they_say_the_same(pool, made):
    again = {1: made[1][0].slice()}
    a, b = edit(pool, 1, (1, 2)), edit(again, 1, (1, 2))
    assert a == b
    assert hash(a) == hash(b)
    assert a != edit(pool, 1, (1, 3))
    mask = torch.ones(3, D_SAE)
    assert (
        len({EditLatents(a.site, dictionary=pool[1], where=m) for m in (mask, mask, 0 * mask)}) == 2
    )


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("normalisation", ["none", "constant_norm_rescale", "layer_norm"])
def test_a_slice_equals_decoding_plus_the_error_term(tmp_path, kind, normalisation):
    """x_hat(f') + (x - x_hat(f)) against the sliced sum, in float32 and float64."""
    dictionary = load_dictionary(
        synthetic.saelens(
            tmp_path,
            kind,
            normalize_activations=normalisation,
            apply_b_dec_to_input=kind == "gated",
        )
    )
    latents = [3, 17, 20, 33]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x = torch.randn(11, synthetic.D_IN, dtype=dtype, generator=torch.Generator().manual_seed(3))
        acts = dictionary.encode(x)
        assert (acts[:, latents] > 0).any()
        for gain, offset in ((-1.0, 0.0), (-4.0, 0.0), (-1.0, 2.5)):
            new = acts.clone()
            new[:, latents] = (1 + gain) * acts[:, latents] + offset
            full = dictionary.decode(new, x) + (x - dictionary.decode(acts, x))
            found = dictionary.slice(latents).edited(x, torch.tensor(gain), torch.tensor(offset))
            assert found.dtype == dtype
            assert float((found - full).abs().max()) < tolerance * max(1, float(full.abs().max()))


def test_bfloat16_models_are_edited_in_float32(made, prompts):
    net = tiny.model("llama", dtype=torch.bfloat16)
    half = ChatModel.wrap(net, tiny.tokenizer(), id="llama")
    pool = {k: d.slice() for k, (d, _) in made.items()}
    hidden = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    (batch,) = batch_edits([(0, edit(pool, 1, (2, 3)), (1, 2))], 4, torch.device("cpu"))
    after = apply_round(hidden, batch)
    want = pool[1].edited(
        hidden[0, 1:3].float(), *(c.unsqueeze(0) for c in edit(pool, 1, (2, 3)).coefficients())
    )
    assert torch.equal(after[0, 1:3], want.bfloat16())
    nothing = [(edit(pool, 1, ()),), ()]
    found = measure(half.anatomy, prompts, nothing, LD, plan=ALONE).scores["ld"]
    assert (found[:, 0] == found[:, 1]).all()
