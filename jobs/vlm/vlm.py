"""What a language model reads from an encoder's patch tokens: LLaVA's two stages on a frozen encoder, then the questions of a task.

    FOLDER/evaluations/vlm-<task>-<digest12>.json             the record
    FOLDER/evaluations/vlm-<task>-<digest12>.answers.jsonl    {"id", "answer", "right"}, a line a question
    FOLDER/evaluations/vlm-<task>-<digest12>.partial.json     the answers so far

Trained models are shared by the tasks (`stages`); patch tokens come from the store (`patch_tokens`). The pictures of a task are seen as
those of the second stage. All files are read and checked before the first forward. A picture that both a task and a training show is
counted, not refused: COCO's and Visual Genome's are in LLaVA's data and in POPE's and GQA's.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...storage.annotations.questions import Question, questions_digest, read_questions
from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.core.events import OnEvent, ignore_event
from ...storage.objects.atomic_files import write_atomically
from ...storage.sources.decode import BadImage, decode_image
from ...storage.views.input_size import size_json
from ...student.language.folder import llm_bytes
from ...student.language.model import SeeingModel, batch_of
from ...student.language.prompts import Prompts
from ...student.language.scores import score
from ...student.probes.evaluation_records import PARTIAL, record_path, to_strict_json, write_partial
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import mixed_precision
from ..evaluation.knn import evaluated
from .options import VlmOptions
from .patch_tokens import encode, square
from .stages import VlmTraining, build_model, bytes_to_write, fill_tokens, open_training, train_stages

ANSWERS = ".answers.jsonl"
_KEEP_EVERY = 20
"""Batches of answers between two writes of the partial file."""
NAMES = {
    "textvqa": "TextVQA", "gqa": "GQA", "pope": "POPE", "sqa": "ScienceQA", "realworldqa": "RealWorldQA", "mme": "MME",
}  # fmt: skip


def evaluate_vlm(options: VlmOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return a task's figures of the language model that learnt to see through this encoder; kept beside the encoder.

    Raises `BadInput` for anything in data, language model or recipe that cannot be used, before anything is computed.
    """
    questions = read_questions(options.task, options.task_data)
    training = open_training(options, on_event)
    job = _Job(options, questions, training, on_event)
    if options.dry_run:
        sizes = {"bytes_of_tokens": bytes_to_write(training), "bytes_of_llm": llm_bytes(options.llm)}
        steps = {name: stage.steps for name, stage in training.stages.items()}
        return {"dry_run": True, "model": training.model.name, "folder": str(training.model.folder), "protocol": job.protocol,
                "trained": training.is_trained, "steps": steps, **sizes, "origins": dict(options.origins)}  # fmt: skip
    return evaluated(f"vlm-{options.task}", training.model, job.protocol, job.compute, on_event)


