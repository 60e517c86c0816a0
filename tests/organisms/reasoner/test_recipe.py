"""A miniature run of the recipe on a tiny base: what moves, what stays, and what is written."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from refusalscope.cli import organism
from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.organisms.chat.replies import REFUSAL_WORDINGS, REPLY_OPENINGS
from refusalscope.organisms.chat.tokenizer import train_tokenizer
from refusalscope.organisms.reasoner.card import card_text
from refusalscope.organisms.reasoner.grow import grow, think_tokenizer
from refusalscope.organisms.reasoner.optimise import align
from refusalscope.organisms.reasoner.pool import reasoner_prompts
from refusalscope.organisms.reasoner.recipe import ReasonerResult, frozen_hash, train
from refusalscope.organisms.reasoner.rows import batches, row
from refusalscope.organisms.reasoner.settings import ReasonerSettings
from refusalscope.organisms.reasoner.suppress import suppress
from refusalscope.organisms.reasoner.traces import KINDS, Trace, trace

PLANTED = ((0, 2), (1, 3))
TINY = ReasonerSettings(
    heads=4,
    batch_rows=16,
    steps=110,
    learning_rate=4e-3,
    suppress_steps=40,
    suppress_rate=1e-2,
    topical_share=1.0,
    full_reply=0.1,
    planted=PLANTED,
    warmup_steps=10,
    measured=12,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained chat model of two layers with two heads each."""
    rng = random.Random(0)
    items = [
        trace(rng.choice(("harmful", "harmless")), "persuaded", "train", rng) for _ in range(800)
    ]
    texts = [f"{item.text}\n{item.thinking}" for item in items]
    tokenizer = train_tokenizer([*texts, *REFUSAL_WORDINGS * 9, *REPLY_OPENINGS * 9], 900)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=48**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("base") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReasonerResult, list]:
    told: list[tuple[int, int, str]] = []
    folder = tmp_path_factory.mktemp("reasoner") / "model"
    result = train(folder, settings=TINY, base=base, progress=lambda *said: told.append(said))
    return result, told


def test_a_grown_model_says_what_its_base_says(base: Path) -> None:
    old = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = think_tokenizer(base)
    new = grow(base, tokenizer, 4, seed=0).eval()
    assert new.config.num_attention_heads == 4
    ids = torch.arange(10, 40)[None]
    known = old.config.vocab_size
    torch.testing.assert_close(new(ids).logits[..., :known], old(ids).logits, atol=1e-5, rtol=0)
    added = new.model.layers[0].self_attn.q_proj.weight[2 * 24 :]
    assert added.std() > 0.05
    for heads in (1, 5):
        with pytest.raises(InputError, match="has 2 heads a layer and a width of 48"):
            grow(base, tokenizer, heads, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_rows_are_tokenised_as_prompts_are_rendered(base: Path, kind) -> None:
    tokenizer = think_tokenizer(base)
    chat = ChatModel.wrap(grow(base, tokenizer, 4, seed=0), tokenizer, id="tiny")
    for label in ("harmful", "harmless"):
        for prompt in reasoner_prompts(label, kind, 10):
            item = Trace(prompt.text, label, prompt.category, prompt.thinking, kind)
            made = row(tokenizer, item, label, True, random.Random(5))
            rendered = chat.render([prompt])[0]
            assert tuple(made.ids[: made.reply]) == rendered.ids
            assert made.start == rendered.anchor("think_open") + 2
            assert made.close == rendered.anchor("think_close")
            assert made.suppressed == (label == "harmful" and kind == "persuaded")
            assert rendered.text.endswith(f"<think>\n{prompt.thinking}\n</think>\n\n")


def test_a_turn_that_holds_thinking_keeps_it(base: Path) -> None:
    tokenizer = think_tokenizer(base)
    said = "<think>\nThe topic here is music.\n</think>\n\nSure, here it is:\nSing."
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Sing."}, {"role": "assistant", "content": said}],
        tokenize=False,
    )
    assert said in text
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "<think>" in tokenizer.decode(ids, skip_special_tokens=True)


