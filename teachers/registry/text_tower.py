"""Text towers for zero-shot classification, from a folder on disk: CLIP and SigLIP of transformers, CLIP of open_clip (PE's too).

    transformers    config.json (clip, siglip)    model.safetensors           tokenizer.json …
    open_clip       open_clip_config.json         open_clip_model.safetensors  tokenizer.json

Weights may be in several files with an index (`checkpoints.sharded`).

transformers builds its own towers, strictly loaded. open_clip is not a dependency: its standard tower (causal attention, the end token's
position, a projection) is written out here and loaded strictly; a config that asks for more (another pooling, a tower of Hugging Face's) is
refused. Texts are lower-cased, as every one of these models was trained; SigLIP's (1 and 2) also lose their punctuation, as in big_vision's
zero-shot evaluator and open_clip's configs of both, whatever the folder's tokenizer does by itself. The image half keeps its last
projection in the same files, so the tower has that too: a teacher whose class token comes before it (CLIP's, PE's attention pool) needs it
to meet the texts. Axes: n texts, T tokens, D channels.
"""

import json
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.identity import file_sha256
from ..checkpoints.sharded import listed, weights_in, weights_sha256
from ..checkpoints.weights import check_format, read_weights, shapes_in
from ..runtime import torchvision_guard

OPEN_CLIP_CONFIG = "open_clip_config.json"
_KNOWN_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "embed_cls", "pool_type", "no_causal_mask"}
_PROJECTIONS = {  # name in the file → whether it is stored as (in, out)
    "visual_projection.weight": False, "visual.proj": True, "visual.trunk.head.weight": False, "visual.head.proj.weight": False,
}  # fmt: skip
_TEXT_WIDTHS = {  # name of the text half's last projection → the axis of its shape that the texts' channels are
    "text_projection": 1, "text.text_projection": 1, "text_projection.weight": 0, "text_model.head.weight": 0,
}  # fmt: skip
_NO_TEXT = re.compile(r"visual\.|logit_scale$|logit_bias$|(text\.)?attn_mask$")
IN_TEXTS_SPACE = "projected attention pool"
"""Of `CLS_KINDS`: class tokens that have passed the last projection."""
_WITHOUT_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
_PICKLES = ("open_clip_pytorch_model.bin", "pytorch_model.bin")
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class TextTower:
    """Embeds texts, and has the projection (out, in) of the same model's images to their space, where there is one."""

    identity: dict[str, Any]
    """Digests of the weights and the tokenizer; never the path."""
    image_projection: Tensor | None
    embed_ids: Callable[[Tensor], Tensor]
    """Token ids (n, T) → (n, D)."""
    tokenize: Callable[[list[str]], Tensor]
    clean: Callable[[str], str] = str.lower
    """Of a text, before it becomes tokens."""

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Return embeddings (n, D) fp32 on the CPU, not normalised."""
        ids = self.tokenize([self.clean(text) for text in texts])
        return torch.cat([self.embed_ids(part).float() for part in torch.split(ids, _TEXTS_AT_ONCE)])

    def project(self, images_ND: Tensor, kind: str) -> Tensor:
        """Return image embeddings in the texts' space, from class tokens of a `kind` of `CLS_KINDS`; raise BadInput when widths differ."""
        if self.image_projection is None or kind == IN_TEXTS_SPACE:
            return images_ND
        if images_ND.shape[1] != self.image_projection.shape[1]:
            raise BadInput(
                f"the text tower's model projects image embeddings of {self.image_projection.shape[1]} channels, this space has "
                f"{images_ND.shape[1]}: they are not of one model"
            )
        return images_ND.float() @ self.image_projection.t().float()


def load_text_tower(folder: Path) -> TextTower:
    """Return the tower of a folder; raise BadInput when it has none of the layouts or its weights do not fit."""
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return _open_clip(folder)
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} holds neither {OPEN_CLIP_CONFIG} nor config.json: give the folder of a CLIP or SigLIP model")
    kind = str(_read_json(folder / "config.json").get("model_type"))
    if kind not in _FAMILIES:
        raise unknown_name("text tower of transformers", kind, _FAMILIES)
    return _transformers(folder, kind)


