"""A release and an id become files of a hub repository; the hub itself is a stand-in."""

from __future__ import annotations

import shutil

import huggingface_hub
import pytest
import torch

from dictionary import synthetic
from refusalscope.dictionary import hub, load_dictionary, load_release, resolve
from refusalscope.errors import InputError
from refusalscope.model import Site

GEMMA = ("gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82")
TABLE = {
    "gemma-scope-2b-pt-res-canonical": {
        "repo_id": "google/gemma-scope-2b-pt-res",
        "conversion_func": "gemma_2",
        "saes": [{"id": "layer_12/width_16k/canonical", "path": GEMMA[1]}],
    },
    "small-res-jb": {
        "repo_id": "someone/small",
        "conversion_func": None,
        "saes": [
            {
                "id": "blocks.1.hook_resid_post",
                "path": "b1",
                "norm_scaling_factor": 1.5,
            }
        ],
    },
    "other": {"repo_id": "a/b", "conversion_func": "dictionary_learning_1", "saes": []},
}


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(hub, "_table", lambda: TABLE)


@pytest.fixture
def no_table(monkeypatch):
    monkeypatch.setattr(hub, "_table", dict)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A hub that serves files from a folder `store/owner/name` and notes what was asked for."""
    asked = []

    def download(repository, file, **options):
        asked.append((repository, file))
        source = tmp_path / "store" / repository / file
        if not source.is_file():
            raise OSError("404 Client Error\nmore lines")
        target = tmp_path / "cache" / repository.replace("/", "--") / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_gemma_scope_by_its_names(tmp_path, no_table, fetched):
    synthetic.gemma_scope(tmp_path / "store" / "google")
    found = load_release(*GEMMA)
    assert fetched == [("google/gemma-scope-2b-pt-res", f"{GEMMA[1]}/params.npz")]
    assert found.site == Site("resid_post", 12)
    local = load_dictionary(tmp_path / "store" / "google" / "gemma-scope-2b-pt-res" / GEMMA[1])
    x = torch.randn(2, synthetic.D_IN)
    assert torch.equal(found.encode(x), local.encode(x))


def test_llama_scope_by_its_names(tmp_path, no_table, fetched):
    folder = "Llama3_1-8B-Base-L3R-8x"
    repository = "fnlp/Llama3_1-8B-Base-LXR-8x"
    synthetic.llama_scope(tmp_path / "store" / repository / folder)
    assert load_release("llama_scope_lxr_8x", "l3r_8x").site == Site("resid_post", 3)
    assert fetched == [
        (repository, f"{folder}/hyperparams.json"),
        (repository, f"{folder}/checkpoints/final.safetensors"),
    ]


def test_a_repository_with_saelens_folders(tmp_path, no_table, fetched):
    synthetic.saelens(tmp_path / "store" / "someone" / "saes" / "layer_1")
    assert load_release("someone/saes", "layer_1").d_sae == synthetic.D_SAE
    assert [file for _, file in fetched] == ["layer_1/cfg.json", "layer_1/sae_weights.safetensors"]


def test_the_table_of_saelens_names_the_rest(tmp_path, table, fetched):
    synthetic.gemma_scope(tmp_path / "store" / "google")
    canonical = load_release("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical")
    assert canonical.site == Site("resid_post", 12)
    folder = synthetic.saelens(
        tmp_path / "store" / "someone" / "small" / "b1",
        normalize_activations="expected_average_only_in",
    )
    found = load_release("small-res-jb", "blocks.1.hook_resid_post")
    x = torch.randn(2, synthetic.D_IN)
    assert torch.equal(found.encode(x), load_dictionary(folder, factor=1.5).encode(x))


def test_what_does_not_resolve_is_said(table):
    for match, names in {
        "has no id 'layer_12'; write it as layer_12/width_16k": (GEMMA[0], "layer_12"),
        "has no id 'l3r_32x'; write it as l12r_8x": ("llama_scope_lxr_8x", "l3r_32x"),
        "has no id 'x'; it has blocks.1": ("small-res-jb", "x"),
        "in the layout 'dictionary_learning_1'": ("other", "x"),
        "not known to the table of SAELens": ("nothing", "x"),
    }.items():
        with pytest.raises(InputError, match=match) as caught:
            resolve(*names)
        assert "\n" not in str(caught.value)


def test_without_the_table_that_is_said(no_table):
    with pytest.raises(InputError, match="SAELens, which has a table, is absent"):
        resolve("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical")


def test_a_hub_out_of_reach_is_one_sentence(no_table, fetched):
    with pytest.raises(
        InputError, match=r"could not be fetched from the hub \(404 Client Error\)"
    ) as e:
        load_release(*GEMMA)
    assert "local folder" in str(e.value)
    assert "\n" not in str(e.value)
