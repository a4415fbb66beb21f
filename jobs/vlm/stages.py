"""The two stages of an evaluation by a language model: what decides them, what they read, and their training on any number of ranks.

    FOLDER/evaluations/vlm-pretrain-<digest12>.safetensors   the projector after captions
    FOLDER/evaluations/vlm-instruct-<digest12>.safetensors   projector and language model after conversations
    … .partial.safetensors                                   a stage under way (`student.language.training`)

Each is named by everything that decides it, so that all tasks share one training, and recipes that differ in the second stage share the
first. Every rank opens all of this itself from the request; the tokens were put into the store before.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...storage.annotations.conversations import Conversation, Conversations, read_conversations
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.core.identity import digest, short
from ...storage.features.features import FeatureReader
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.store import FeatureStore
from ...student.language.folder import llm_digest, load_llm, load_tokenizer
from ...student.language.model import Batch, SeeingModel, batch_of, build_projector, share_out, trained_parameters
from ...student.language.prompts import Prompts, Text
from ...student.language.recipe import StageRecipe
from ...student.language.training import StageTraining, StageWork, load_trained, read_tensors
from ...student.model.draws import step_seed
from ...student.model.ranks import ALONE, Ranks
from ...student.probes.evaluation_records import FOLDER
from ...teachers.runtime.devices import choose_device, choose_precision
from ..evaluation.dense import refuse_feature_set
from ..evaluation.labelled_features import open_data, open_store
from ..evaluation.models import Model, open_model
from .options import VlmOptions
from .patch_tokens import CachedTokens, LiveTokens, StagePictures, existing_set, fill, own_set

StageName = Literal["pretrain", "instruct"]
STAGES: tuple[StageName, ...] = ("pretrain", "instruct")
Tokens = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Stage:
    """The data of a stage."""

    name: StageName
    recipe: StageRecipe
    conversations: Conversations
    pictures: StagePictures | None
    """None where no conversation has one."""
    reader: FeatureReader | None
    """The feature set that is read; None for live tokens."""
    tokens: dict[str, Any]
    """What decides the tokens besides the encoder."""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.recipe.steps(len(self.conversations.entries))

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What decides this stage besides encoder and language model."""
        pictures = [] if self.pictures is None else self.pictures.sha256s()
        data = {"file": self.conversations.sha256, "pictures": len(pictures), "digest": digest(pictures)}
        return {"data": data, "tokens": self.tokens, "steps": self.steps, "recipe": asdict(self.recipe)}


@dataclass(frozen=True)
class VlmTraining:
    """Both stages, ready to be trained."""

    options: VlmOptions
    model: Model
    stages: dict[StageName, Stage]
    llm: str
    """Digest of the language model."""
    on_event: OnEvent

    @property
    def device(self) -> str:
        """Where all is computed."""
        return choose_device(self.options.device).value

    @property
    def precision(self) -> str:
        """Number format of the language model's passes."""
        return choose_precision(self.options.recipe.precision, self.device).value

    def protocol(self, until: StageName) -> dict[str, Any]:
        """Return everything but the encoder that decides the model after a stage."""
        recipe = self.options.recipe
        shared = {"llm": self.llm, "projector_layers": recipe.projector_layers, "longest": recipe.longest, "prompt": asdict(recipe.prompt),
                  "precision": self.precision, "seed": recipe.seed}  # fmt: skip
        return {**shared, **{name: self.stages[name].protocol for name in STAGES[: STAGES.index(until) + 1]}}

    def file(self, stage: StageName) -> Path:
        """Return where a stage keeps what it trained."""
        named = short(digest({**self.protocol(stage), "model": self.model.identity}))
        return self.model.folder / FOLDER / f"vlm-{stage}-{named}.safetensors"

    @property
    def is_trained(self) -> bool:
        """Whether both stages are over."""
        return self.file("instruct").is_file()


def open_encoder(options: VlmOptions) -> Model:
    """Open the encoder at the recipe's size for its patches; raises `BadInput` for a feature set."""
    refuse_feature_set(options.model)
    plain = open_model(options.model, weights=options.weights, out=options.out)
    size_px = options.recipe.encoder.for_patch(plain.spec.stride_px)
    return open_model(options.model, size_px, options.weights, options.out)


def open_training(options: VlmOptions, on_event: OnEvent) -> VlmTraining:
    """Read and check everything of both stages; raises `BadInput` before anything is computed. Computes no tokens."""
    load_tokenizer(options.llm)  # raises BadInput
    data = {"pretrain": (options.pretrain_data, options.pretrain_images), "instruct": (options.instruct_data, options.instruct_images)}
    read = {name: read_conversations(*data[name]) for name in STAGES}
    if bare := sum(entry.picture is None for entry in read["pretrain"].entries):
        raise BadInput(f"{options.pretrain_data}: {bare:,} entries have no picture, and the projector learns from pictures alone")
    model = open_encoder(options)
    patches = model.spec.grid[0] * model.spec.grid[1]
    if patches + 2 > options.recipe.longest:
        raise BadInput(f"a picture has {patches} tokens and a conversation {options.recipe.longest} at most; --set longest={2 * patches}")
    store = open_store(options.store)
    store = FeatureStore(DryRunObjects(store.objects)) if options.dry_run else store
    stages = {name: _stage(name, options, store, model, read[name], data[name][1], on_event) for name in STAGES}
    return VlmTraining(options, model, stages, llm_digest(options.llm), on_event)


