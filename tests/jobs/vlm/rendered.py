"""Pictures of a rendered word or a shape, their captions, conversations and questions, and a tiny language model with random weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from eupe_pipeline.jobs.vlm.options import VlmOptions
from eupe_pipeline.pipeline.recipes.vlm import load_vlm_recipe
from PIL import Image, ImageDraw, ImageFont

from ...student.export.test_export import make_run
from ...student.language.tiny_llm import save_llm

PROMPT = [
    "What",
    "word",
    "shape",
    "is",
    "this",
    "Answer",
    "the",
    "question",
    "using",
    "a",
    "single",
    "word",
    "or",
    "phrase",
    "USER",
    "ASSISTANT",
]


SHAPES: dict[str, list[tuple[float, float]]] = {  # corners in sixteenths of the side
    "square": [(0, 0), (10, 0), (10, 10), (0, 10)], "diamond": [(5, 0), (10, 5), (5, 10), (0, 5)],
    "triangle": [(5, 0), (10, 10), (0, 10)], "bar": [(0, 3.5), (10, 3.5), (10, 6.5), (0, 6.5)],
    "pillar": [(3.5, 0), (6.5, 0), (6.5, 10), (3.5, 10)], "corner": [(0, 0), (3, 0), (3, 7), (10, 7), (10, 10), (0, 10)],
    "hammer": [(0, 0), (10, 0), (10, 3), (6.5, 3), (6.5, 10), (3.5, 10), (3.5, 3), (0, 3)],
    "arrow": [(0, 3.5), (5, 3.5), (5, 0), (10, 5), (5, 10), (5, 6.5), (0, 6.5)],
}  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """How the pictures look, and how many there are."""

    words: tuple[str, ...]
    side_px: int
    jitter_px: int
    train: int
    test: int
    kind: str = "word"
    """`shape`: each word is a shape of `SHAPES`, which is drawn and not written."""

    def picture(self, word: str, generator: np.random.Generator) -> Image.Image:
        """A dark word or shape on a light ground, at a drawn place."""
        ground, ink = (tuple(generator.integers(low, high, 3).tolist()) for low, high in ((190, 256), (0, 80)))
        picture = Image.new("RGB", (self.side_px, self.side_px), ground)
        left, top = generator.integers(0, self.jitter_px + 1, 2).tolist()
        if self.kind == "shape":
            unit = self.side_px / 16
            outline = [(left + unit * (2 + x), top + unit * (2 + y)) for x, y in SHAPES[word]]
            ImageDraw.Draw(picture).polygon(outline, fill=ink)
            return picture
        font = ImageFont.load_default(size=self.side_px * 0.42)
        ImageDraw.Draw(picture).text((left + self.side_px // 32, top + self.side_px // 5), word, fill=ink, font=font)
        return picture

    def write(self, root: Path, *, shuffled: bool = False) -> Path:
        """Captions and conversations over one folder of pictures, and GQA's files; `shuffled` shows pictures of other words."""
        generator = np.random.default_rng(3)
        captions, talks, asked = [], [], {}
        for number in range(self.train + self.test):
            word = self.words[int(generator.integers(len(self.words)))]
            shown = self.words[int(generator.integers(len(self.words)))] if shuffled else word
            is_test = number >= self.train
            file = root / "gqa" / "images" / f"{number}.jpg" if is_test else root / "images" / f"part{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            self.picture(shown, generator).save(file, quality=95)
            answer = {"from": "gpt", "value": word}
            if is_test:
                asked[str(number)] = {"question": f"What {self.kind} is this?", "imageId": str(number), "answer": word}
                continue
            question = f"What {self.kind} is this?\nAnswer the question using a single word or phrase."
            shown_first = {"from": "human", "value": "<image>"}
            captions.append({"id": str(number), "image": f"{file.parent.name}/{file.name}", "conversations": [shown_first, answer]})
            talks.append({**captions[-1], "conversations": [{"from": "human", "value": f"<image>\n{question}"}, answer]})
        (root / "captions.json").write_text(json.dumps(captions))
        (root / "talks.json").write_text(json.dumps(talks))
        (root / "gqa" / "testdev_balanced_questions.json").write_text(json.dumps(asked))
        return root


SETTINGS = (
    "longest=300", "answer_tokens=3", "precision=fp32", "prompt.system=''", "pretrain.batch_size=16", "instruct.batch_size=16",
    "pretrain.learning_rate=3e-3", "instruct.learning_rate=3e-3",
)  # fmt: skip


def options(root: Path, run: Path, rendered: Rendered, *settings: str) -> VlmOptions:
    """The request over what `write` and `prepare` wrote."""
    side = rendered.side_px
    resolved = load_vlm_recipe(settings=[f"encoder.size_px={side}", f"encoder.size_px_of_patch_14={side}", *SETTINGS, *settings])
    return VlmOptions(
        model=str(run), task="gqa", task_data=root / "gqa", llm=run.parent / "llm", pretrain_data=root / "captions.json",
        pretrain_images=root / "images", instruct_data=root / "talks.json", instruct_images=root / "images", recipe=resolved.recipe,
        origins=resolved.origins, store=str(run.parent / "store"), device="cpu", tokens="fp32",
    )  # fmt: skip


def prepare(folder: Path, rendered: Rendered) -> Path:
    """A random encoder's run, a random language model and an empty store in one folder; returns the run."""
    from eupe_pipeline.storage.store import FeatureStore

    folder.mkdir(parents=True, exist_ok=True)
    save_llm(folder / "llm", [*rendered.words, *PROMPT])
    FeatureStore.create(str(folder / "store"))
    return make_run(folder / "run", {"name": "vit-mini", "depth": 1, "layer_scale": 1.0}, rendered.side_px)
