"""What cannot be read is refused in one sentence that names the matter and mends it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dictionary import synthetic
from dictionary.synthetic import D_IN
from model import tiny
from refusalscope.dictionary import (
    Layout,
    activations,
    check,
    load_dictionary,
    register,
    require_fit,
)
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Site
from refusalscope.prompts import Prompt


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load_dictionary(path, **options)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_folders(tmp_path):
    refused(tmp_path / "none", "there is no folder")
    refused(tmp_path, "holds no dictionary; one is made of cfg.json and sae_weights.safetensors")


@pytest.mark.parametrize("name", ["ae.pt", "pytorch_model.bin", "trainer_0/ae.pth"])
def test_pickled_files(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(tmp_path, "pickled dictionary .* can run code")
    refused(tmp_path / name, "is a pickled file")


def test_a_pickled_member_of_an_npz(tmp_path):
    folder = synthetic.gemma_scope(tmp_path)
    array = np.array([{"a": 1}], dtype=object)
    np.savez(folder / "params.npz", W_enc=array)
    refused(folder, "damaged .*pickled")
    np.savez_compressed(folder / "params.npz", W_enc=array)
    refused(folder, "damaged")


def test_truncated_files_and_pointers(tmp_path):
    for folder, file in (
        (synthetic.saelens(tmp_path / "s"), "sae_weights.safetensors"),
        (synthetic.gemma_scope(tmp_path / "g"), "params.npz"),
        (synthetic.llama_scope(tmp_path / "l"), "checkpoints/final.safetensors"),
    ):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2])
        refused(folder, "cut short or damaged")
        (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        refused(folder, "Git LFS pointer")


def test_half_a_folder(tmp_path):
    folder = synthetic.saelens(tmp_path)
    (folder / "sae_weights.safetensors").unlink()
    refused(folder, "lacks sae_weights.safetensors, so its SAELens dictionary is not whole")


def test_settings_that_are_no_settings(tmp_path):
    folder = synthetic.saelens(tmp_path)
    (folder / "cfg.json").write_text("{")
    refused(folder, "not readable JSON")
    (folder / "cfg.json").write_text("[1]")
    refused(folder, "no JSON object")


def test_missing_tensors_and_wrong_shapes(tmp_path):
    gated = synthetic.saelens(tmp_path / "g", "gated")
    config = json.loads((gated / "cfg.json").read_text())
    (gated / "cfg.json").write_text(json.dumps({**config, "architecture": "jumprelu"}))
    refused(gated, "lacks b_enc .*check that its architecture")
    odd = {**synthetic.tensors(), "b_dec": torch.zeros(3)}
    refused(synthetic.saelens(tmp_path / "o", weights=odd), r"b_dec of shape \(3,\)")
    flat = {**synthetic.tensors(), "W_dec": torch.zeros(3)}
    refused(synthetic.saelens(tmp_path / "f", weights=flat), "a dictionary keeps a matrix there")


def test_unknown_architectures(tmp_path):
    refused(
        synthetic.saelens(tmp_path / "a", "standard", architecture="temporal"),
        "unknown architecture 'temporal'",
    )
    refused(
        synthetic.saelens(tmp_path / "b", "standard", old=True, activation_fn_str="tanh-relu"),
        "unknown activation function 'tanh-relu'",
    )
    refused(synthetic.llama_scope(tmp_path / "c", act_fn="topk"), "unknown act_fn 'topk'")
    refused(synthetic.saelens(tmp_path / "d", "topk", k=None), "needs k, a positive number")
    refused(synthetic.saelens(tmp_path / "e", "topk", k=500), "500 largest of 40")


@pytest.mark.parametrize(
    "hook",
    [
        "blocks.1.hook_mlp_out",
        "blocks.1.attn.hook_z",
        "blocks.0.hook_resid_pre",
        "hook_embed",
        None,
    ],
)
def test_another_hook_point(tmp_path, hook):
    refused(synthetic.saelens(tmp_path, hook=hook), "residual stream")


def test_another_suite_or_a_path_that_does_not_say(tmp_path):
    folder = synthetic.gemma_scope(tmp_path)
    mlp = tmp_path / "gemma-scope-2b-pt-mlp" / "layer_3"
    mlp.parent.mkdir()
    folder.rename(mlp)
    refused(mlp, "gemma-scope-2b-pt-mlp, which does not read the residual stream")
    bare = tmp_path / "saes" / "layer_3"
    bare.parent.mkdir()
    mlp.rename(bare)
    refused(bare, "names no suite")
    assert load_dictionary(bare, site=Site("resid_post", 3)).site == Site("resid_post", 3)
    refused(
        synthetic.llama_scope(tmp_path / "t", hook_point_out="blocks.3.hook_mlp_out"), "transcoder"
    )


def test_a_missing_factor_is_an_error_and_not_a_warning(tmp_path):
    asked = {"normalize_activations": "expected_average_only_in"}
    refused(synthetic.saelens(tmp_path / "s", **asked), "the factor is missing")
    refused(synthetic.saelens(tmp_path / "o", old=True, normalize_activations=True), "the factor")
    refused(
        synthetic.llama_scope(tmp_path / "l", dataset_average_activation_norm={"out": 2.0}),
        "lacks dataset_average_activation_norm.in",
    )
    refused(synthetic.llama_scope(tmp_path / "z", norm=0.0), "needs in, a positive number")
    whitened = synthetic.saelens(tmp_path / "w", normalize_activations="covariance_whitening")
    refused(whitened, "'covariance_whitening' .* is not read here")


def test_a_fine_tuned_factor_is_refused_and_ones_are_not(tmp_path):
    from safetensors.torch import save_file

    folder = synthetic.saelens(tmp_path)
    weights = {name: synthetic.tensors()[name] for name in synthetic.NAMES["jumprelu"]}
    save_file({**weights, "scaling_factor": torch.ones(40)}, folder / "sae_weights.safetensors")
    assert load_dictionary(folder).d_sae == 40
    save_file({**weights, "scaling_factor": torch.rand(40)}, folder / "sae_weights.safetensors")
    refused(folder, "fine-tuned scaling_factor")


def test_options_that_a_layout_does_not_take(tmp_path):
    refused(synthetic.saelens(tmp_path / "s"), "leave site= out", site=Site("resid_post", 1))
    refused(synthetic.llama_scope(tmp_path / "l"), "leave factor= out", factor=2.0)
    with pytest.raises(InputError, match="registered already"):
        register(Layout("SAELens", ("x",), lambda folder, site, factor: None))


def test_slices_that_cannot_be(tmp_path):
    for kind in ("topk", "batchtopk"):
        found = load_dictionary(synthetic.saelens(tmp_path / kind, kind))
        with pytest.raises(InputError, match=f"latents of the {kind} dictionary .* compete"):
            found.slice([1])
    found = load_dictionary(synthetic.saelens(tmp_path / "j"))
    for latents in ([40], [-1], [3, 3]):
        with pytest.raises(InputError, match="numbered 0 to 39, each named once"):
            found.slice(latents)
    normed = load_dictionary(
        synthetic.saelens(tmp_path / "n", "standard", normalize_activations="layer_norm")
    )
    with pytest.raises(InputError, match="needs the states x"):
        normed.decode(normed.encode(torch.randn(2, D_IN)))


def test_a_dictionary_of_another_model(tmp_path):
    chat = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")
    prompts = chat.render([Prompt(id="0", text="How do I bake bread?")])
    narrow = load_dictionary(synthetic.saelens(tmp_path / "w"))
    deep = load_dictionary(
        synthetic.saelens(
            tmp_path / "d", weights=synthetic.tensors(0, 32), hook="blocks.4.hook_resid_post"
        )
    )
    for found, match in ((narrow, "reads 12 dimensions .* has 32"), (deep, "layers are 0 to 3")):
        with pytest.raises(InputError, match=match):
            require_fit(found, chat.anatomy)
        with pytest.raises(InputError, match=match):
            check(found, chat, prompts)
        with pytest.raises(InputError, match=match):
            activations(chat, prompts, {0: found.slice([1])})
