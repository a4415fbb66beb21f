"""A small random CLIP of transformers with a tokenizer of a few words, and the same weights as open_clip names them."""

import json
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.teachers.runtime import torchvision_guard
from safetensors.torch import save_file

torchvision_guard.install()

import transformers  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

WORDS = ["<pad>", "a", "photo", "of", "red", "green", "blue", "thing", ".", "drawing", "<start>", "<end>"]
CONTEXT = 10


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="thing"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = WORDS.index("<start>"), WORDS.index("<end>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", bos_token="<start>")
    fast.save_pretrained(folder)


def write_clip(folder: Path, vision_width: int = 32) -> Any:
    """Save the model, its tokenizer and its preprocessing; returns the model."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(WORDS),
        "max_position_embeddings": CONTEXT, "eos_token_id": WORDS.index("<end>"), "bos_token_id": WORDS.index("<start>"), "pad_token_id": 0,
        "hidden_act": "quick_gelu", "projection_dim": 20,
    }  # fmt: skip
    vision = {
        "hidden_size": vision_width, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
        "hidden_act": "quick_gelu", "projection_dim": 20,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # its own start is so small that all texts look alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    prep = {"size": 16, "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(prep))
    return model


def write_siglip(folder: Path, context: int = CONTEXT) -> Any:
    """The same for SigLIP, whose text is its last place, padding or not, and whose images have no projection; returns the model."""
    torch.manual_seed(1)
    shape = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(WORDS), "max_position_embeddings": context, "pad_token_id": 0, "eos_token_id": WORDS.index("<end>")}
    config = transformers.SiglipConfig(text_config=text, vision_config={**shape, "image_size": 16, "patch_size": 8})
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    prep = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(prep))
    return model


def write_open_clip(folder: Path, model: Any, prefix: str = "") -> None:
    """The same model in open_clip's layout."""
    folder.mkdir(parents=True)
    theirs, found = model.state_dict(), {}
    found["token_embedding.weight"] = theirs["text_model.embeddings.token_embedding.weight"]
    found["positional_embedding"] = theirs["text_model.embeddings.position_embedding.weight"]
    for layer in range(2):
        source, target = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            found[f"{target}attn.in_proj_{kind}"] = torch.cat([theirs[f"{source}self_attn.{one}_proj.{kind}"] for one in "qkv"])
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
                     "mlp.c_proj": "mlp.fc2"}  # fmt: skip
            found |= {f"{target}{one}.{kind}": theirs[f"{source}{other}.{kind}"] for one, other in pairs.items()}
    found |= {f"ln_final.{kind}": theirs[f"text_model.final_layer_norm.{kind}"] for kind in ("weight", "bias")}
    found["text_projection"] = theirs["text_projection.weight"].t()
    tensors = {f"{prefix}{name}": value.contiguous() for name, value in found.items()}
    tensors["visual.proj"] = theirs["visual_projection.weight"].t().contiguous()
    save_file(tensors, folder / "open_clip_model.safetensors")
    text_config = {"context_length": CONTEXT, "vocab_size": len(WORDS), "width": 24, "heads": 2, "layers": 2, "mlp_ratio": 2.0}
    config = {"model_cfg": {"embed_dim": 20, "quick_gelu": True, "text_cfg": text_config, "vision_cfg": {}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
