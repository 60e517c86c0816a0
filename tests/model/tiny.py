"""Tiny random models of every registered architecture, and a small tokenizer with a chat template."""

from __future__ import annotations

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "Tell me how to bake bread at home, please. What is the capital of that country?",
    "I would like to know why the sky is blue; write a short poem about the sea!",
    "How do I open a locked door without the key? Explain it to me in three steps.",
]


def tokenizer(template: str = TEMPLATE) -> hf.PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = template
    return fast


COMMON = {
    "vocab_size": 352,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Every other layer has no softmax attention; two value heads share a key head.
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "head_dim": 16,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**COMMON, attention_bias=True),
    "qwen2": lambda: hf.Qwen2Config(**COMMON),
    "qwen3": lambda: hf.Qwen3Config(**COMMON, head_dim=12),
    "mistral": lambda: hf.MistralConfig(**COMMON, sliding_window=6),
    "gemma2": lambda: hf.Gemma2Config(
        **COMMON,
        head_dim=12,
        query_pre_attn_scalar=12,
        sliding_window=6,
        final_logit_softcapping=5.0,
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **COMMON, head_dim=12, query_pre_attn_scalar=12, sliding_window=6, sliding_window_pattern=2
    ),
    "gemma3_vision": lambda: hf.Gemma3Config(
        text_config=dict(
            **COMMON,
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=6,
            sliding_window_pattern=2,
        ),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    ),
    "glm": lambda: hf.GlmConfig(**COMMON, head_dim=12),
    "phi3": lambda: hf.Phi3Config(**COMMON),
    "glm4": lambda: hf.Glm4Config(**COMMON, head_dim=12),
    "olmo2": lambda: hf.Olmo2Config(**COMMON),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **COMMON, **EXPERTS, head_dim=12, mlp_only_layers=[2], norm_topk_prob=True
    ),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **COMMON, **EXPERTS, **HYBRID, shared_expert_intermediate_size=20
    ),
    "qwen3_5": lambda: hf.Qwen3_5TextConfig(**COMMON, **HYBRID),
}


def model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    """A random model whose layers all matter: weights are larger than at initialisation."""
    torch.manual_seed(seed)
    net = hf.AutoModelForCausalLM.from_config(CONFIGS[name]())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in key:
                # Norm gains away from their default, so that folding a post-norm wrongly shows.
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise * (0.15 if parameter.dim() > 1 else 0.1))
    return net.to(dtype).eval()