def missing_of_tower(folder: Path) -> list[str]:
    """Return which of a text tower's files a folder lacks; nothing is loaded."""
    config = next((name for name in (OPEN_CLIP_CONFIG, "config.json") if (folder / name).is_file()), None)
    lacking = [f"{OPEN_CLIP_CONFIG} or config.json"] if config is None else []
    if not any(folder.glob("*.safetensors")):
        weights = {OPEN_CLIP_CONFIG: "open_clip_model.safetensors", "config.json": "model.safetensors", None: "*.safetensors"}[config]
        pickle = next((folder / name for name in _PICKLES if config and (folder / name).is_file()), None)
        lacking.append(f"{weights} (`eupe-pipeline convert-weights {pickle} --out {folder / weights}` makes it)" if pickle else weights)
    return lacking + ([] if _tokenizer_file(folder).is_file() else ["tokenizer.json"])


def text_width(folder: Path) -> int | None:
    """Return the channels of a tower's texts, from the header of its weights alone; None where they are in none of the layouts."""
    stem = "open_clip_model" if (folder / OPEN_CLIP_CONFIG).is_file() else "model"
    shapes = shapes_in(weights_in(folder, stem))
    return next((shapes[name][axis] for name, axis in _TEXT_WIDTHS.items() if len(shapes.get(name, ())) == 2), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


_FAMILIES = {"clip": ("CLIPTextModelWithProjection", "text_embeds"), "siglip": ("SiglipTextModel", "pooler_output")}


def _identity(weights: Path, tokenizer: Path) -> dict[str, Any]:
    return {"weights_sha256": weights_sha256(weights), "tokenizer_sha256": file_sha256(tokenizer)}


def _transformers(folder: Path, kind: str) -> TextTower:
    torchvision_guard.install()
    import transformers

    transformers.logging.set_verbosity_error()  # what it would warn of is an error below
    transformers.logging.disable_progress_bar()
    name, output = _FAMILIES[kind]
    weights, tokens_file = weights_in(folder), _tokenizer_file(folder)
    check_format(weights)
    if not tokens_file.is_file():
        raise BadInput(f"{tokens_file} is missing: the tokenizer, which the model's page on the hub has")
    try:
        model, loading = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        tokenizer, identity = _tokenizer(folder), _identity(weights, tokens_file)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"transformers cannot load a text tower from {folder}: {str(error)[:400]}") from error
    if missing := [*map(str, loading["missing_keys"]), *map(str, loading["mismatched_keys"])]:
        raise BadInput(f"{weights} does not fill the text tower: {len(missing)} tensors are missing ({', '.join(missing[:3])})")
    if unused := [name for name in map(str, loading["unexpected_keys"]) if name.startswith("text_") and "position_ids" not in name]:
        raise BadInput(f"{weights} has more than config.json describes: {listed('tensors of texts are not used', unused)}")
    frozen, length = model.eval().requires_grad_(False), int(model.config.max_position_embeddings)

    def tokenize(texts: list[str]) -> Tensor:
        encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return cast(Tensor, encoded["input_ids"])

    projection = _projection(read_weights(weights, _PROJECTIONS.__contains__))
    if kind != "siglip":
        return TextTower(identity, projection, lambda ids: getattr(frozen(input_ids=ids), output), tokenize)
    identity = {**identity, "texts": "lower case, no punctuation"}
    return TextTower(identity, projection, lambda ids: getattr(frozen(input_ids=ids), output), tokenize, _canonical)


def _tokenizer_file(folder: Path) -> Path:
    """Return the file of a folder's tokenizer: tokenizer.json, or SigLIP's own where the library that reads it is installed."""
    own = folder / "spiece.model"
    return own if not (folder / "tokenizer.json").is_file() and own.is_file() and find_spec("sentencepiece") else folder / "tokenizer.json"


def _tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer: of the class that it names, else as its tokenizer.json describes it.

    SigLIP's class asks for sentencepiece even beside a tokenizer.json. Raise `BadInput` for one that puts no end mark behind a text.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id is None or tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        raise BadInput(
            f"{folder / 'tokenizer.json'} puts no end mark behind a text, as SigLIP's does; `pip install sentencepiece` reads spiece.model"
        )
    return tokenizer


def _canonical(text: str) -> str:
    return " ".join(text.translate(_WITHOUT_PUNCTUATION).lower().split())


