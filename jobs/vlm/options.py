"""The request of an evaluation by a language model: one frozen value from the command line or a notebook to every rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...storage.core.choices import VLM_TASKS, VLM_TOKENS, Device, VlmTask, VlmTokens
from ...storage.core.errors import BadInput, unknown_name
from ...student.language.recipe import VlmRecipe


@dataclass(frozen=True, kw_only=True)
class VlmOptions:
    """Which encoder is tested by which language model on which questions; raises BadInput for values out of range."""

    model: str
    """A run's folder, an exported folder, a checkpoint file or a teacher."""
    task: VlmTask
    task_data: Path
    """Folder with the task's official files."""
    llm: Path
    """Folder of a causal language model of transformers with its tokenizer."""
    pretrain_data: Path
    """LLaVA's JSON file of captions; and the folder of its pictures."""
    pretrain_images: Path
    instruct_data: Path
    """LLaVA's JSON file of conversations; and the folder of its pictures."""
    instruct_images: Path
    recipe: VlmRecipe
    """Resolved: `load_vlm_recipe(…).recipe`."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Of each of its values, by dotted key."""
    store: str | None = None
    """Folder or URL of the feature store; None: the evaluations' own below $EUPE_PIPELINE_HOME."""
    tokens: VlmTokens = "fp16"
    """Patch tokens of the training pictures: kept in the store, as fp16 or fp32, or live, computed in each step."""
    batch_size: int = 64
    """Pictures in one forward of the encoder."""
    micro_batch: int = 16
    """Conversations in one forward of the language model; steps are accumulated from them."""
    answer_batch: int = 16
    """Questions that are answered together."""
    keep_every: int = 500
    """Steps between two states from which a stopped training goes on."""
    workers: int = 0
    """Ranks of Ray Train that share out the language model (FSDP); 0: this process alone."""
    address: str | None = None
    """Ray cluster of the ranks; None: this machine."""
    device: Device = "auto"
    weights: Path | None = None
    """A named teacher's weight file."""
    out: Path | None = None
    """Folder that keeps the result; None: the model's own."""
    dry_run: bool = False
    """Only check the data, and say by what protocol and with how many bytes."""

    def __post_init__(self) -> None:
        if self.task not in VLM_TASKS:
            raise unknown_name("task", self.task, VLM_TASKS)
        if self.tokens not in VLM_TOKENS:
            raise unknown_name("kind of tokens", self.tokens, VLM_TOKENS)
        if min(self.batch_size, self.micro_batch, self.answer_batch, self.keep_every) < 1 or self.workers < 0:
            raise BadInput("batch_size, micro_batch, answer_batch and keep_every must be above 0, workers 0 or more")
        if self.address is not None and not self.workers:
            raise BadInput("--address is a Ray cluster's, and without --workers the training runs in this process; give --workers as well")