@dataclass(frozen=True)
class _Job:
    """One evaluation, ready to run."""

    options: VlmOptions
    questions: Sequence[Question]
    training: VlmTraining
    on_event: OnEvent

    @cached_property
    def digests(self) -> dict[str, str]:
        """The sha256 of each picture, by name; every picture of the task is read once."""
        by_name: dict[str, str] = {}
        for question in self.questions:
            if question.picture_name not in by_name:
                by_name[question.picture_name] = hashlib.sha256(question.picture_bytes()).hexdigest()
        return by_name

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What decides the figures, besides the encoder."""
        tested = {
            "dataset": NAMES[self.options.task], "questions": len(self.questions), "pictures": len(self.digests),
            "digest": questions_digest(self.questions, [self.digests[question.picture_name] for question in self.questions]),
        }  # fmt: skip
        spec = self.training.model.spec
        return {"test": tested, "size_px": size_json(spec.preprocessing.size_px), "layers": "last, normed patch tokens",
                "answer_tokens": self.options.recipe.answer_tokens, **self.training.protocol("instruct")}  # fmt: skip

    def compute(self) -> dict[str, Any]:
        """Train what is not trained, answer, score; return the results."""
        self._train()
        path = record_path(self.training.model.folder, f"vlm-{self.options.task}", {**self.protocol, "model": self.training.model.identity})
        answers = self._answers(path.with_suffix(PARTIAL))
        lines = [
            json.dumps({"id": question.id, "answer": answer, "right": list(question.answers)})
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        write_atomically(path.with_suffix(ANSWERS), "".join(f"{line}\n" for line in lines).encode())
        path.with_suffix(PARTIAL).unlink(missing_ok=True)
        learnt = {sha256 for stage in self.training.stages.values() if stage.pictures is not None for sha256 in stage.pictures.sha256s()}
        changed = {
            key: origin for key, origin in self.options.origins.items() if key != "seed" and not origin.startswith(("paper", "LLaVA-1.5"))
        }
        return {
            **score(self.options.task, self.questions, answers), "questions": len(self.questions), "pictures": len(self.digests),
            "task_pictures_in_training": sum(sha256 in learnt for sha256 in self.digests.values()),
            **({"differs_from_paper": [f"{key} is from {origin}" for key, origin in changed.items()]} if changed else {}),
            "origins": dict(self.options.origins), "answers": path.with_suffix(ANSWERS).name,
        }  # fmt: skip

    def _train(self) -> None:
        if self.training.is_trained:
            return
        if self.options.tokens != "live":
            fill_tokens(self.training)
        if self.options.workers:
            from .ranks import train_on_workers

            train_on_workers(self.training, self.on_event)
        else:
            train_stages(self.training)

    def _answers(self, partial: Path) -> list[str]:
        """Return the answer to each question; goes on from the partial file."""
        known: dict[str, str] = {}
        if partial.is_file():
            try:
                known = dict(json.loads(partial.read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise CacheDamaged(f"{partial} does not hold answers ({error}); remove it and evaluate again") from error

        def partial_bytes() -> bytes:
            return to_strict_json(known, "vlm")

        left = [question for question in self.questions if question.id not in known]
        if left:
            for number, (asked, answers) in enumerate(self._answered(left), start=1):
                known.update((question.id, answer) for question, answer in zip(asked, answers, strict=True))
                if number % _KEEP_EVERY == 0:
                    write_partial(partial, partial_bytes, self.on_event)
                self.on_event({"event": "progress", "stage": f"vlm {self.options.task}", "done": len(known), "total": len(self.questions),
                               "unit": "questions"})  # fmt: skip
        return [known[question.id] for question in self.questions]

    def _answered(self, questions: Sequence[Question]) -> Iterator[tuple[Sequence[Question], list[str]]]:
        training, recipe = self.training, self.options.recipe
        device = torch.device(training.device)
        model, tokenizer = build_model(training, after="instruct")
        model.to(device).eval().requires_grad_(False)
        teacher, prompts = training.model.load(str(device)), Prompts(tokenizer, recipe.prompt)
        patches = teacher.spec.grid[0] * teacher.spec.grid[1]
        for start in range(0, len(questions), self.options.answer_batch):
            asked = questions[start : start + self.options.answer_batch]
            texts = [prompts.question(question.text) for question in asked]
            if (longest := max(len(text.ids) + patches for text in texts)) > recipe.longest:
                raise BadInput(
                    f"a question has {longest} tokens with its picture, and the recipe allows {recipe.longest}; --set longest={longest}"
                )
            batch = batch_of(texts, patches, recipe.longest, left=True)
            on_device = type(batch)(*(part.to(device) for part in batch))
            with mixed_precision(device, training.precision):
                yield asked, self._said(model, on_device, self._tokens(teacher, asked), tokenizer)

    def _said(self, model: SeeingModel, batch: Any, patch_PND: Tensor, tokenizer: Any) -> list[str]:
        return model.answer(batch, patch_PND, tokenizer, self.options.recipe.answer_tokens)

    def _tokens(self, teacher: Teacher, asked: Sequence[Question]) -> Tensor:
        """Return the tokens (P, N, D) of each question's picture; one that several ask about is encoded once."""
        names = list(dict.fromkeys(question.picture_name for question in asked))
        first = {question.picture_name: question for question in reversed(asked)}
        try:
            pictures = [decode_image(first[name].picture_bytes(), where=name) for name in names]
        except BadImage as error:
            raise BadInput(f"a picture of the task cannot be decoded: {error}") from error
        view = self.options.recipe.instruct.view
        with torch.autocast(teacher.device.type, enabled=False):
            tokens_PND = encode(teacher, np.stack([square(picture, teacher.spec, view) for picture in pictures]))
        return tokens_PND[[names.index(question.picture_name) for question in asked]]
