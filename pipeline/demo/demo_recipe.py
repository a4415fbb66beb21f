"""The demonstration's own recipe file: how many photos, what is extracted how, and one training recipe a stage.

`[data]` and `[extract]` belong to the demonstration alone, so they live here and not beside the training recipe; the same rules hold:
typed, an unknown key names its nearest, the file is the only place with numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...storage.core.errors import BadInput, unknown_name
from ..recipes.extraction import ExtractConfig
from ..recipes.load import ResolvedRecipe, load_recipe, read_document, stages_of
from ..recipes.typed_tables import build


@dataclass(frozen=True)
class DemoData:
    """`[data]`: how much of CIFAR-10 is used."""

    train_images: int
    """Photos that teachers see and students learn from; also the neighbours of the evaluation."""
    test_images: int
    """Photos that the evaluation classifies."""

    def __post_init__(self) -> None:
        if not (1 <= self.train_images <= 50_000 and 1 <= self.test_images <= 10_000):
            raise BadInput(f"CIFAR-10 has 50,000 and 10,000 photos, asked for {self.train_images:,} and {self.test_images:,}")


@dataclass(frozen=True)
class DemoRecipe:
    """The whole file, resolved."""

    data: DemoData
    extract: ExtractConfig
    stages: Mapping[int, ResolvedRecipe] = field(default_factory=dict)


def load_demo(source: str = "demo") -> DemoRecipe:
    """Return the demonstration's recipe by name or file; raises BadInput."""
    name, document = read_document(source)
    stages = stages_of(document)
    known = ["data", "extract", *(f"stage{stage}" for stage in stages)]
    stray = [key for key in document if key not in known]
    if stray:
        raise unknown_name(f"table of recipe {name}:", stray[0], known)
    data = build(DemoData, document.get("data", {}), where=f"recipe {name}, [data]")
    extract = build(ExtractConfig, document.get("extract", {}), where=f"recipe {name}, [extract]")
    return DemoRecipe(data, extract, {stage: load_recipe(source, stage=stage) for stage in stages})