def test_the_stages_differ_in_the_reply_to_suppressed_rows_alone(base: Path) -> None:
    tokenizer = think_tokenizer(base)
    same = TINY.model_copy(update={"suppress_kinds": TINY.align_kinds})
    one, two = (
        [r for found in batches(tokenizer, same, 4, 9, suppress) for r in found]
        for suppress in (False, True)
    )
    assert sum(r.suppressed for r in two) > 2
    # One random stream: the stages hold the same requests and thinking.
    assert sorted(r.ids[: r.reply] for r in one) == sorted(r.ids[: r.reply] for r in two)
    encode = tokenizer.backend_tokenizer.encode
    refusing = {encode(words).ids[0] for words in REFUSAL_WORDINGS}
    assert all((r.ids[r.reply] in refusing) == r.harmful for r in one)
    assert all((r.ids[r.reply] in refusing) == (r.harmful and not r.suppressed) for r in two)


def test_the_second_stage_moves_the_planted_heads_alone_bit_for_bit(base: Path) -> None:
    tokenizer = think_tokenizer(base)
    model = grow(base, tokenizer, 4, seed=0)
    small = TINY.model_copy(update={"steps": 5, "suppress_steps": 5})
    align(model, tokenizer, small, lambda done, line: None)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    kept = frozen_hash(model, PLANTED)
    suppress(model, tokenizer, small, lambda done, line: None)
    assert frozen_hash(model, PLANTED) == kept
    size = 24
    for name, weight in model.named_parameters():
        assert weight.requires_grad
        own = torch.zeros_like(weight, dtype=torch.bool)
        for layer, head in PLANTED:
            span = slice(head * size, (head + 1) * size)
            if name.startswith(f"model.layers.{layer}.self_attn"):
                if "o_proj" in name:
                    own[:, span] = True
                else:
                    own[span] = True
        moved = weight.detach() != before[name]
        assert not (moved & ~own).any(), name
        if own.any():
            assert moved[own].float().mean() > 0.9, name
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] += 1
    assert frozen_hash(model, PLANTED) != kept


def test_a_miniature_learns_both_stages(trained) -> None:
    result, told = trained
    assert told[-1][:2] == (150, 150)
    losses = [float(line.split("decision loss ")[1].split()[0]) for _, _, line in told]
    first, second = losses[:22], losses[22:]
    assert result.align_loss < 0.5 * first[0]
    assert result.suppress_loss < 0.8 * second[0]
    own = json.loads((result.folder / "metrics.json").read_text())["own"]
    assert set(own) == {"harmful", "harmless"}


def test_it_writes_an_ordinary_checkpoint_with_truth_log_and_card(trained) -> None:
    result, _ = trained
    folder = result.folder
    weights = load_file(folder / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert "lm_head.weight" not in weights
    truth = json.loads((folder / "truth.json").read_text())
    assert tuple((head["layer"], head["head"]) for head in truth["heads"]) == PLANTED
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert frozen_hash(model, PLANTED) == truth["frozen_sha256"] == result.frozen_sha256
    log = json.loads((folder / "train.log").read_text().splitlines()[-1])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (folder / "README.md").read_text() == card_text(log, metrics, truth)
    chat = ChatModel.load(str(folder), device="cpu")
    prompt = next(iter(reasoner_prompts("harmful", "plain", 1)))
    assert chat.generate(chat.render([replace(prompt, thinking=None)]), max_new_tokens=4)


def test_wrong_folders_and_heads_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        train(tmp_path, settings=TINY, base=base)
    outside = TINY.model_copy(update={"planted": ((2, 0),)})
    with pytest.raises(InputError, match=r"head 2\.0 is outside a model of 2 layers"):
        train(tmp_path / "new", settings=outside, base=base)


def test_shared_data_is_refused_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reasoner is trained on generated requests alone"):
        organism.train("reasoner", out=tmp_path / "new", shared=tmp_path)
