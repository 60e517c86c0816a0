"""Oddities of published checkpoints, planted into tiny models."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from model import oracle, tiny
from refusalscope.errors import InputError, ModelError
from refusalscope.model import (
    Add,
    ChatModel,
    LogitDifference,
    ProjectOut,
    Scale,
    Site,
    measure,
)
from refusalscope.model.generate import generate
from refusalscope.prompts import Prompt

TEXTS = ["Tell me how to bake bread.", "Why?", "Write a short poem about the sea and the sky"]


def wrapped(net) -> tuple[ChatModel, list]:
    chat = ChatModel.wrap(net, tiny.tokenizer(), id="x")
    return chat, chat.render([Prompt(str(i), text) for i, text in enumerate(TEXTS)])


def test_a_checkpoints_own_generation_settings_do_not_bend_greedy_replies():
    net = tiny.model("llama", seed=3)
    own = hf.GenerationConfig(
        do_sample=True,
        temperature=0.7,
        repetition_penalty=1.5,
        suppress_tokens=[5, 6],
        return_dict_in_generate=True,
        eos_token_id=[2, 6],
        no_repeat_ngram_size=2,
    )
    net.generation_config = own
    chat, prompts = wrapped(net)
    found, _ = generate(chat.anatomy, chat.tokenizer, prompts, max_new_tokens=8)
    assert net.generation_config is own
    for prompt, reply in zip(prompts, found, strict=True):
        assert reply == oracle.greedy(net, prompt, (), 8, [2, 6])


def test_edits_reach_a_prefilled_reply_under_every_step():
    chat, prompts = wrapped(tiny.model("qwen2", seed=1))
    prefilled = [p.with_reply([40, 41, 42]) for p in prompts]
    shift = 3 * torch.randn(chat.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    variants = [(Add(Site("resid_pre", 1), "all", vector=shift),)] * len(prompts)
    for policy in ("every_step", "prompt_only"):
        found, _ = generate(
            chat.anatomy, chat.tokenizer, prefilled, variants, max_new_tokens=5, policy=policy
        )
        for prompt, reply in zip(prefilled, found, strict=True):
            n = len(prompt.ids) - prompt.n_prompt
            plain = []
            for _ in range(5):
                ids = [*prompt.ids[prompt.n_prompt :], *plain]
                row = oracle.logits(chat.model, prompt.with_reply(ids), variants[0], policy)[-1]
                if int(row.argmax()) == 2:
                    break
                plain.append(int(row.argmax()))
            assert n == 3
            assert reply == plain


def test_length_dependent_rotary_scaling_is_never_set_off_by_company():
    config = tiny.CONFIGS["phi3"]()
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 12,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    config.original_max_position_embeddings = 12
    torch.manual_seed(0)
    net = hf.AutoModelForCausalLM.from_config(config).eval()
    chat, prompts = wrapped(net)
    assert chat.anatomy.rope_limit == 12
    lengths = [len(p) for p in prompts]
    assert min(lengths) <= 12 < max(lengths)
    variant = (Scale(Site("z", 1), "last", head=1, factor=0.0),)
    metric = {"ld": LogitDifference(7, 11)}
    together = measure(chat.anatomy, prompts, [(), variant], metric).scores["ld"]
    for p, prompt in enumerate(prompts):
        for v, edits in enumerate([(), variant]):
            row = oracle.logits(net, prompt, edits)[-1]
            assert together[p, v] == pytest.approx(float(row[7] - row[11]), abs=1e-5)


def test_a_named_template_among_several_is_the_plain_chat_one():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"default": tiny.TEMPLATE, "tool_use": "{{ 'tools' }}"}
    chat = ChatModel.wrap(tiny.model("llama"), tokenizer, id="x")
    (rendered,) = chat.render([Prompt("a", "Bake bread")])
    assert "Bake bread" in rendered.text


def test_a_template_that_drops_the_system_turn_is_noticed():
    tokenizer = tiny.tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
        "{% endfor %}|"
    )
    chat = ChatModel.wrap(tiny.model("llama"), tokenizer, id="x")
    with pytest.raises(ModelError, match="leaves out the system turn"):
        chat.render([Prompt("a", "Bake", system="Be brief.")])


def test_a_direction_is_gone_in_bfloat16_too():
    direction = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    unit = direction / direction.norm()
    states = (torch.randn(3, 4096) + 40 * unit).bfloat16()
    edit = ProjectOut(Site("resid_pre", 0), direction=direction)
    left = edit.compute(states, edit.parameters(1)).float() @ unit
    assert float(left.abs().max()) < 0.02


def test_a_device_that_is_not_there_is_refused(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no device 'nope'"):
        ChatModel.load(str(tmp_path), device="nope")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sees no CUDA device"):
            ChatModel.load(str(tmp_path), device="cuda")


def test_a_model_placed_by_accelerate_measures_the_same(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    plain = ChatModel.load(str(tmp_path), device="cpu")
    placed = ChatModel.load(str(tmp_path), device="cpu", device_map="auto")
    prompts = plain.render([Prompt("a", "Bake bread")])
    variants = [(Scale(Site("z", layer), "last", head=1, factor=0.0),) for layer in range(4)]
    scores = [
        chat.measure(prompts, variants, {"ld": LogitDifference(7, 11)}).scores["ld"]
        for chat in (plain, placed)
    ]
    assert abs(scores[0] - scores[1]).max() < 1e-6


def test_an_edit_that_many_rows_share_is_held_once():
    """32 prompts under ablation everywhere need one direction a site, not one a row."""
    from refusalscope.model import everywhere
    from refusalscope.model.edits import batch_edits

    variant = everywhere(1, torch.ones(8))
    placed = [(row, variant[0], tuple(range(5))) for row in range(32)]
    (batch,) = batch_edits(placed, 4, torch.device("cpu"))
    assert batch.parameters.shape == (1, 8)
    assert batch.rows.shape == (160,)
