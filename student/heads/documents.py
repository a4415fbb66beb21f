"""What an export with heads says of them: the usage example, `heads.json` beside it, and a section of the model card.

    FOLDER/heads.json       {name: {"evaluation", "outputs", "labels", "input", "figures", "protocol"}} of each head

The example sees the picture's centre, a square or of the input's shape, at the size of the graph, which is what a linear probe is measured
on. The other evaluations cut windows or take whole pictures: the card says what each figure was measured on, and that more is to be done
outside.
"""

from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from ...storage.views.input_size import SizePx, as_size, size_hw, size_text
from .chosen import NamedHead

HEADS_IN_INT8 = "heads in int8"
"""What an int8 export calls the agreement of its heads with the trained ones."""
FILE = "heads.json"

_IMPORTS = {
    "onnx": "import onnxruntime\n",
    "executorch": "import torch\nfrom executorch.runtime import Runtime\n",
    "transformers": "import torch\nfrom transformers import AutoModel\n",
}
_RUNS = {
    "onnx": """\
session = onnxruntime.InferenceSession("$file", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
found = dict(zip(names, session.run(names, {"pixels": pixels.transpose(2, 0, 1)[None]$batch})))
""",
    "executorch": """\
outputs = Runtime.get().load_program("$file").load_method("forward").execute([torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()])
found = {name: output.numpy() for name, output in zip($names, outputs)}
""",
    "transformers": """\
model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()  # the code is modeling_student.py and modules.py, beside this file
with torch.no_grad():
    found = {name: output.numpy() for name, output in model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).items()}
""",
}
_START = """\
import json
import sys
import numpy as np
${imports}from PIL import Image, ImageOps
picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
high = $fraction * min(picture.height, picture.width / ($width / $height))  # the largest centre of the input's shape, times a fraction
wide, high = min(picture.width, max(1, round(high * ($width / $height)))), min(picture.height, max(1, round(high)))
left, top = (picture.width - wide) // 2, (picture.height - high) // 2
centre = picture.crop((left, top, left + wide, top + high))
pixels = (np.asarray(centre.resize(($width, $height), Image.Resampling.$resample), np.float32) / 255 - np.float32($mean)) / np.float32($std)
heads = json.load(open("heads.json"))


def upsampled(values):  # a value a patch, to the centre's own pixels
    return np.asarray(Image.fromarray(values).resize(centre.size, Image.Resampling.BILINEAR))


"""
_PRINTS = {
    "linear": 'print("$name:", heads["$name"]["labels"][found["$name"][0].argmax()])\n',
    "segmentation": """\
classes = np.stack([upsampled(logits) for logits in found["$name"][0]]).argmax(0)  # of each pixel
print("$name:", classes.shape, [heads["$name"]["labels"][number] for number in np.unique(classes)])
""",
    "depth": """\
metres = upsampled(found["$name"][0])  # of each pixel
print("$name:", metres.shape, f"{metres.min():.2f} to {metres.max():.2f} m")
""",
    "detection": """\
for box, scores in zip(found["${name}_boxes"][0], found["${name}_scores"][0]):  # boxes: left, top, right, bottom as shares of the centre
    if scores.max() > 0.3:
        print("$name:", heads["$name"]["labels"][scores.argmax()], f"{scores.max():.2f}", (box * ([wide, high] * 2)).round(1).tolist())
""",
}
FORMS = tuple(_RUNS)
"""The formats that have an example, and so the formats that take heads."""


def headed_usage(form: str, heads: Sequence[NamedHead], *, file: str, preprocessing: Mapping[str, Any], batch: int) -> str:
    """Return the program that runs a format's folder with these heads on the picture that it is given."""
    fraction = next((one.kept.input["crop_fraction"] for one in heads if "crop_fraction" in one.kept.input), 1)
    names = ["cls", "patch", *(output for one in heads for output in one.outputs)]
    height, width = size_hw(as_size(preprocessing["size_px"]))
    prints = "".join(Template(_PRINTS[one.kept.kind]).substitute(name=one.name) for one in heads)
    return Template(_START + _RUNS[form]).substitute(
        imports=_IMPORTS[form], fraction=fraction, height=height, width=width, resample=preprocessing["interpolation"].upper(),
        mean=preprocessing["mean"], std=preprocessing["std"], file=file, names=names, batch=f".repeat({batch}, 0)" if batch > 1 else "",
    ) + prints  # fmt: skip


