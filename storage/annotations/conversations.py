"""Pictures with conversations about them, in the layout of LLaVA's training files; what they say is checked before anything is computed.

    [{"id": "…", "image": "00453/004539375.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                                   {"from": "gpt", "value": "A harbour."}]}, …]

`blip_laion_cc_sbu_558k.json` and `llava_v1_5_mix665k.json` are such files. An entry without `image` is a conversation without a picture.
One with a picture says `<image>` once, in a question. As LLaVA does, the mark goes to the front of its question, on a line of its own, and
what stands before the first question is left out. The whole file is held in memory.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import BadInput

IMAGE = "<image>"
_SPEAKERS = ("human", "gpt")
_SHOWN = 3


class Turn(NamedTuple):
    """A question and its answer; the question begins with `<image>` and a line break where the picture is shown."""

    question: str
    answer: str


class Conversation(NamedTuple):
    """Questions and answers about a picture, its path below the folder of pictures, or about none."""

    picture: str | None
    turns: tuple[Turn, ...]


class Conversations(NamedTuple):
    """The conversations of a file, and the sha256 of its bytes."""

    file: Path
    sha256: str
    entries: tuple[Conversation, ...]

    @property
    def pictures(self) -> list[str]:
        """The different pictures, in the order of their first conversation."""
        return list(dict.fromkeys(entry.picture for entry in self.entries if entry.picture is not None))


def read_conversations(file: Path, folder: Path) -> Conversations:
    """Return the conversations of a file about the pictures of a folder.

    Raise `BadInput` for another layout, with the entry named, and for pictures that are not there, with their number and the first ones.
    """
    data, content = _json(file)
    if not isinstance(content, list) or not content:
        raise BadInput(f"{file} must hold a list of conversations in LLaVA's layout, got {_shown(content)}")
    read = Conversations(file, hashlib.sha256(data).hexdigest(), tuple(_entry(file, n, entry) for n, entry in enumerate(content)))
    refuse_missing([folder / picture for picture in read.pictures], str(file))
    return read


def refuse_missing(pictures: Sequence[Path], where: str) -> None:
    """Raise `BadInput` with the number of pictures that are no files and the first of them; each folder is listed once."""
    names = {folder: _files_of(folder) for folder in {picture.parent for picture in pictures}}
    if missing := [picture for picture in pictures if picture.name not in names[picture.parent]]:
        first = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
        raise BadInput(
            f"{len(missing):,} of {len(pictures):,} pictures of {where} are missing: {first}. Put them there, or leave them out of the file"
        )


def _files_of(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error})") from error


def read_json(file: Path) -> Any:
    """Return the content of a JSON file; raise `BadInput` for none."""
    return _json(file)[1]


def _json(file: Path) -> tuple[bytes, Any]:
    try:
        data = file.read_bytes()
        return data, json.loads(data)
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error})") from error
    except ValueError as error:
        raise BadInput(f"{file} is no JSON: {error}") from error


def _entry(file: Path, number: int, entry: Any) -> Conversation:
    where = f"{file}: entry {number}"
    said = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(said, list) or not all(isinstance(one, dict) and isinstance(one.get("value"), str) for one in said):
        raise BadInput(f"{where} has no `conversations` of `from` and `value`: {_shown(entry)}")
    picture = entry.get("image")
    if picture is not None and (not isinstance(picture, str) or not picture):
        raise BadInput(f"{where}: `image` must be the path of one picture, got {_shown(picture)}")
    turns = _turns(where, said)
    marks = [turn.question.count(IMAGE) for turn in turns]
    if any(IMAGE in turn.answer for turn in turns) or sum(marks) != (picture is not None):
        raise BadInput(
            f"{where} says {IMAGE} {sum(turn.question.count(IMAGE) + turn.answer.count(IMAGE) for turn in turns)} times "
            f"and has {'a picture' if picture is not None else 'no picture'}; a picture is shown once, in a question"
        )
    return Conversation(picture, tuple(Turn(_picture_first(turn.question), turn.answer) for turn in turns))


def _turns(where: str, said: Iterable[dict[str, Any]]) -> list[Turn]:
    speakers = [(one.get("from"), one["value"]) for one in said]
    if speakers and speakers[0][0] != _SPEAKERS[0]:
        speakers = speakers[1:]
    if not speakers or len(speakers) % 2 or any(speaker != _SPEAKERS[n % 2] for n, (speaker, _) in enumerate(speakers)):
        raise BadInput(f"{where}: `human` and `gpt` must take turns, got {[speaker for speaker, _ in speakers][:6]}")
    texts = [text for _, text in speakers]
    return [Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)]


def _picture_first(question: str) -> str:
    return f"{IMAGE}\n{question.replace(IMAGE, '').strip()}".strip() if IMAGE in question else question


def _shown(value: Any) -> str:
    return str(value)[:120]
