"""A published checkpoint as a run's folder: something that training starts from, that teaches, that is evaluated and exported.

    OUT/model/         model.json  backbone.safetensors  adapters.json  adapters.safetensors (both empty)
    OUT/imported.json  source, its sha256, layout, what was left out

It has no adapters, because nobody publishes them: training that starts from it begins with fresh ones. There is no recipe and no summary,
so the folder never passes for a run that was trained here.
"""

from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput
from ...storage.core.identity import file_sha256, json_bytes
from ...storage.core.urls import require_utf8
from ...storage.objects.atomic_files import write_atomically
from ...storage.views.input_size import SizePx, size_hw, size_json
from ...teachers.checkpoints.published import load_encoder, read_published
from ..model.student import Student, count_parameters
from ..training.run_folder import save_model


def import_weights(source: Path, out: Path, size_px: SizePx | None = None) -> dict[str, Any]:
    """Write the run folder `out` from a .pth or .safetensors file, or a timm or transformers folder; return what was read.

    Raises BadInput when the source is none of these, when `out` is not empty, and for a size off the stride.
    """
    if not source.exists():
        raise BadInput(f"{source} does not exist; give a .pth or .safetensors file, or a folder with a config.json")
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty; give an empty or a new folder")
    require_utf8("--out", str(out), "safetensors")
    published = read_published(source)
    encoder = load_encoder(published.architecture, published.tensors)
    encoder.preprocessing = published.preprocessing
    side = size_px or published.preprocessing.size_px
    encoder.grid(*size_hw(side))  # raises BadInput off the stride
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.suffix in (".safetensors", ".json"))
    origin = {
        "source": source.name,
        "sha256": {path.name: file_sha256(path) for path in files},
        "layout": published.layout,
        "notes": published.notes,
    }
    save_model(Student(encoder, 1, {}), out / "model", size_px=side, targets={})
    write_atomically(out / "imported.json", json_bytes(origin, indent=1))
    parameters = count_parameters(encoder)
    return {"model": str(out), "architecture": published.architecture, "size_px": size_json(side), "parameters": parameters, **origin}
