"""The tokenizer of the embedded chat model: byte-level BPE with a chat template.

Every byte is in the alphabet, so any UTF-8 text round-trips. The template gives exactly one BOS,
an optional system turn, user and assistant turns, and four tokens after the instruction.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from refusalscope.errors import InputError

PAD, BOS, END, UNK = "<|pad|>", "<|bos|>", "<|end|>", "<|unk|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIALS = (PAD, BOS, END, UNK, SYSTEM, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` entries learnt from the texts, with the chat template attached."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a special token of ours. Raises InputError where the tokenizer lacks it."""
    found = tokenizer.backend_tokenizer.token_to_id(token)
    if found is None:
        raise InputError(f"the tokenizer has no token {token!r}; use one from train_tokenizer")
    return int(found)


def render(turns: Iterable[tuple[str, str]]) -> str:
    """The text of (role, content) turns with the generation prompt, as the chat template gives it.

    Training renders a hundred thousand prompts; this is many times faster than the template.
    """
    body = "".join(f"<|{role}|>\n{content.strip()}{END}\n" for role, content in turns)
    return f"{BOS}{body}{ASSISTANT}\n"
