"""The official files of six tasks and LLaVA's conversations are read as they are; what is missing or of another form is named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.annotations.conversations import Turn, read_conversations
from eupe_pipeline.storage.annotations.questions import MME_COGNITION, MME_PERCEPTION, ONE_LETTER, ONE_WORD, read_questions
from eupe_pipeline.storage.core.errors import BadInput


def put(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_textvqa_has_ten_answers_to_a_question(tmp_path: Path) -> None:
    entry = {"question_id": 34602, "question": "what brand is this camera? ", "image_id": "003a8ae2", "answers": ["dakota"] * 10}
    file = put(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [entry]})
    put(tmp_path / "train_images" / "003a8ae2.jpg", "x")
    (question,) = read_questions("textvqa", tmp_path)
    assert question.text == f"what brand is this camera?\n{ONE_WORD}"
    assert (question.id, question.picture, question.answers) == ("34602", tmp_path / "train_images" / "003a8ae2.jpg", ("dakota",) * 10)
    put(file, {"data": [{**entry, "answers": ["dakota"] * 9}]})
    with pytest.raises(BadInput, match="question 0 needs 10 answers"):
        read_questions("textvqa", tmp_path)


def test_gqa_maps_ids_to_questions_and_missing_pictures_are_counted(tmp_path: Path) -> None:
    entries = {str(n): {"question": "Is it red?", "imageId": f"n{n}", "answer": "yes", "fullAnswer": "Yes."} for n in range(5)}
    put(tmp_path / "testdev_balanced_questions.json", entries)
    put(tmp_path / "images" / "n3.jpg", "x")
    with pytest.raises(BadInput, match=r"4 of 5 pictures of gqa .* are missing: .*n0.jpg, .*n1.jpg, .*n2.jpg, …"):
        read_questions("gqa", tmp_path)
    for n in range(5):
        put(tmp_path / "images" / f"n{n}.jpg", "x")
    assert [question.answers for question in read_questions("gqa", tmp_path)] == [("yes",)] * 5


def test_pope_has_a_line_a_question_in_three_files(tmp_path: Path) -> None:
    line = {"question_id": 1, "image": "COCO_val2014_1.jpg", "text": "Is there a snowboard in the image?", "label": "yes"}
    for subset in ("adversarial", "popular", "random"):
        put(
            tmp_path / "coco" / f"coco_pope_{subset}.json", f"{json.dumps(line)}\n{json.dumps({**line, 'question_id': 2, 'label': 'no'})}\n"
        )
    put(tmp_path / "val2014" / "COCO_val2014_1.jpg", "x")
    read = read_questions("pope", tmp_path)
    assert [(question.group, question.answers[0]) for question in read][:3] == [
        ("adversarial", "yes"),
        ("adversarial", "no"),
        ("popular", "yes"),
    ]
    put(tmp_path / "coco" / "coco_pope_random.json", json.dumps({**line, "label": "maybe"}))
    with pytest.raises(BadInput, match="label of question 0 is 'maybe', expected yes or no"):
        read_questions("pope", tmp_path)


def test_scienceqa_asks_the_test_problems_with_a_picture_by_letters(tmp_path: Path) -> None:
    problem = {
        "question": "Which is it?",
        "choices": ["salt", "sugar"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "split": "test",
    }
    put(tmp_path / "problems.json", {"4": problem, "5": {**problem, "image": None}, "6": {**problem, "hint": ""}, "7": problem})
    put(tmp_path / "pid_splits.json", {"train": ["7"], "test": ["4", "5", "6"]})
    for name in ("4", "6"):
        put(tmp_path / "images" / "test" / name / "image.png", "x")
    with_hint, without = read_questions("sqa", tmp_path)
    assert with_hint.text == f"Context: Look.\nWhich is it?\nA. salt\nB. sugar\n{ONE_LETTER}"
    assert without.text == f"Which is it?\nA. salt\nB. sugar\n{ONE_LETTER}"
    assert (with_hint.answers, with_hint.group) == (("B",), "2")


def test_realworldqa_is_read_from_the_hubs_parquet_files_and_from_json(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": bytes([n]), "path": None} for n in range(5)], "question": ["Where?"] * 5, "answer": list("ABCDE")}
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(pa.table(rows), tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", row_group_size=2)
    read = read_questions("realworldqa", tmp_path / "hub")
    assert [question.picture_bytes() for question in read] == [bytes([n]) for n in range(5)]
    assert [question.answers[0] for question in read] == list("ABCDE")
    put(tmp_path / "zip" / "annotations.json", [{"image": "0.webp", "question": "How many?", "answer": "2"}])
    (tmp_path / "zip" / "0.webp").write_bytes(b"x")
    (question,) = read_questions("realworldqa", tmp_path / "zip")
    assert (question.text, question.answers, question.picture_bytes()) == ("How many?", ("2",), b"x")


def test_mmes_two_layouts_are_read_and_its_request_to_say_yes_or_no_is_llavas(tmp_path: Path) -> None:
    for category in (*MME_PERCEPTION, *MME_COGNITION):
        inner = category in ("artwork", "celebrity", "landmark", "posters", "scene")
        texts, pictures = ("questions_answers_YN/", "images/") if inner else ("", "")
        lines = "Is it a dog? Please answer yes or no.\tYes\nIs it a cat? Please answer yes or no.\tNo\n"
        put(tmp_path / category / f"{texts}0001.txt", lines)
        put(tmp_path / category / f"{pictures}0001.png", "x")
    read = read_questions("mme", tmp_path)
    assert len(read) == 28
    assert {question.text for question in read} == {f"Is it a {pet}?\n{ONE_WORD}" for pet in ("dog", "cat")}
    assert [question.answers[0] for question in read[:2]] == ["yes", "no"]
    put(tmp_path / "OCR" / "0001.txt", "Is it a dog?\tYes\n")
    with pytest.raises(BadInput, match=r"OCR/0001.txt must hold two lines"):
        read_questions("mme", tmp_path)
    (tmp_path / "OCR" / "0001.txt").unlink()
    (tmp_path / "OCR" / "0001.png").unlink()
    (tmp_path / "OCR").rmdir()
    with pytest.raises(BadInput, match="lacks 1 of MME's 14 categories: OCR"):
        read_questions("mme", tmp_path)


SAID = [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A harbour."}]


def test_conversations_put_the_picture_first_as_llava_does(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a" / "1.jpg", "x")
    more = [{"from": "gpt", "value": "before"}, *SAID, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    entries = [
        {"id": "1", "image": "a/1.jpg", "conversations": more},
        {"id": "2", "conversations": [{**SAID[0], "value": "Hello"}, SAID[1]]},
    ]
    read = read_conversations(put(tmp_path / "mix.json", entries), tmp_path / "images")
    assert read.entries[0].turns == (Turn("<image>\nWhat is it?", "A harbour."), Turn("Why?", "So."))
    assert (read.entries[1].picture, read.entries[1].turns) == (None, (Turn("Hello", "A harbour."),))
    assert read.pictures == ["a/1.jpg"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[", "is no JSON"),
        ({"a": 1}, "must hold a list of conversations in LLaVA's layout"),
        ([], "must hold a list"),
        ([{"id": "1", "image": "1.jpg"}], "entry 0 has no `conversations`"),
        ([{"image": ["1.jpg", "2.jpg"], "conversations": SAID}], "`image` must be the path of one picture"),
        ([{"conversations": SAID}], "says <image> 1 times and has no picture"),
        ([{"image": "1.jpg", "conversations": [{**SAID[0], "value": "?"}, SAID[1]]}], "says <image> 0 times and has a picture"),
        ([{"image": "1.jpg", "conversations": [SAID[0], {**SAID[1], "value": "<image>"}]}], "says <image> 2 times"),
        ([{"image": "1.jpg", "conversations": SAID[:1]}], "must take turns"),
        (
            [{"image": f"{n}.jpg", "conversations": SAID} for n in range(9)],
            r"9 of 9 pictures of .* are missing: .*0.jpg, .*1.jpg, .*2.jpg, …",
        ),
    ],
)
def test_conversations_of_another_form_are_refused_with_the_entry(tmp_path: Path, content: Any, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        read_conversations(put(tmp_path / "data.json", content), tmp_path / "images")
