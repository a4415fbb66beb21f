"""Let timm import where torchvision's compiled operators cannot load.

torchvision's wheel on PyPI is linked against CUDA; beside a CPU build of torch its library does not load, and then
`import torchvision` (which timm does) fails with "operator torchvision::nms does not exist". The import only needs the
operators' *schemas*, so this module declares the twelve that torchvision registers on top of. The price: those operators
exist by name and have no kernel; calling one raises torch's NotImplementedError. Neither timm's encoders nor this package
calls any. Where the real operators load, nothing is declared. Every module of this folder that imports timm calls
`install()` first. The cure proper: install the torchvision build that matches the torch build.
"""

import importlib.util
import sys
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale,"
    " SymInt pooled_height, SymInt pooled_width, int sampling_ratio, SymInt batch_size, SymInt channels,"
    " SymInt height, SymInt width) -> Tensor",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale,"
    " SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width)"
    " -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h,"
    " SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups,"
    " SymInt offset_groups, bool use_mask) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias,"
    " SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w,"
    " SymInt groups, SymInt offset_groups, bool use_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)

_declared: list[torch.library.Library] = []  # torch drops the schemas when the Library object is collected


def _real_operators_load() -> bool:
    """Return whether torchvision's own library registers its operators in this process."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:  # what dlopen raises for the missing libcudart and its like
            return False
    return hasattr(torch.ops.torchvision, "nms")


def install() -> bool:
    """Declare the missing schemas once; return whether this process runs on declared (kernel-less) operators."""
    if _declared:
        return True
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None or _real_operators_load():
        return False
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return True


def status() -> str:
    """Return one line for `doctor`: the state of torchvision's operators, and the remedy when they are absent."""
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed: timm will not import; run `pip install timm`"
    if not install():
        return "torchvision's compiled operators load"
    return (
        "torchvision's compiled operators do not load beside this torch "
        f"({torch.__version__}); their names are declared so that timm imports, which is enough for every teacher. "
        "To cure it, let `pip install` take the torchvision build that matches torch "
        "(for CPU: the build of torchvision from PyTorch's own index of CPU packages)"
    )
