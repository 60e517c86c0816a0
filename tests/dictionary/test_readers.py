"""Every layout is read as its authors mean it, and no more of it than is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dictionary import synthetic
from dictionary.synthetic import D_IN, D_SAE
from refusalscope.dictionary import load_dictionary
from refusalscope.dictionary.weights import NpzFile, SafetensorsFile
from refusalscope.model import Site

X = torch.randn(9, D_IN, generator=torch.Generator().manual_seed(7))
W = synthetic.tensors()
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_a_saelens_folder_is_read_as_its_formula_says(tmp_path):
    with load_dictionary(synthetic.saelens(tmp_path)) as found:
        assert (found.architecture, found.d_in, found.d_sae) == ("jumprelu", D_IN, D_SAE)
        assert (found.site, found.model) == (Site("resid_post", 1), "tiny")
        acts = found.encode(X)
        torch.testing.assert_close(acts, synthetic.jumprelu(W, X), **CLOSE)
        assert 0.1 < float((acts > 0).float().mean()) < 0.6
        torch.testing.assert_close(found.decode(acts), acts @ W["W_dec"] + W["b_dec"], **CLOSE)


def test_standard_and_gated_follow_their_formulas(tmp_path):
    centred = X - W["b_dec"]
    plain = load_dictionary(
        synthetic.saelens(tmp_path / "s", "standard", apply_b_dec_to_input=True)
    )
    torch.testing.assert_close(plain.encode(X), (centred @ W["W_enc"] + W["b_enc"]).relu(), **CLOSE)
    gated = load_dictionary(synthetic.saelens(tmp_path / "g", "gated", apply_b_dec_to_input=True))
    gate = centred @ W["W_enc"] + W["b_gate"] > 0
    size = (centred @ (W["W_enc"] * W["r_mag"].exp()) + W["b_mag"]).relu()
    torch.testing.assert_close(gated.encode(X), gate * size, **CLOSE)


def test_topk_keeps_k_a_token_and_batchtopk_k_on_average(tmp_path):
    pre = X @ W["W_enc"] + W["b_enc"]
    top = load_dictionary(synthetic.saelens(tmp_path / "t", "topk")).encode(X)
    for row, raw in zip(top, pre, strict=True):
        best = sorted(range(D_SAE), key=lambda i: -raw[i])[:5]
        assert set(row.nonzero().flatten().tolist()) == {i for i in best if raw[i] > 0}
    batch = load_dictionary(synthetic.saelens(tmp_path / "b", "batchtopk")).encode(X)
    assert int((batch > 0).sum()) == 5 * len(X)
    assert float(batch[batch > 0].min()) >= float(pre.relu()[batch == 0].max())


def test_a_trained_batchtopk_with_a_threshold_is_a_jumprelu(tmp_path):
    from safetensors.torch import save_file

    folder = synthetic.saelens(tmp_path, "batchtopk")
    kept = {name: W[name] for name in synthetic.NAMES["batchtopk"]}
    save_file({**kept, "topk_threshold": torch.tensor(0.4)}, folder / "sae_weights.safetensors")
    found = load_dictionary(folder)
    assert found.architecture == "jumprelu"
    same = {**W, "threshold": torch.full((D_SAE,), 0.4)}
    torch.testing.assert_close(found.encode(X), synthetic.jumprelu(same, X), **CLOSE)


def test_older_key_names_are_read(tmp_path):
    old = load_dictionary(synthetic.saelens(tmp_path / "old", old=True))
    new = load_dictionary(synthetic.saelens(tmp_path / "new"))
    assert old.site == new.site
    assert old.model == "tiny"
    assert torch.equal(old.encode(X), new.encode(X))
    topk = synthetic.saelens(
        tmp_path / "k",
        "standard",
        old=True,
        activation_fn_str="topk",
        activation_fn_kwargs={"k": 3},
    )
    assert load_dictionary(topk).architecture == "topk"
    assert int((load_dictionary(topk).encode(X) > 0).sum(-1).max()) == 3


def test_token_normalisations_enter_and_leave(tmp_path):
    for kind in ("constant_norm_rescale", "layer_norm"):
        found = load_dictionary(
            synthetic.saelens(tmp_path / kind, "standard", normalize_activations=kind)
        )
        for x in X:
            if kind == "layer_norm":
                shift, scale = x.mean(), x.std()
                entered = (x - shift) / (scale + 1e-5)
            else:
                shift, scale = torch.tensor(0.0), x.norm() / D_IN**0.5
                entered = x / scale
            acts = (entered @ W["W_enc"] + W["b_enc"]).relu()
            torch.testing.assert_close(found.encode(x), acts, **CLOSE)
            out = (acts @ W["W_dec"] + W["b_dec"]) * scale + shift
            torch.testing.assert_close(found.decode(acts, x), out, **CLOSE)


def test_a_factor_is_folded_into_encoder_decoder_and_bias(tmp_path):
    settings = {"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": True}
    folder = synthetic.saelens(tmp_path, **settings)
    given = load_dictionary(folder, factor=2.5)
    entered = 2.5 * X - W["b_dec"]
    acts = synthetic.jumprelu(W, entered)
    torch.testing.assert_close(given.encode(X), acts, **CLOSE)
    torch.testing.assert_close(given.decode(acts), (acts @ W["W_dec"] + W["b_dec"]) / 2.5, **CLOSE)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    assert torch.equal(load_dictionary(folder).encode(X), given.encode(X))


@pytest.mark.parametrize("compress", [False, True])
def test_gemma_scope_is_read_and_its_site_comes_from_the_path(tmp_path, compress):
    folder = synthetic.gemma_scope(tmp_path, compress=compress)
    found = load_dictionary(folder / "params.npz")
    assert (found.site, found.model) == (Site("resid_post", 12), "google/gemma-2-2b")
    acts = found.encode(X)
    torch.testing.assert_close(acts, synthetic.jumprelu(W, X), **CLOSE)
    torch.testing.assert_close(found.decode(acts), acts @ W["W_dec"] + W["b_dec"], **CLOSE)


def test_llama_scope_folds_its_factor_and_scales_its_threshold(tmp_path):
    found = load_dictionary(synthetic.llama_scope(tmp_path / "l", norm=2.0))
    scale = D_IN**0.5 / 2.0
    assert found.site == Site("resid_post", 3)
    same = {**W, "threshold": torch.full((D_SAE,), 0.2 * scale)}
    acts = synthetic.jumprelu(same, X * scale)
    torch.testing.assert_close(found.encode(X), acts, **CLOSE)
    out = (acts @ W["W_dec"] + W["b_dec"]) / scale
    torch.testing.assert_close(found.decode(acts), out, **CLOSE)


def test_the_input_of_a_block_is_the_output_of_the_one_before(tmp_path):
    for hook, layer in (("blocks.4.hook_resid_pre", 3), ("model.layers.4", 4)):
        folder = synthetic.saelens(tmp_path / hook, hook=hook)
        assert load_dictionary(folder).site == Site("resid_post", layer)


@pytest.mark.parametrize("layout", ["saelens", "gemma", "llama"])
def test_a_slice_reads_its_latents_alone(tmp_path, layout, monkeypatch):
    folder = {
        "saelens": synthetic.saelens,
        "gemma": synthetic.gemma_scope,
        "llama": synthetic.llama_scope,
    }[layout](tmp_path / "d")
    found = load_dictionary(folder)
    read = []
    for kind in (SafetensorsFile, NpzFile):
        original = kind.read

        def counted(self, *args, original=original):
            part = original(self, *args)
            read.append(part.numel())
            return part

        monkeypatch.setattr(kind, "read", counted)
    piece = found.slice([31, 2, 7])
    assert sum(read) == 2 * 3 * D_IN
    torch.testing.assert_close(piece.encode(X), found.encode(X)[:, [31, 2, 7]], **CLOSE)
    torch.testing.assert_close(found.encode(X, [31, 2, 7]), piece.encode(X), **CLOSE)


def test_chunks_change_nothing(tmp_path, monkeypatch):
    found = load_dictionary(synthetic.saelens(tmp_path))
    acts, out = found.encode(X), found.decode(found.encode(X))
    rows = torch.cat([part for _, part in found.decoder_rows()])
    monkeypatch.setattr("refusalscope.dictionary.dictionary.CHUNK", 7 * D_IN)
    torch.testing.assert_close(found.encode(X), acts, **CLOSE)
    torch.testing.assert_close(found.decode(acts), out, **CLOSE)
    pieces = list(found.decoder_rows([5, 9, *range(20, 30)]))
    assert [len(part) for _, part in pieces] == [7, 5]
    assert torch.equal(torch.cat([p for _, p in pieces]), rows[[5, 9, *range(20, 30)]])
    assert torch.equal(rows, W["W_dec"])


def test_held_weights_give_the_same_numbers_and_outlive_the_file(tmp_path):
    found = load_dictionary(synthetic.llama_scope(tmp_path / "l"))
    acts = found.encode(X)
    held = found.hold()
    found.close()
    assert torch.equal(held.encode(X), acts)
    assert torch.equal(held.slice([3]).W_dec, next(iter(held.decoder_rows([3])))[1])


def test_thresholds_stay_float32_beside_a_bfloat16_stream(tmp_path):
    weights = {**W, "W_enc": torch.zeros(D_IN, D_SAE), "b_enc": torch.full((D_SAE,), 0.5005)}
    weights["W_enc"][0] = 1
    # In bfloat16 all of these would round to one number.
    weights["threshold"] = torch.linspace(1.4990, 1.5020, D_SAE)
    found = load_dictionary(synthetic.saelens(tmp_path, weights=weights))
    x = torch.zeros(1, D_IN, dtype=torch.bfloat16)
    x[0, 0] = 1
    acts = found.encode(x)
    assert acts.dtype == torch.float32
    assert torch.equal(acts[0] > 0, weights["threshold"] < 1.5005)
    assert 0 < int((acts > 0).sum()) < D_SAE


def test_slices_are_equal_where_their_numbers_are(tmp_path):
    a = load_dictionary(synthetic.saelens(tmp_path / "a"))
    b = load_dictionary(synthetic.saelens(tmp_path / "b", weights=synthetic.tensors(1)))
    assert a.slice([1, 2]) == a.slice([1, 2])
    assert hash(a.slice([1, 2])) == hash(a.slice([1, 2]))
    assert len({a.slice([1, 2]), a.slice([2, 1]), b.slice([1, 2])}) == 3


def test_a_memory_map_serves_members_in_both_orders(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "x.npz", c=array, f=np.asfortranarray(array), s=np.float32(2))
    file = NpzFile(tmp_path / "x.npz")
    for name in ("c", "f"):
        assert isinstance(file._members[name], np.memmap)
        assert file.read(name, [2, 0], slice(1, 3)).tolist() == array[[2, 0], 1:3].tolist()
    assert float(file.read("s")) == 2


def test_a_slice_of_no_latents_is_empty(tmp_path):
    piece = load_dictionary(synthetic.saelens(tmp_path)).slice([])
    assert piece.encode(X).shape == (len(X), 0)
    assert torch.equal(piece.edited(X, torch.zeros(0), torch.zeros(0)), X)