def heads_record(heads: Sequence[NamedHead], in_int8: Mapping[str, Any]) -> dict[str, Any]:
    """Return `heads.json`: what each head's outputs are, what they mean, what they were measured at, and what int8 changes of them."""
    return {
        one.name: {
            "evaluation": one.kept.kind, "kept": one.file.name, "outputs": list(one.outputs), "labels": list(one.kept.labels),
            "input": one.kept.input, "figures": _figures(one), "protocol": one.kept.protocol,
            **({"in int8": in_int8[one.name]} if one.name in in_int8 else {}),
        }
        for one in heads
    }  # fmt: skip


_FIGURES = {
    "linear": {"top1": "top-1 {:.2f} %"},
    "segmentation": {"miou": "mIoU {:.2f} %", "pixel_accuracy": "pixel accuracy {:.2f} %"},
    "depth": {"rmse": "RMSE {:.4f} m", "abs_rel": "absolute relative error {:.4f}", "delta1": "δ1 {:.4f}"},
    "detection": {"ap": "AP {:.2f}", "ap50": "AP50 {:.2f}", "ap75": "AP75 {:.2f}"},
}
_OUTPUTS = {
    "linear": "logits of {classes} classes",
    "segmentation": "logits of {classes} classes for each patch",
    "depth": "metres for each patch; the graph sees the mirrored picture as well, as the evaluation does: two passes of the encoder",
    "detection": "boxes (left, top, right, bottom as shares of the input's sides) and scores of {classes} classes for each of the queries",
}


def _figures(head: NamedHead) -> dict[str, Any]:
    return {name: head.kept.results[name] for name in _FIGURES[head.kept.kind] if name in head.kept.results}


def heads_text(heads: Sequence[NamedHead], size_px: SizePx, facts: Mapping[str, Any]) -> str:
    """Return the card's section on the heads: outputs, figures, what these were measured on, and what int8 changes of them."""
    paragraphs = [_text(one, size_px) for one in heads]
    if in_int8 := facts.get(HEADS_IN_INT8):
        paragraphs.append(_int8_text(in_int8, facts["compared on"]))
    return "\n\n".join([*paragraphs, f"Classes, inputs, figures and protocols by head: `{FILE}`."])


def _int8_text(in_int8: Mapping[str, Mapping[str, float]], compared_on: str) -> str:
    changes = [
        f"{name} gives the same class for {100 * one['same class']:.1f} %" if "same class" in one
        else f"{name} differs by {100 * one['difference by scale']:.1f} % of its root mean square"
        for name, one in in_int8.items()
    ]  # fmt: skip
    return (
        f"These figures are of the student in fp32. Here the heads compute in floats, from tokens of int8: on {compared_on}, beside fp32, "
        f"{', '.join(changes)}."
    )


def _text(head: NamedHead, size_px: SizePx) -> str:
    kept = head.kept
    figures = ", ".join(text.format(kept.results[name]) for name, text in _FIGURES[kept.kind].items() if name in kept.results)
    outputs = ", ".join(f"`{output}`" for output in head.outputs)
    protocol = kept.protocol.get("name", "ours")
    lines = [
        f"**{head.name}** ({kept.kind}): {outputs}, {_OUTPUTS[kept.kind].format(classes=len(kept.labels))}.",
        f"Measured by `evaluate {kept.kind}` ({'our' if protocol == 'ours' else f'the {protocol}'} protocol): {figures}.",
        f"Input of that measurement: {kept.input['rule']}.",
    ]
    if "features" in kept.input:
        lines.append(f"The probe was fitted and measured on cached tokens ({', '.join(kept.input['features'])}), which are rounded.")
    if head.size_px is not None and head.size_px != size_px:
        lines.append(f"The example runs the model at {size_text(size_px)} px; the figure is of {size_text(head.size_px)} px.")
    return " ".join(lines)
