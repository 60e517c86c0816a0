"""The same tensors give the same numbers in SAELens. Runs where sae_lens is installed."""

from __future__ import annotations

import json

import pytest
import torch

from dictionary import synthetic
from dictionary.synthetic import D_IN, D_SAE
from refusalscope.dictionary import load_dictionary, load_release, resolve

sae_lens = pytest.importorskip(
    "sae_lens", reason="sae_lens is not installed (refusalscope[sae]): no parity with it is checked"
)
from sae_lens.loading import pretrained_sae_loaders as loaders  # noqa: E402
from sae_lens.loading.pretrained_saes_directory import (  # noqa: E402
    get_pretrained_saes_directory,
    get_repo_id_and_folder_name,
)
from sae_lens.registry import get_sae_class, get_sae_training_class  # noqa: E402

X = 2 * torch.randn(30, D_IN, generator=torch.Generator().manual_seed(11))
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SETTINGS = [
    {"apply_b_dec_to_input": apply, "normalize_activations": norm}
    for apply in (True, False)
    for norm in ("none", "constant_norm_rescale", "layer_norm")
]


@torch.no_grad()
def agree(theirs, ours, x=X):
    acts = theirs.encode(x)
    assert 0.02 < float((acts > 0).float().mean()) < 0.8
    torch.testing.assert_close(ours.encode(x), acts, **CLOSE)
    # Their decode uses the statistics that their last encode left behind.
    torch.testing.assert_close(ours.decode(acts, x), theirs.decode(acts), **CLOSE)


def built(kind, registry=get_sae_class, **settings):
    """Their dictionary with our tensors in it."""
    sae_class, config_class = registry(kind)
    extra = {"k": 5} if kind in ("topk", "batchtopk") else {}
    config = config_class(d_in=D_IN, d_sae=D_SAE, **extra, **settings)
    config.metadata.hook_name = "blocks.1.hook_resid_post"
    config.metadata.model_name = "tiny"
    sae = sae_class(config)
    weights = synthetic.tensors()
    state = {name: weights[name] for name in synthetic.NAMES[kind]}
    assert not sae.load_state_dict(state, strict=False).unexpected_keys
    return sae


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "topk"])
def test_what_saelens_saves_is_read(tmp_path, kind, settings):
    sae = built(kind, **settings)
    sae.save_model(tmp_path)
    agree(sae, load_dictionary(tmp_path))


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "topk"])
def test_what_we_write_in_the_tests_is_read_by_saelens(tmp_path, kind):
    folder = synthetic.saelens(tmp_path, kind)
    agree(sae_lens.SAE.load_from_disk(folder), load_dictionary(folder))


def test_topk_rescaled_by_its_decoder(tmp_path):
    sae = built("topk", rescale_acts_by_decoder_norm=True)
    sae.save_model(tmp_path)
    agree(sae, load_dictionary(tmp_path))


@pytest.mark.parametrize("rescale", [True, False])
def test_batchtopk_in_training_and_as_it_is_saved_for_use(tmp_path, rescale):
    sae = built("batchtopk", get_sae_training_class, rescale_acts_by_decoder_norm=rescale)
    sae.topk_threshold.fill_(0.35)
    sae.save_model(tmp_path / "train")
    sae.save_inference_model(tmp_path / "use")
    # What training learnt is a threshold; both folders are the JumpReLU that SAELens makes of it.
    use = sae_lens.SAE.load_from_disk(tmp_path / "use")
    agree(use, load_dictionary(tmp_path / "use"))
    train = load_dictionary(tmp_path / "train")
    torch.testing.assert_close(
        train.decode(train.encode(X)), use.decode(use.encode(X)).detach(), **CLOSE
    )
    # Without one, the tokens of a call share one budget.
    state = {name: synthetic.tensors()[name] for name in synthetic.NAMES["batchtopk"]}
    from safetensors.torch import save_file

    save_file(state, tmp_path / "train" / "sae_weights.safetensors")
    agree(sae, load_dictionary(tmp_path / "train"))