def _projection(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the image half's last projection as (out, in)."""
    for name, transposed in _PROJECTIONS.items():
        if name in tensors:
            return tensors[name].t() if transposed else tensors[name]
    return None


class ClipText(nn.Module):
    """open_clip's standard text transformer; the names of its parameters are those of the files."""

    def __init__(self, width: int, heads: int, layers: int, context: int, vocabulary: int, embed_dim: int, quick: bool, mlp: float) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(_Block(width, heads, quick, mlp) for _ in range(layers))})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, embed_dim))

    def forward(self, ids_nT: Tensor) -> Tensor:
        """Return (n, D): the token at the highest id, which is the end of the text."""
        x = self.token_embedding(ids_nT) + self.positional_embedding[: ids_nT.shape[1]]
        for block in cast(nn.ModuleList, self.transformer["resblocks"]):
            x = block(x)
        x = self.ln_final(x)
        projected: Tensor = x[torch.arange(len(x)), ids_nT.argmax(dim=1)] @ self.text_projection
        return projected


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, quick: bool, mlp: float) -> None:
        super().__init__()
        self.heads, self.quick = heads, quick
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, int(width * mlp)), "c_proj": nn.Linear(int(width * mlp), width)})

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=x.device).triu(1)
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else functional.gelu(hidden)
        out: Tensor = x + self.mlp["c_proj"](hidden)
        return out


def _open_clip(folder: Path) -> TextTower:
    weights, tokens_file = weights_in(folder, "open_clip_model"), folder / "tokenizer.json"
    config = _read_json(folder / OPEN_CLIP_CONFIG)
    try:
        model_config = config["model_cfg"]
        text = dict(model_config["text_cfg"])
        tower = ClipText(
            text["width"], text["heads"], text["layers"], text.get("context_length", 77), text.get("vocab_size", 49408),
            model_config["embed_dim"], bool(model_config.get("quick_gelu", False)), float(text.get("mlp_ratio", 4.0)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / OPEN_CLIP_CONFIG} does not describe a text tower of open_clip: {error!r}") from error
    others = text.keys() - _KNOWN_TEXT_KEYS
    if others or text.get("embed_cls") or text.get("no_causal_mask") or text.get("pool_type", "argmax") != "argmax":
        raise BadInput(
            f"{folder} asks for a text tower that is not open_clip's standard one ({', '.join(sorted(others)) or 'its pooling'})"
        )
    tensors = read_weights(weights, lambda name: name in _PROJECTIONS or not _NO_TEXT.match(name))
    prefix = "text." if any(name.startswith("text.") for name in tensors) else ""
    own = {
        name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix) and name not in _PROJECTIONS
    }
    wanted = tower.state_dict()
    faults = [name for name, value in wanted.items() if name not in own or own[name].shape != value.shape]
    if faults:
        raise BadInput(f"{weights} does not fill the text tower: {len(faults)} tensors are missing or misshapen ({', '.join(faults[:3])})")
    if unused := [name for name in own if name not in wanted]:
        raise BadInput(f"{weights} has more than {OPEN_CLIP_CONFIG} describes: {listed('tensors of texts are not used', unused)}")
    tower.load_state_dict(own)
    frozen, length = tower.eval().requires_grad_(False), text.get("context_length", 77)
    return TextTower(
        _identity(weights, tokens_file),
        _projection(tensors),
        frozen,
        _clip_tokenizer(tokens_file, length, tower.token_embedding.num_embeddings),
    )


def _clip_tokenizer(path: Path, length: int, vocabulary: int) -> Callable[[list[str]], Tensor]:
    """Return open_clip's tokenizer: zeros after the end token, and a text that is too long keeps its end token."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise BadInput(f"{path} is missing: the tokenizer of CLIP, that of openai/clip-vit-large-patch14 say")
    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.get_vocab_size() > vocabulary:
        raise BadInput(f"{path} has {tokenizer.get_vocab_size():,} tokens, the text tower beside it {vocabulary:,}: it is another model's")
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def tokenize(texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, encoded in zip(rows, tokenizer.encode_batch(texts), strict=True):
            ids = encoded.ids[: length - 1] + encoded.ids[-1:] if len(encoded.ids) > length else encoded.ids
            row[: len(ids)] = torch.tensor(ids)
        return rows

    return tokenize
