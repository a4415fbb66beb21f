"""The ten-line program that goes into every export folder as usage.py; tests run each of them and compare its tokens with the student's.

Each takes the path of a picture, resizes the whole of it to the student's size and prints the shapes of class and patch tokens. They need
the format's own library, torch or numpy, and Pillow; never this package. The official hub's code is not on any package index, so that
example takes the path of a clone as well.
"""

from string import Template
from typing import Any

_PIXELS = """\
picture = Image.open(sys.argv[1]).convert("RGB").resize(($side, $side), Image.Resampling.$resample)
pixels = (np.asarray(picture, np.float32) / 255 - np.float32($mean)) / np.float32($std)
"""

_EUPE = """\
import sys
import numpy as np
import torch
from PIL import Image
""" + _PIXELS + """\
# argv[2]: a clone of facebookresearch/EUPE, whose entry for ViT-T leaves the weights random unless `pretrained` is said
model = torch.hub.load(sys.argv[2], "$name", source="local", pretrained=True, weights="$file").eval()
with torch.no_grad():
    tokens = model.forward_features(torch.from_numpy(pixels).permute(2, 0, 1)[None])
print(tuple(tokens["x_norm_clstoken"].shape), tuple(tokens["x_norm_patchtokens"].shape))
"""  # fmt: skip

_TIMM = """\
import sys
import timm
import torch
from PIL import Image
model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
pixels = transform(Image.open(sys.argv[1]).convert("RGB"))[None]
with torch.no_grad():
    cls, patch = model(pixels), $patch
print(tuple(cls.shape), tuple(patch.shape))
"""

_TRANSFORMERS = """\
import sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".").eval()
with torch.no_grad():
    tokens = model(**processor(Image.open(sys.argv[1]).convert("RGB"), return_tensors="pt")).last_hidden_state
cls, patch = tokens[:, 0], tokens[:, $prefix:]
print(tuple(cls.shape), tuple(patch.shape))
"""

_ONNX = """\
import sys
import numpy as np
import onnxruntime
from PIL import Image
""" + _PIXELS + """\
session = onnxruntime.InferenceSession("$file", providers=["CPUExecutionProvider"])
cls, patch = session.run(["cls", "patch"], {"pixels": pixels.transpose(2, 0, 1)[None]})
print(cls.shape, patch.shape)
"""  # fmt: skip

_EXECUTORCH = """\
import sys
import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image
""" + _PIXELS + """\
program = Runtime.get().load_program("$file")
cls, patch = program.load_method("forward").execute([torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()])
print(tuple(cls.shape), tuple(patch.shape))
"""  # fmt: skip

EXAMPLES = {"eupe": _EUPE, "timm": _TIMM, "transformers": _TRANSFORMERS, "onnx": _ONNX, "executorch": _EXECUTORCH}
_TIMM_PATCH = {
    "vit": "model.forward_features(pixels)[:, model.num_prefix_tokens :]",
    "convnext": "model.head.norm(model.forward_features(pixels))",
}


def usage_example(form: str, *, name: str, file: str, architecture: dict[str, Any], preprocessing: dict[str, Any]) -> str:
    """Return the program of a format's folder; `name` is the official hub's, `file` the weights beside it."""
    family = architecture["name"]
    return Template(EXAMPLES[form]).substitute(
        name=name, file=file, side=preprocessing["size_px"], resample=preprocessing["interpolation"].upper(),
        mean=preprocessing["mean"], std=preprocessing["std"], patch=_TIMM_PATCH[family],
        prefix=1 + architecture["registers"] if family == "vit" else 1,
    )  # fmt: skip