def _stage(
    name: StageName, options: VlmOptions, store: FeatureStore, model: Model, read: Conversations, folder: Path, on_event: OnEvent
) -> Stage:
    recipe = options.recipe.pretrain if name == "pretrain" else options.recipe.instruct
    if not read.pictures:
        return Stage(name, recipe, read, None, None, {})
    pictures = StagePictures.find(open_data(store, str(folder), on_event), read.pictures, model, recipe.view)
    if options.tokens == "live":
        return Stage(name, recipe, read, pictures, None, pictures.describe("live", None))
    reader = own_set(store, pictures, options.tokens)
    existing = existing_set(store, pictures, options.tokens) if pictures.bytes_to_write(reader) else None
    return Stage(name, recipe, read, pictures, existing or reader, pictures.describe(options.tokens, existing))


def bytes_to_write(training: VlmTraining) -> int:
    """Return the bytes of tokens that both stages still lack; a set that both read counts once."""
    by_key: dict[str, int] = {}
    for stage in training.stages.values():
        if stage.reader is not None and stage.pictures is not None and not stage.reader.complete:
            by_key[stage.reader.key] = max(by_key.get(stage.reader.key, 0), stage.pictures.bytes_to_write(stage.reader))
    return sum(by_key.values())


def fill_tokens(training: VlmTraining) -> None:
    """Encode into the store what both stages lack."""
    for stage in training.stages.values():
        if stage.reader is not None and stage.pictures is not None and not stage.reader.complete:
            fill(stage.reader, stage.pictures, training.device, training.options.batch_size, training.on_event)


def train_stages(training: VlmTraining, ranks: Ranks = ALONE) -> None:
    """Train what is not trained yet, in this process or as one of several ranks; both stages keep what they trained."""
    if training.is_trained:
        return
    for name in STAGES:
        if not training.file(name).is_file():
            _train_stage(training, name, ranks)
        ranks.barrier()


def build_model(training: VlmTraining, *, after: StageName | None = None) -> tuple[SeeingModel, Any]:
    """Return the model, as it is after a stage or with a random projector, on the CPU, and its tokenizer."""
    recipe = training.options.recipe
    llm, tokenizer = load_llm(training.options.llm)
    torch.manual_seed(step_seed(recipe.seed, -1))
    projector = build_projector(training.model.spec.patch_dim, llm.get_input_embeddings().embedding_dim, recipe.projector_layers)
    model = SeeingModel(projector, llm)
    if after is not None:
        file = training.file(after)
        tensors = {name.removeprefix("model."): tensor for name, tensor in read_tensors(file)[0].items()}
        parameters = dict(model.named_parameters())
        load_trained({name: parameters[name] for name in tensors if name in parameters}, tensors, file)
    return model, tokenizer


def _train_stage(training: VlmTraining, name: StageName, ranks: Ranks) -> None:
    options, stage = training.options, training.stages[name]
    device = torch.device(training.device)
    model, tokenizer = build_model(training, after="pretrain" if name == "instruct" else None)
    trained = trained_parameters(model, with_llm=name == "instruct")
    model.to(device)
    if device.type == "cuda":
        model.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if ranks.count > 1:
        share_out(model, ranks.count)
    parameters = dict(model.named_parameters())
    texts = _Texts(stage, Prompts(tokenizer, options.recipe.prompt), training.model.spec.grid, options.recipe.longest)
    tokens = _tokens_of(stage, device, options.batch_size)
    work = StageWork(
        f"vlm {name}", stage.recipe, stage.steps, len(stage.conversations.entries), options.recipe.seed, training.file(name),
        options.micro_batch, options.keep_every, device, training.precision, texts, lambda entries: tokens(texts.pictures(entries)),
        training.on_event,
    )  # fmt: skip
    StageTraining(work, model, {wanted: parameters[wanted] for wanted in trained}, ranks).train()


@dataclass(frozen=True)
class _Texts:
    """Makes batches of a stage's conversations."""

    stage: Stage
    prompts: Prompts
    grid: tuple[int, int]
    longest: int

    def __call__(self, entries: list[int]) -> Batch:
        texts = [self._text(self.stage.conversations.entries[entry]) for entry in entries]
        return batch_of(texts, self.grid[0] * self.grid[1], self.longest)

    def _text(self, conversation: Conversation) -> Text:
        return self.prompts.caption(conversation) if self.stage.name == "pretrain" else self.prompts.conversation(conversation)

    def pictures(self, entries: list[int]) -> list[str]:
        """Return the pictures of those entries that have one."""
        shown = (self.stage.conversations.entries[entry].picture for entry in entries)
        return [picture for picture in shown if picture is not None]


def _tokens_of(stage: Stage, device: torch.device, batch_size: int) -> Callable[[list[str]], Tensor | None]:
    if stage.pictures is None:
        return lambda names: None
    source: Tokens = LiveTokens(stage.pictures, device, batch_size)
    if stage.reader is not None:
        source = CachedTokens(stage.reader, stage.pictures, device)
    return lambda names: source(names) if names else None
