"""A causal language model of transformers from a folder on disk: config.json, safetensors and a tokenizer; no code of it is run.

What a training of hours would stumble over is refused here: no or a slow tokenizer, no end mark, ids beyond the vocabulary, weights that
are missing or do not fit. The digest covers the bytes of everything that is read.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...storage.core.errors import BadInput
from ...storage.core.identity import file_sha256
from ...teachers.runtime import torchvision_guard

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_READ = ("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
         "added_tokens.json")  # fmt: skip


def llm_digest(folder: Path) -> str:
    """Return the sha256 over the files of a language model; raise `BadInput` where one is missing."""
    _check_files(folder)
    files = sorted({file for pattern in _READ for file in folder.glob(pattern) if file.is_file()})
    hasher = hashlib.sha256()
    for file in files:
        hasher.update(f"{file.name}\0{file_sha256(file)}\0".encode())
    return hasher.hexdigest()


def llm_bytes(folder: Path) -> int:
    """Return the bytes of its weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def load_tokenizer(folder: Path) -> Any:
    """Return the fast tokenizer of a folder; raise `BadInput` for none, a slow one, and one without an end mark."""
    transformers = _transformers()
    _check_files(folder)
    with _only_errors(folder, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise BadInput(f"the tokenizer of {folder} does not say which characters a token stands for; give a folder with tokenizer.json")
    if tokenizer.eos_token is None:
        raise BadInput(f"the tokenizer of {folder} has no end mark (eos_token), so that answers would never end")
    return tokenizer


def load_llm(folder: Path) -> tuple[Any, Any]:
    """Return the language model with fp32 weights in training mode, and its tokenizer; raise `BadInput` for what does not fit."""
    transformers = _transformers()
    tokenizer = load_tokenizer(folder)
    with _only_errors(folder, "language model"):
        llm, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    wrong = {kind: sorted(map(str, report[kind]))[:3] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]}
    if wrong:
        raise BadInput(f"the weights in {folder} do not fit its config.json: {wrong}; missing ones would be random")
    held = llm.get_input_embeddings().num_embeddings
    if len(tokenizer) > held:
        raise BadInput(
            f"the tokenizer of {folder} has ids up to {len(tokenizer) - 1:,} and the model's vocabulary {held:,} entries; they are "
            "not of one model"
        )
    return llm, tokenizer


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} is no language model of transformers: it has no config.json; --llm takes the folder of one, on this disk")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise BadInput(f"{folder} has no tokenizer (none of {', '.join(_TOKENIZERS)}); copy the model's own beside its weights")
    if not any(folder.glob("*.safetensors")):
        pickled = ", ".join(sorted(file.name for file in folder.glob("*.bin"))[:2])
        raise BadInput(f"{folder} has no weights as safetensors{f', only {pickled}, which are not read' if pickled else ''}")
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise BadInput(f"{folder}/config.json is no JSON ({error})") from error
    if isinstance(config, dict) and "auto_map" in config:
        raise BadInput(f"{folder} wants code of its own to be run (auto_map in config.json); give a model whose code is in transformers")


@contextlib.contextmanager
def _only_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn what transformers raises into `BadInput`, and keep its notes about loading quiet: the report is checked."""
    transformers = _transformers()
    logging = transformers.logging
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"the {what} in {folder} cannot be read: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    """Import transformers, whose models import torchvision, where its compiled operators may not load."""
    torchvision_guard.install()
    import transformers

    return transformers