def test_folders_of_older_versions(tmp_path):
    for name, settings in {
        "plain": {"normalize_activations": None, "apply_b_dec_to_input": True},
        "false": {"normalize_activations": False},
        "topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
        "norm": {"normalize_activations": "layer_norm"},
    }.items():
        folder = synthetic.saelens(tmp_path / name, "standard", old=True, **settings)
        agree(sae_lens.SAE.load_from_disk(folder), load_dictionary(folder))


def test_a_factor_that_is_not_folded(tmp_path):
    folder = synthetic.saelens(tmp_path, normalize_activations="expected_average_only_in")
    sae = sae_lens.SAE.load_from_disk(folder)
    sae.fold_activation_norm_scaling_factor(3.0)
    agree(sae, load_dictionary(folder, factor=3.0))


def test_gemma_scope(tmp_path, monkeypatch):
    folder = synthetic.gemma_scope(tmp_path)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda **names: str(folder / "params.npz"))
    config, state, _ = loaders.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res",
        "layer_12/width_16k/average_l0_82",
        cfg_overrides={"d_in": D_IN, "d_sae": D_SAE},
    )
    config = loaders.handle_config_defaulting(config)
    sae_class, config_class = get_sae_class("jumprelu")
    sae = sae_class(config_class.from_dict(config))
    sae.load_state_dict(state)
    ours = load_dictionary(folder)
    assert config["metadata"]["hook_name"] == f"blocks.{ours.site.layer}.hook_resid_post"
    agree(sae, ours)


@pytest.mark.parametrize("sae_id", ["l0r_8x", "l12r_8x"])
def test_llama_scope_with_the_factor_of_the_published_table(tmp_path, monkeypatch, sae_id):
    factor = get_pretrained_saes_directory()["llama_scope_lxr_8x"].norm_scaling_factor[sae_id]
    hook = f"blocks.{sae_id[1:].split('r')[0]}.hook_resid_post"
    folder = synthetic.llama_scope(
        tmp_path / "l",
        norm=D_IN**0.5 / factor,
        jump_relu_threshold=0.8 / factor,
        hook_point_in=hook,
        hook_point_out=hook,
    )

    def download(repo_id, filename, **options):
        name = filename.split("/")[-1]
        return str(folder / ("checkpoints" if name.endswith("safetensors") else "") / name)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    theirs = sae_lens.SAE.from_pretrained("llama_scope_lxr_8x", sae_id)
    agree(theirs, load_dictionary(folder), X / factor)


def test_names_resolve_as_they_do_in_saelens():
    seen = 0
    for release in (
        "gemma-scope-2b-pt-res",
        "gemma-scope-9b-it-res",
        "gemma-scope-2b-pt-res-canonical",
        "llama_scope_lxr_8x",
        "llama_scope_lxr_32x",
        "gemma-2b-it-res-jb",
        "gpt2-small-res-jb",
    ):
        for sae_id in get_pretrained_saes_directory()[release].saes_map:
            found = resolve(release, sae_id)
            assert (found.repository, found.folder) == get_repo_id_and_folder_name(release, sae_id)
            seen += 1
    assert seen > 400


def test_a_release_of_the_table_is_fetched_and_read(tmp_path, monkeypatch):
    import huggingface_hub

    folder = synthetic.saelens(tmp_path / "d", "standard", old=True)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "apply_b_dec_to_input": True}))
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repository, file: str(folder / file.split("/")[-1]),
    )
    monkeypatch.setattr(
        loaders,
        "hf_hub_download",
        lambda repo_id, filename, force_download=False: (
            str(folder / filename.split("/")[-1])
            if "sparsity" not in filename
            else (_ for _ in ()).throw(loaders.EntryNotFoundError("none"))
        ),
    )
    names = ("gemma-2b-it-res-jb", "blocks.12.hook_resid_post")
    agree(sae_lens.SAE.from_pretrained(*names), load_release(*names))
