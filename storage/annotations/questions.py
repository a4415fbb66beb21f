"""Questions about pictures, in the official files of six tasks; what is asked is worded as LLaVA-1.5 asks it.

    textvqa      TextVQA_0.5.1_val.json, train_images/ID.jpg
    gqa          testdev_balanced_questions.json, images/ID.jpg
    pope         coco_pope_{adversarial,popular,random}.json (a line a question), val2014/
    sqa          problems.json, pid_splits.json, images/test/ID/image.png: the questions of `test` that have a picture
    realworldqa  *.parquet of the Hub (image, question, answer), or annotations.json beside its pictures
    mme          CATEGORY/NAME.txt beside NAME.jpg, or CATEGORY/questions_answers_YN/ and CATEGORY/images/: `question TAB Yes|No`, twice

Files may lie in the folder or in the folders that their archives unpack to (the lists below). Missing files and pictures, answers of
another form and a question that stands twice are refused before anything is computed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core.choices import VLM_TASKS, VlmTask
from ..core.errors import BadInput, unknown_name
from .conversations import read_json, refuse_missing
from .parquet_pictures import ParquetPicture, parquet_rows

ONE_WORD = "Answer the question using a single word or phrase."
ONE_LETTER = "Answer with the option's letter from the given choices directly."
TEXTVQA_ANSWERS = 10
POPE_SUBSETS = ("adversarial", "popular", "random")
MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_MME_ASKS = "Please answer yes or no."
_LETTERS = "ABCDE"
_PICTURES = (".jpg", ".png", ".jpeg", ".webp")


class Question(NamedTuple):
    """A question about a picture."""

    id: str
    picture: Path | ParquetPicture
    text: str
    """What is asked."""
    answers: tuple[str, ...]
    """What is right; TextVQA's ten people's answers."""
    group: str = ""
    """POPE's subset or MME's category."""

    @property
    def picture_name(self) -> str:
        """What tells pictures apart."""
        return str(self.picture)

    def picture_bytes(self) -> bytes:
        """Return the encoded picture; raise `BadInput` where it cannot be read."""
        if isinstance(self.picture, ParquetPicture):
            return self.picture.read()
        try:
            return self.picture.read_bytes()
        except OSError as error:
            raise BadInput(f"{self.picture} cannot be read ({error})") from error


def read_questions(task: VlmTask, root: Path) -> list[Question]:
    """Return a task's questions in the order of its files; raise `BadInput` for what is missing or of another form."""
    if task not in _READERS:
        raise unknown_name("task", task, VLM_TASKS)
    if not root.is_dir():
        raise BadInput(f"{root} is no folder; it must hold the files of {task}, docs/evaluations.md lists them")
    questions = _READERS[task](root)
    if not questions:
        raise BadInput(f"{root} has no question of {task}")
    if twice := [name for name, count in Counter(question.id for question in questions).items() if count > 1]:
        raise BadInput(f"{root}: question {twice[0]} of {task} stands {len(twice)} times more than once; each is asked once")
    refuse_missing([one.picture for one in questions if isinstance(one.picture, Path)], f"{task} in {root}")
    return questions


def questions_digest(questions: Sequence[Question], pictures: Sequence[str]) -> str:
    """Return the sha256 over questions, what is right, and the sha256 of each one's picture."""
    hasher = hashlib.sha256()
    for question, picture in zip(questions, pictures, strict=True):
        hasher.update(json.dumps([question.id, question.text, question.answers, question.group, picture]).encode())
    return hasher.hexdigest()


def _textvqa(root: Path) -> list[Question]:
    file = _file(root, ("TextVQA_0.5.1_val.json",))
    pictures = _folder(root, ("train_images", "train_val_images/train_images", "images"))
    questions = []
    for number, entry in enumerate(_list_in(file, "data")):
        picture, text, answers = (_field(file, number, entry, key) for key in ("image_id", "question", "answers"))
        if not isinstance(answers, list) or len(answers) != TEXTVQA_ANSWERS or not all(isinstance(one, str) for one in answers):
            raise BadInput(f"{file}: question {number} needs {TEXTVQA_ANSWERS} answers, got {str(answers)[:80]}")
        name = str(_field(file, number, entry, "question_id"))
        questions.append(Question(name, pictures / f"{picture}.jpg", _asked(text, ONE_WORD), tuple(answers)))
    return questions


def _gqa(root: Path) -> list[Question]:
    file = _file(root, ("testdev_balanced_questions.json", "questions1.2/testdev_balanced_questions.json"))
    pictures, entries = _folder(root, ("images", "allImages/images")), read_json(file)
    if not isinstance(entries, dict):
        raise BadInput(f"{file} must map ids to questions, got {str(entries)[:80]}")
    return [
        Question(
            name, pictures / f"{_field(file, name, entry, 'imageId')}.jpg", _asked(_field(file, name, entry, "question"), ONE_WORD),
            (str(_field(file, name, entry, "answer")),),
        )
        for name, entry in entries.items()
    ]  # fmt: skip


