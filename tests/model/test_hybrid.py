"""Models some of whose layers have no attention heads: whole texts, whole mixers, the same numbers."""

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
    Plan,
    Replace,
    Scale,
    Site,
    capture,
    inspect,
    measure,
    run_clean,
)
from refusalscope.model.anchors import Rendered
from refusalscope.model.clean import rows_within
from refusalscope.model.engine import run_pass
from refusalscope.model.generate import generate

METRIC = {"ld": LogitDifference(7, 11)}
# The delta rule works in chunks of 64 tokens: one prompt inside a chunk, two that reach into the next.
LENGTHS = (60, 75, 100)


@pytest.fixture(scope="module", params=["qwen3_next", "qwen3_5"])
def chat(request):
    return ChatModel.wrap(tiny.model(request.param), tiny.tokenizer(), id=request.param)


@pytest.fixture(scope="module")
def prompts():
    ids = torch.randint(10, 300, (len(LENGTHS), max(LENGTHS)), generator=_seeded(0)).tolist()
    return [
        Rendered(str(n), "", tuple(row[:n]), n, (0, n - 2), {"prompt_last": n - 1})
        for row, n in zip(ids, LENGTHS, strict=True)
    ]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _variants(chat) -> list:
    d, hd = chat.anatomy.d_model, chat.anatomy.head_dim
    return [
        (),
        (Replace(Site("attn_out", 0), "last", values=torch.randn(d, generator=_seeded(1))),),
        (Replace(Site("attn_out", 2), (3, -1), values=torch.randn(2, d, generator=_seeded(2))),),
        (Replace(Site("z", 1), "last", head=2, values=torch.randn(hd, generator=_seeded(3))),),
        (
            Scale(Site("attn_out", 2), "all", factor=0.0),
            Add(Site("resid_pre", 0), (5,), vector=torch.randn(d, generator=_seeded(4))),
        ),
    ]


def test_layers_with_heads_are_known(chat):
    assert chat.anatomy.softmax_layers == (1, 3)
    assert chat.anatomy.recurrent
    llama = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="llama").anatomy
    assert llama.softmax_layers == (0, 1, 2, 3)
    assert not llama.recurrent


def test_z_of_a_layer_without_heads_is_refused_wherever_it_is_named(chat, prompts):
    site = Site("z", 2)
    variant = (Scale(site, "last", head=1, factor=0.0),)
    for attempt in (
        lambda: measure(chat.anatomy, prompts, [variant], METRIC),
        lambda: capture(chat.anatomy, prompts, [site], ["last"]),
        lambda: chat.first_order(prompts[0], METRIC["ld"], [site]),
        lambda: generate(chat.anatomy, chat.tokenizer, prompts[:1], [variant]),
        lambda: chat.anatomy.head_writes(2, torch.zeros(1, 64)),
    ):
        with pytest.raises(InputError, match=r"layer 2 .*no attention heads.*'attn_out', 2.*1, 3"):
            attempt()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in chat.model.modules())


def test_no_row_sees_the_padding_on_its_right(chat, prompts):
    """Of any length and made of any token; also where the padding fills further chunks."""
    ids = torch.tensor([prompts[0].ids])
    alone = run_pass(chat.anatomy, ids).normed
    for width, token in ((1, 0), (30, 0), (100, 250)):
        padded = torch.cat([ids, torch.full((1, width), token)], dim=1)
        found = run_pass(chat.anatomy, padded).normed[:, : ids.shape[1]]
        torch.testing.assert_close(found, alone, atol=3e-5, rtol=0)


@pytest.mark.parametrize("plan", [Plan(), Plan(restart=False), Plan(max_bytes=200_000)])
def test_prompts_beyond_a_chunk_equal_the_plain_loop_in_company(chat, prompts, plan):
    variants = _variants(chat)
    found = measure(chat.anatomy, prompts, variants, METRIC, plan=plan).scores["ld"]
    for p, prompt in enumerate(prompts):
        for v, variant in enumerate(variants):
            row = oracle.logits(chat.model, prompt, variant)[-1]
            assert found[p, v] == pytest.approx(float(row[7] - row[11]), abs=1e-5)


