"""Folders of tiny language models with random weights, and of a tokenizer of words and characters that is made here."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.teachers.runtime import torchvision_guard
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

torchvision_guard.install()
import transformers  # noqa: E402 - only after the guard

MARKS = ("<unk>", "<s>", "</s>")


def save_tokenizer(folder: Path, words: Sequence[str] = (), *, end: str | None = "</s>") -> int:
    """Write a tokenizer whose tokens are words with the blank before them, and single characters; returns its number of ids."""
    pieces = [*MARKS, *words, *(f" {word}" for word in words), *sorted(set(string.printable) - {"\r", "\x0b", "\x0c"})]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    known = "|".join(sorted((word for word in words), key=len, reverse=True))
    pattern = rf"\s?(?:{known})\b|[\s\S]" if known else r"[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token=end)
    fast.save_pretrained(folder)
    return len(fast)


def save_llm(
    folder: Path, words: Sequence[str] = (), *, width: int = 64, depth: int = 2, entries: int | None = None, tied: bool = False
) -> Path:
    """Write a Llama with random weights, and its tokenizer; `entries` makes its vocabulary another size than the tokenizer's."""
    ids = save_tokenizer(folder, words)
    config = transformers.LlamaConfig(
        vocab_size=ids if entries is None else entries, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