def _pope(root: Path) -> list[Question]:
    pictures = _folder(root, ("val2014", "images/val2014", "coco/val2014", "images"))
    questions = []
    for subset in POPE_SUBSETS:
        name = f"coco_pope_{subset}.json"
        file = _file(root, (name, f"coco/{name}", f"output/coco/{name}"))
        for number, line in enumerate(line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{file}: line {number + 1} is no JSON ({error}); POPE's files hold a question a line") from error
            picture, text, label = (_field(file, number, entry, key) for key in ("image", "text", "label"))
            if label not in ("yes", "no"):
                raise BadInput(f"{file}: the label of question {number} is {label!r}, expected yes or no")
            identity = f"{subset} {_field(file, number, entry, 'question_id')}"
            questions.append(Question(identity, pictures / str(picture), _asked(text, ONE_WORD), (label,), subset))
    return questions


def _sqa(root: Path) -> list[Question]:
    problems_file, splits_file = _file(root, ("problems.json",)), _file(root, ("pid_splits.json",))
    pictures, problems, splits = _folder(root, ("images/test", "test", "images")), read_json(problems_file), read_json(splits_file)
    names = splits.get("test") if isinstance(splits, dict) else None
    if not isinstance(names, list) or not isinstance(problems, dict):
        raise BadInput(f"{splits_file} must list the ids of `test`, and {problems_file} map ids to problems")
    if unknown := [name for name in names if name not in problems]:
        raise BadInput(f"{splits_file}: {len(unknown)} ids of `test` are not in {problems_file}, such as {unknown[0]}")
    questions = []
    for name in names:
        problem = problems[name]
        if not problem.get("image"):
            continue
        text, choices, answer = (_field(problems_file, name, problem, key) for key in ("question", "choices", "answer"))
        if not isinstance(choices, list) or not 0 < len(choices) <= len(_LETTERS) or answer not in range(len(choices)):
            raise BadInput(f"{problems_file}: problem {name} has the answer {answer!r} to the choices {str(choices)[:80]}")
        context = f"Context: {problem['hint']}\n" if problem.get("hint") else ""
        options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(_LETTERS, choices, strict=False))
        asked = f"{context}{text}\n{options}{ONE_LETTER}"
        questions.append(Question(str(name), pictures / str(name) / str(problem["image"]), asked, (_LETTERS[answer],), str(len(choices))))
    return questions


def _realworldqa(root: Path) -> list[Question]:
    files = sorted(file for folder in (root, root / "data") if folder.is_dir() for file in folder.glob("*.parquet"))
    if files:
        return [
            Question(f"{row.picture.file.name} {row.picture.row}", row.picture, row.question.strip(), (row.answer,))
            for file in files
            for row in parquet_rows(file)
        ]
    file = _file(root, ("annotations.json",))
    entries = read_json(file)
    if not isinstance(entries, list):
        raise BadInput(f"{file} must hold a list of image, question and answer, got {str(entries)[:80]}")
    questions, folder = [], _folder(root, ("images", "."))
    for number, entry in enumerate(entries):
        picture, text, answer = (_field(file, number, entry, key) for key in ("image", "question", "answer"))
        questions.append(Question(str(number), folder / str(picture), str(text).strip(), (str(answer),)))
    return questions


def _mme(root: Path) -> list[Question]:
    root = next((folder for folder in (root, root / "MME_Benchmark_release_version") if (folder / "existence").is_dir()), root)
    wanted = (*MME_PERCEPTION, *MME_COGNITION)
    if missing := [category for category in wanted if not (root / category).is_dir()]:
        raise BadInput(
            f"{root} lacks {len(missing)} of MME's {len(wanted)} categories: {', '.join(missing)}; its sums are over all of them"
        )
    return [question for category in wanted for question in _mme_category(root / category)]


def _mme_category(folder: Path) -> list[Question]:
    texts, pictures = folder / "questions_answers_YN", folder / "images"
    texts, pictures = (texts, pictures) if texts.is_dir() else (folder, folder)
    questions = []
    for file in sorted(texts.glob("*.txt")):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        picture = next(
            (path for ending in _PICTURES if (path := pictures / f"{file.stem}{ending}").is_file()), pictures / f"{file.stem}.jpg"
        )
        pairs = [line.strip().split("\t") for line in lines]
        if len(pairs) != 2 or any(len(pair) != 2 or pair[1].lower() not in ("yes", "no") for pair in pairs):
            raise BadInput(f"{file} must hold two lines, each a question, a tab and Yes or No, got {str(lines)[:120]}")
        for number, (text, answer) in enumerate(pairs):
            asked = _asked(text.replace(_MME_ASKS, "").strip(), ONE_WORD)
            questions.append(Question(f"{folder.name}/{file.stem} {number}", picture, asked, (answer.lower(),), folder.name))
    if not questions:
        raise BadInput(f"{texts} has no file of questions (.txt)")
    return questions


_READERS: dict[VlmTask, Callable[[Path], list[Question]]] = {
    "textvqa": _textvqa, "gqa": _gqa, "pope": _pope, "sqa": _sqa, "realworldqa": _realworldqa, "mme": _mme,
}  # fmt: skip


def _asked(text: Any, instruction: str) -> str:
    return f"{str(text).strip()}\n{instruction}"


def _file(root: Path, names: Sequence[str]) -> Path:
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is None:
        raise BadInput(f"{root} has no {' or '.join(names)}; docs/evaluations.md shows the layout")
    return found


def _folder(root: Path, names: Sequence[str]) -> Path:
    found = next((root / name for name in names if (root / name).is_dir()), None)
    if found is None:
        raise BadInput(f"{root} has no folder {' or '.join(names)} with the pictures; docs/evaluations.md shows the layout")
    return found


def _list_in(file: Path, key: str) -> list[Any]:
    content = read_json(file)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise BadInput(f"{file} must hold a list under `{key}`, got {str(content)[:80]}")
    return entries


def _field(file: Path, number: int | str, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise BadInput(f"{file}: question {number} has no `{key}`: {str(entry)[:120]}")
    return entry[key]
