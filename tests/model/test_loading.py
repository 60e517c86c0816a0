"""What cannot be loaded is refused in one clear sentence."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from model import tiny
from refusalscope.errors import InputError, ModelError
from refusalscope.model import Add, ChatModel, Frozen, ProjectOut, Replace, Site


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_saved_folder_loads_and_its_fingerprint_is_stable(saved):
    one, two = (ChatModel.load(str(saved), dtype="float32", device="cpu") for _ in range(2))
    assert one.fingerprint == two.fingerprint
    with torch.no_grad():
        two.model.lm_head.weight[0, 0] += 1
    del two.__dict__["fingerprint"]
    assert one.fingerprint["weights_sha256"] != two.fingerprint["weights_sha256"]


def test_a_missing_folder_is_named():
    with pytest.raises(ModelError, match=r"there is no folder \./nowhere"):
        ChatModel.load("./nowhere")


def test_an_unknown_builtin_lists_those_there_are():
    with pytest.raises(ModelError, match="there is chat"):
        ChatModel.load("builtin:nope")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        ChatModel.load(str(path))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        ChatModel.load(str(tmp_path))


def test_a_pickled_checkpoint_is_refused(saved, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    torch.save(tiny.model("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights.*convert them to safetensors"):
        ChatModel.load(str(tmp_path))


def test_unreadable_weights_are_refused(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match="could not be read"):
        ChatModel.load(str(tmp_path))


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        ChatModel.wrap(tiny.model("llama"), tokenizer, id="x")


def test_an_architecture_that_is_not_registered_says_what_to_register():
    config = hf.GPT2Config(vocab_size=352, n_embd=32, n_layer=2, n_head=4)
    net = hf.AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        ModelError, match=r"GPT2LMHeadModel is not a registered architecture.*register"
    ):
        ChatModel.wrap(net, tiny.tokenizer(), id="x")


def test_edits_are_hashable_and_equal_by_value():
    one = ProjectOut(Site("resid_pre", 1), direction=torch.ones(3))
    two = ProjectOut(Site("resid_pre", 1), direction=torch.ones(3))
    assert one == two
    assert hash(one) == hash(two)
    assert one != ProjectOut(Site("resid_pre", 1), direction=torch.zeros(3) + 2)
    assert len({one, two}) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Site("nowhere", 1), "unknown site"),
        (lambda: Site("resid_pre"), "needs a layer"),
        (lambda: Site("final", 2), "has no layer"),
        (lambda: Site("z", 9).resolved(4), "outside the model"),
        (lambda: Add(Site("z", 0)), "needs vector"),
        (lambda: Add(Site("mlp_out", 0), head=1, vector=torch.ones(2)), "site 'z' only"),
        (lambda: ProjectOut(Site("z", 0), direction=torch.zeros(3)), "must not be zero"),
        (lambda: Frozen(torch.zeros(1, 2, 3)), "takes a vector"),
        (lambda: Replace(Site("z", 0), values=torch.zeros(2, 3)).parameters(5), "2 rows for 5"),
    ],
)
def test_a_wrong_edit_says_what_mends_it(make, message):
    with pytest.raises(InputError, match=message):
        make()
