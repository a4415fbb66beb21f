"""Closed lists that the command line, the recipes and the code share: each is defined here once, as a type and as the tuple of its names.

This module imports nothing, so that `--help` and the check of a recipe are fast. The table that implements a list (codecs, export formats,
…) lives with its code; a test compares each table with its list, so that a name without code, or code without a name, fails a test.
"""

from typing import Literal, get_args

Codec = Literal["fp32", "fp16", "int8", "int4"]
CODECS: tuple[Codec, ...] = get_args(Codec)

ViewKind = Literal["random_resized_crop", "center", "whole", "letterbox"]
VIEW_KINDS: tuple[ViewKind, ...] = get_args(ViewKind)

PadPosition = Literal["end", "center"]
"""Where a letterboxed view's padding is: right or bottom, or on both sides of the image."""
PAD_POSITIONS: tuple[PadPosition, ...] = get_args(PadPosition)

PhotometricMode = Literal["none", "teacher_same", "student_only"]
PHOTOMETRIC_MODES: tuple[PhotometricMode, ...] = get_args(PhotometricMode)

Orientation = Literal["stored", "upright"]
"""Images as stored, or rotated and mirrored as their EXIF orientation asks for."""
ORIENTATIONS: tuple[Orientation, ...] = get_args(Orientation)

JpegDecoder = Literal["pillow", "simplejpeg", "nvjpeg"]
"""What decodes JPEGs; Pillow decodes everything else."""
JPEG_DECODERS: tuple[JpegDecoder, ...] = get_args(JpegDecoder)

RendererName = Literal["auto", "fast", "pillow", "nvjpeg"]
"""What decodes and resizes new views; auto: what the store's own views have, else the fast one."""
RENDERERS: tuple[RendererName, ...] = get_args(RendererName)

ResizeOn = Literal["host", "device"]
"""Where views are resized: by the processor that cut them, or in one batch on the device that they are for. The bytes are the same."""
RESIZE_ON: tuple[ResizeOn, ...] = get_args(ResizeOn)

Container = Literal["file", "tar", "parquet"]
"""What holds an image: a file of its own, or a tar or Parquet file with many of them."""
CONTAINERS: tuple[Container, ...] = get_args(Container)

Normalisation = Literal["mean-std", "phi-s"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)

Constants = Literal["own", "imagenet"]
"""Mean and deviation of a teacher's input: its own, or ImageNet's."""
CONSTANTS: tuple[Constants, ...] = get_args(Constants)

Interpolation = Literal["bicubic", "bilinear", "nearest"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

ComputePrecision = Literal["fp32", "bf16"]
"""Number format of a forward pass."""
COMPUTE_PRECISIONS: tuple[ComputePrecision, ...] = get_args(ComputePrecision)

Precision = Literal["auto", ComputePrecision]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)

TargetSource = Literal["cached", "live"]
TARGET_SOURCES: tuple[TargetSource, ...] = get_args(TargetSource)

OnMiss = Literal["refuse", "compute"]
"""What a training does about shards that are missing from the store."""
ON_MISS: tuple[OnMiss, ...] = get_args(OnMiss)

DistillStages = Literal["auto", "2", "2,3", "1,2", "1,2,3"]
"""Which stages a distillation runs; auto: by the number of teachers."""
DISTILL_STAGES: tuple[DistillStages, ...] = get_args(DistillStages)

Optimizer = Literal["adamw", "lamb"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

LicenceUse = Literal["commercial"]
"""What the terms of all teachers have to allow, where that is required."""
LICENCE_USES: tuple[LicenceUse, ...] = get_args(LicenceUse)

ClassLoss = Literal["cosine", "angle"]
"""How class tokens are compared."""
CLASS_LOSSES: tuple[ClassLoss, ...] = get_args(ClassLoss)

NamedLoss = Literal["relation", "angle", "shift"]
"""Losses beside the paper's."""
NAMED_LOSSES: tuple[NamedLoss, ...] = get_args(NamedLoss)

ExportFormat = Literal["eupe", "timm", "transformers", "onnx", "executorch", "coreml", "litert"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

GraphTarget = Literal["open", "edge"]
"""What an exported graph is for: inputs of any size, or devices that want one shape and older operators."""
GRAPH_TARGETS: tuple[GraphTarget, ...] = get_args(GraphTarget)

GraphPrecision = Literal["fp32", "fp16", "int8"]
GRAPH_PRECISIONS: tuple[GraphPrecision, ...] = get_args(GraphPrecision)

GRAPH_EXPORTS = ("onnx-edge", "onnx-edge-fp16", "onnx-edge-int8", "executorch-int8", "coreml-fp16")
"""Graphs that are not a format's default, by the names of their folders, which `distill` takes beside the formats."""

VlmTask = Literal["textvqa", "gqa", "pope", "sqa", "realworldqa", "mme"]
"""Questions about pictures that a language model answers."""
VLM_TASKS: tuple[VlmTask, ...] = get_args(VlmTask)

VlmTokens = Literal["fp16", "fp32", "live"]
"""How a language model's training gets patch tokens: from the store, in a codec, or computed at each step."""
VLM_TOKENS: tuple[VlmTokens, ...] = get_args(VlmTokens)

SquareView = Literal["center", "letterbox"]
"""How a picture becomes a square that nothing is drawn for: its centre, or the whole of it with padding."""
SQUARE_VIEWS: tuple[SquareView, ...] = get_args(SquareView)

TrainingEvaluation = Literal["knn", "agreement"]
"""Evaluations that run during a training."""
TRAINING_EVALUATIONS: tuple[TrainingEvaluation, ...] = get_args(TrainingEvaluation)

Tracker = Literal["wandb", "mlflow", "trackio"]
"""Where `train --track` shows a run beside TensorBoard."""
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)

HeadProtocol = Literal["official", "ours"]
"""Whose protocol trains and evaluates a head on patch tokens."""
HEAD_PROTOCOLS: tuple[HeadProtocol, ...] = get_args(HeadProtocol)

MaskDataset = Literal["ade20k", "other"]
MASK_DATASETS: tuple[MaskDataset, ...] = get_args(MaskDataset)

PairProtocol = Literal["paper", "ours"]
"""Whose image pairs and input sizes semantic correspondence is measured with."""
PAIR_PROTOCOLS: tuple[PairProtocol, ...] = get_args(PairProtocol)

PairSplit = Literal["trn", "val", "test"]
PAIR_SPLITS: tuple[PairSplit, ...] = get_args(PairSplit)

TemplateSet = Literal["names", "photo", "clip-80"]
"""Texts around a class's name for zero-shot: none (the paper), one sentence, or CLIP's 80."""
TEMPLATE_SETS: tuple[TemplateSet, ...] = get_args(TemplateSet)