@pytest.mark.parametrize("policy", ["every_step", "prompt_only"])
def test_generation_steers_mixers_of_prompts_of_unequal_length(chat, prompts, policy):
    variants = [
        (Scale(Site("attn_out", 0), "all", factor=-3.0),),
        (Scale(Site("attn_out", 2), "last", factor=4.0),),
        (Scale(Site("z", 1), "all", head=0, factor=-4.0),),
    ]
    found, _ = generate(
        chat.anatomy, chat.tokenizer, prompts, variants, max_new_tokens=6, policy=policy
    )
    plain, _ = generate(chat.anatomy, chat.tokenizer, prompts, max_new_tokens=6)
    assert found != plain
    for prompt, variant, reply in zip(prompts, variants, found, strict=True):
        assert reply == oracle.greedy(chat.model, prompt, variant, 6, [2], policy)


def test_every_row_costs_its_whole_text_from_its_layer_up(chat, prompts):
    n, layers = len(prompts[0]), chat.anatomy.n_layers
    last = [(Scale(Site("attn_out", layer), "last", factor=0.0),) for layer in range(layers)]
    cost = measure(chat.anatomy, prompts[:1], last, METRIC).cost
    joined = sum(layers - layer for layer in range(layers))
    # No clean pass and no prefix; the base row leaves once the last row has joined.
    assert cost.token_layers == n * (joined + layers - 1)
    assert cost.forwards == 1


def test_a_kept_clean_run_gives_states_and_holds_no_prefix(chat, prompts):
    sites = [Site("attn_out", 0), Site("z", 3)]
    clean = run_clean(chat.anatomy, prompts, sites, ["last"], plan=Plan())
    assert all(out.key_values is None for out in clean.passes)
    for site in sites:
        for p, prompt in enumerate(prompts):
            want = oracle.read(chat.model, prompt, site)[-1]
            torch.testing.assert_close(clean.states[site][p, 0], want, atol=1e-5, rtol=1e-5)
    variants = _variants(chat)
    with_it = measure(chat.anatomy, prompts, variants, METRIC, clean=clean).scores["ld"]
    alone = measure(chat.anatomy, prompts, variants, METRIC).scores["ld"]
    assert abs(with_it - alone).max() < 1e-5


def test_the_budget_counts_what_mixers_and_experts_hold():
    """Of models of equal widths, those with experts or with linear layers fit fewer rows."""
    plan = Plan(max_bytes=50 * 2**20)
    widths = {**tiny.COMMON, "head_dim": 16}
    configs = (
        hf.Qwen3Config(**widths),
        hf.Qwen3MoeConfig(**widths, **tiny.EXPERTS),
        hf.Qwen3_5TextConfig(**tiny.COMMON, **tiny.HYBRID),
    )
    dense, experts, linear = (
        rows_within(inspect(hf.AutoModelForCausalLM.from_config(config)), 50, 0, plan)
        for config in configs
    )
    assert dense > experts > linear >= 1


def test_a_model_without_any_attention_layer_is_refused():
    layout = {**tiny.HYBRID, "layer_types": ["linear_attention"] * 4}
    net = hf.AutoModelForCausalLM.from_config(hf.Qwen3_5TextConfig(**tiny.COMMON, **layout))
    with pytest.raises(ModelError, match="no layer of softmax attention"):
        ChatModel.wrap(net, tiny.tokenizer(), id="x")


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_moe"])
def test_a_saved_model_with_experts_loads_and_scores_the_same(name, tmp_path):
    net = tiny.model(name)
    net.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    loaded = ChatModel.load(str(tmp_path), dtype="float32", device="cpu")
    ids = torch.arange(10, 30).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, net(ids).logits, atol=1e-6, rtol=0)


def test_the_mlp_write_is_the_sum_of_the_chosen_experts():
    net = tiny.model("qwen3_moe")
    chat = ChatModel.wrap(net, tiny.tokenizer(), id="qwen3_moe")
    prompt = Rendered("x", "", tuple(range(10, 22)), 12, (0, 11), {"prompt_last": 11})
    block = net.model.layers[1].mlp
    seen = []
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    found = capture(chat.anatomy, [prompt], [Site("mlp_out", 1)], ["last"])[0][Site("mlp_out", 1)]
    handle.remove()
    x = seen[0][-1]
    with torch.no_grad():
        share = torch.softmax(block.gate.weight @ x, dim=-1)
        chosen = share.topk(2)
        want = torch.zeros_like(x)
        for weight, expert in zip(chosen.values / chosen.values.sum(), chosen.indices, strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ x).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            want += weight * (block.experts.down_proj[expert] @ inner)
    torch.testing.assert_close(found[0, 0], want, atol=1e-5, rtol=1e-5)
