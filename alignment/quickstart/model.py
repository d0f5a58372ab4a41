"""The micro Llama: a real checkpoint folder with random weights, made from a seed in a second."""

from __future__ import annotations

import re
import string
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.quickstart.records import sft_records

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast


# The micro tokenizer: whole words and numbers of the generated text, single characters for everything else.

PAD, UNKNOWN, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n\t"
PIECE = r" ?[A-Za-z]+| ?[0-9]+| [-+=]|#+|<+|>+|[\s\S]"
"""Text is split first into words, numbers and signs with the space before them, runs of marks, or else characters."""

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


@cache
def vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: the same for every seed, as the words of one seed's text are all words."""
    texts = (message["content"] for record in sft_records(0) for message in record["messages"])
    words = {piece for text in texts for piece in re.findall(PIECE, text)}
    return (PAD, UNKNOWN, BOS, EOS, *ROLES, *CHARACTERS, *sorted(words - set(CHARACTERS)))


def micro_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that keeps all ASCII text and writes `<unk>` for every other character.

    Plain text gets one BOS; the chat template writes its own.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(
        models.WordPiece(vocab=ids, unk_token=UNKNOWN, continuing_subword_prefix="", max_input_chars_per_word=1_000_000)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8").strip(),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


MAX_LENGTH = 256
"""Tokens of context; the longest generated conversation takes less than half of it."""
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 3, 96, 4, 256


def micro_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Three Llama layers over the tokenizer's vocabulary, with tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_micro_model(out: Path, seed: int) -> None:
    """Writes the untrained checkpoint (config, float32 safetensors, tokenizer with chat template) into `out`.

    The weights depend on the seed alone; the caller's random state is left as it was.
    """
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = micro_tokenizer(MAX_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(micro_config(tokenizer)).to(torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
