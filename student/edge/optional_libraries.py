"""Libraries that a converter or a runtime needs and the package does not: a missing one is an error that names the extra."""

import importlib
import logging
from types import ModuleType

from ...storage.core.errors import BadInput
from .quiet import quiet

EXTRAS = {"onnx": "export", "onnxruntime": "export", "onnxscript": "export", "executorch": "executorch", "torchao": "quantise",
          "openvino": "openvino", "coremltools": "coreml", "litert_torch": "litert", "ai_edge_litert": "litert"}  # fmt: skip


class CannotRunHere(BadInput):
    """The library or the system that a runtime needs is not here."""


def import_optional(module: str) -> ModuleType:
    """Import a module of an optional library; raises CannotRunHere that names the extra when the library is not installed."""
    library = module.split(".")[0]
    logged = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # torchao logs each extension for a GPU or a Python that is not this one
        with quiet():  # some warn of their own code when they are imported
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRAS:
            raise
        raise CannotRunHere(
            f"{error.name} is not installed, and {library} needs it here; run: pip install 'eupe-pipeline[{EXTRAS[library]}]'"
        ) from error
    finally:
        logging.disable(logged)
