"""What is taught, where the picture stands, what a language model's folder must hold, and that a recipe says whose each value is."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from eupe_pipeline.pipeline.recipes.vlm import EVALUATIONS_FOLDER, load_vlm_recipe
from eupe_pipeline.storage.annotations.conversations import Conversation, Turn
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.language.folder import llm_digest, load_llm, load_tokenizer
from eupe_pipeline.student.language.model import SeeingModel, batch_of, build_projector
from eupe_pipeline.student.language.prompts import Prompts, Text, positions
from eupe_pipeline.student.language.recipe import EncoderInput, PromptFormat
from eupe_pipeline.student.language.training import entries_of_step, rate_at

from .tiny_llm import save_llm, save_tokenizer

WORDS = PromptFormat("Be kind.", "USER", "ASSISTANT")
CHAT = Conversation("1.jpg", (Turn("<image>\nWhat?", "A dog."), Turn("Why?", "So.")))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llm(tmp_path_factory.mktemp("llm"), ["dog"], width=32, depth=1)


def said(tokenizer: object, text: Text, which: np.ndarray) -> str:
    return str(tokenizer.decode(text.ids[which]))  # type: ignore[attr-defined]


def test_answers_with_their_end_marks_are_taught_and_nothing_else(llm: Path) -> None:
    prompts = Prompts(load_tokenizer(llm), WORDS)
    text = prompts.conversation(CHAT)
    assert said(prompts.tokenizer, text, text.taught) == " A dog.</s> So.</s>"
    assert said(prompts.tokenizer, text, ~text.taught) == "Be kind. USER: \nWhat? ASSISTANT:USER: Why? ASSISTANT:"
    assert text.picture_at is not None
    assert prompts.tokenizer.decode(text.ids[: text.picture_at]) == "Be kind. USER: "
    caption = prompts.caption(CHAT)
    assert (said(prompts.tokenizer, caption, caption.taught), caption.picture_at, bool(caption.taught.all())) == ("So.\n", 0, True)
    question = prompts.question("What <image>?")
    assert prompts.tokenizer.decode(question.ids) == "Be kind. USER: \nWhat ? ASSISTANT:"
    assert not question.taught.any()


def test_a_question_is_the_beginning_of_the_conversation_that_taught_its_answer(llm: Path) -> None:
    prompts = Prompts(load_tokenizer(llm), WORDS)
    taught, asked = prompts.conversation(CHAT), prompts.question("What?")
    assert taught.ids[: len(asked.ids)].tolist() == asked.ids.tolist()
    assert taught.taught.argmax() == len(asked.ids)


def test_a_text_is_cut_after_its_picture_is_in_place() -> None:
    text = Text(np.array([5, 6, 7]), np.array([False, False, True]), 1)
    ids, taught = positions(text, 4, 100)
    assert (ids.tolist(), taught.tolist()) == ([5, -1, -1, -1, -1, 6, 7], [False] * 6 + [True])
    assert positions(text, 4, 3)[0].tolist() == [5, -1, -1]
    batch = batch_of([text, Text(np.array([8, 9]), np.array([False, True]), None)], 4, 100)
    assert batch.targets.tolist() == [[-100] * 5 + [7, -100], [9] + [-100] * 6]
    assert (batch.taught, batch.present.sum(dim=1).tolist()) == (2, [7, 2])
    assert batch_of([text, Text(np.array([8]), np.array([False]), None)], 4, 100, left=True).present[1].tolist() == [0] * 6 + [1]


@torch.no_grad()
def test_the_loss_is_the_sum_over_taught_tokens_of_any_share_of_a_batch(llm: Path) -> None:
    model, tokenizer = load_llm(llm)
    torch.manual_seed(0)
    seeing = SeeingModel(build_projector(6, 32, 2), model)
    prompts = Prompts(tokenizer, WORDS)
    texts = [prompts.conversation(CHAT), prompts.conversation(Conversation(None, (Turn("Hi", "Ho"),))), prompts.caption(CHAT)]
    patch_PND = torch.randn(2, 4, 6)
    whole = seeing(*batch_of(texts, 4, 200), patch_PND)
    parts = [seeing(*batch_of(texts[n : n + 1], 4, 200), patch) for n, patch in enumerate((patch_PND[:1], None, patch_PND[1:]))]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)
    ids, targets = torch.tensor(texts[1].ids), batch_of(texts[1:2], 4, 200).targets[0]
    scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    assert float(parts[1]) == pytest.approx(
        -sum(float(scores[n, target]) for n, target in enumerate(targets.tolist()) if target >= 0), rel=1e-5
    )
    cut = seeing(*batch_of(texts[:1], 4, 18), patch_PND[:1])
    assert math.isfinite(float(cut))


def test_answers_are_greedy_and_the_same_alone_and_beside_others(llm: Path) -> None:
    model, tokenizer = load_llm(llm)
    torch.manual_seed(0)
    seeing, prompts = SeeingModel(build_projector(6, 32, 2), model).eval(), Prompts(tokenizer, WORDS)
    texts, patch_PND = [prompts.question("Why?"), prompts.question("What is the matter here?")], torch.randn(2, 4, 6)
    together = seeing.answer(batch_of(texts, 4, 200, left=True), patch_PND, tokenizer, 6)
    assert together == [seeing.answer(batch_of(texts[n : n + 1], 4, 200, left=True), patch_PND[n : n + 1], tokenizer, 6)[0] for n in (0, 1)]
    embedded, made = seeing.embeddings(batch_of(texts[:1], 4, 200).ids, patch_PND[:1]), list[int]()
    for _ in range(6):
        made.append(int(model(inputs_embeds=embedded).logits[0, -1].argmax()))
        if made[-1] == tokenizer.eos_token_id:
            break
        embedded = torch.cat([embedded, model.get_input_embeddings()(torch.tensor([[made[-1]]]))], dim=1)
    assert together[0] == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_a_folder_that_is_no_language_model_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no config\.json"):
        load_tokenizer(tmp_path)
    folder = save_llm(tmp_path / "llm", width=32, depth=1)
    assert llm_digest(folder) == llm_digest(folder)
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(BadInput, match="has no tokenizer"):
        load_tokenizer(folder)
    save_tokenizer(folder, end=None)
    with pytest.raises(BadInput, match="has no end mark"):
        load_tokenizer(folder)
    with pytest.raises(BadInput, match="ids up to 99 and the model's vocabulary 50 entries"):
        load_llm(save_llm(tmp_path / "small", width=32, depth=1, entries=50))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    with pytest.raises(BadInput, match="wants code of its own to be run"):
        llm_digest(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    save_tokenizer(folder)
    with pytest.raises(BadInput, match=r"do not fit its config\.json"):
        load_llm(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"no weights as safetensors, only pytorch_model.bin, which are not read"):
        load_llm(folder)


def test_the_recipe_says_of_each_value_whose_it_is() -> None:
    resolved = load_vlm_recipe()
    papers = {key for key, origin in resolved.origins.items() if origin == "paper"}
    stages = {f"{stage}.{key}" for stage in ("pretrain", "instruct") for key in ("epochs", "learning_rate", "warmup_share", "weight_decay")}
    assert papers == stages | {"encoder.size_px", "encoder.size_px_of_patch_14"}
    recipe = resolved.recipe
    assert [(s.learning_rate, s.batch_size, s.warmup_share, s.epochs) for s in (recipe.pretrain, recipe.instruct)] == [
        (1e-3, 256, 0.03, 1.0), (2e-5, 128, 0.03, 1.0),
    ]  # fmt: skip
    assert all(origin.startswith(("paper", "LLaVA-1.5", "ours: ")) for origin in resolved.origins.values())
    assert load_vlm_recipe(settings=["pretrain.epochs=2"]).origins["pretrain.epochs"] == "--set"
    with pytest.raises(BadInput, match=r"did you mean 'pretrain.epochs'"):
        load_vlm_recipe(settings=["pretrain.epoch=2"])
    with pytest.raises(BadInput, match=r"did you mean 'llava-1.5'"):
        load_vlm_recipe("llava-15")


def test_a_recipe_that_says_paper_of_what_appendix_c_2_does_not_state_is_refused(tmp_path: Path) -> None:
    shipped = (EVALUATIONS_FOLDER / "llava-1.5.toml").read_text()
    for was, now, says in (
        ("batch_size = 256", "batch_size = 256", r"states no pretrain\.batch_size for vlm"),
        ("learning_rate = 1e-3", "learning_rate = 2e-3", r"pretrain\.learning_rate = 0\.002 .*the paper has 0\.001 \(appendix C\.2\)"),
    ):
        text = shipped.replace(was, now, 1)
        if was == now:
            text = text.replace('pretrain.batch_size = "LLaVA-1.5"', 'pretrain.batch_size = "paper"')
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(BadInput, match=says):
            load_vlm_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(("patch_px", "side"), [(14, 336), (16, 384), (32, 384), (8, 384), (20, 380)])
def test_pictures_have_the_papers_576_tokens_for_its_patches(patch_px: int, side: int) -> None:
    assert EncoderInput(384, 336).for_patch(patch_px) == side
    assert patch_px not in (14, 16) or (side // patch_px) ** 2 == 576


def test_the_rate_is_that_of_a_cosine_with_warm_up_and_epochs_are_permutations() -> None:
    recipe = load_vlm_recipe().recipe.instruct
    steps = recipe.steps(12_800)
    rates = [rate_at(recipe, steps, step) for step in range(steps)]
    assert (steps, rates[0], max(rates), rates.index(max(rates))) == (100, 0.0, 2e-5, 3)
    assert rates[51] == pytest.approx(1e-5 * (1 + math.cos(math.pi * 48 / 97)))
    seen = [entry for step in range(5) for entry in entries_of_step(step, 4, 10, 7, "pretrain")]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
