"""Conversations and questions as token ids: what stands where, where the picture goes, and which tokens are taught.

    SYSTEM USER: <image>⏎question ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>      instruct, LLaVA-1.5's template v1
    <image>caption⏎                                                                            pretrain, its template plain

Taught are the answers with the end mark after them (of captions with their line break) and nothing else. The text is cut at `<image>`,
and each part is tokenised as a whole, as LLaVA does; which tokens are an answer's is told by the characters that they stand for, which only
fast tokenizers know. The begin mark is put in front where the tokenizer does so itself. Axes: T text tokens, N patch tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...storage.annotations.conversations import IMAGE, Conversation
from .recipe import PromptFormat


class Text(NamedTuple):
    """Ids (T,), which of them are taught (T,), and before which of them the picture goes; None without one."""

    ids: NDArray[np.int64]
    taught: NDArray[np.bool_]
    picture_at: int | None


class Prompts:
    """Makes texts of conversations and questions with one tokenizer."""

    def __init__(self, tokenizer: Any, words: PromptFormat) -> None:
        self.tokenizer, self.words = tokenizer, words
        self.end: str = tokenizer.eos_token
        first = tokenizer("a")["input_ids"][:1]
        self._begin = first if first == [tokenizer.bos_token_id] else []

    def caption(self, conversation: Conversation) -> Text:
        """Return a picture and its caption, the last answer; the question is left out."""
        return self._text([(IMAGE, False), (f"{conversation.turns[-1].answer}\n", True)])

    def conversation(self, conversation: Conversation) -> Text:
        """Return a conversation with its answers taught."""
        parts = [(f"{self.words.system} ", False)]
        for turn in conversation.turns:
            parts += [(f"{self.words.user}: {turn.question} {self.words.assistant}:", False), (f" {turn.answer}{self.end}", True)]
        return self._text(parts)

    def question(self, text: str) -> Text:
        """Return a question about a picture, up to where its answer begins."""
        words, text = self.words, text.replace(IMAGE, "")
        return self._text([(f"{words.system} {words.user}: {IMAGE}\n{text} {words.assistant}:", False)])

    def _text(self, parts: Sequence[tuple[str, bool]]) -> Text:
        whole = "".join(part for part, _ in parts)
        is_taught, place = np.zeros(len(whole), np.bool_), 0
        for part, taught in parts:
            is_taught[place : place + len(part)] = taught
            place += len(part)
        ids, marks, start = list[int](self._begin), [False] * len(self._begin), 0
        picture_at: int | None = None
        for piece in whole.split(IMAGE):
            if start:
                picture_at = len(ids)
            found = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            ids += found["input_ids"]
            marks += [first < last and bool(is_taught[start + first : start + last].all()) for first, last in found["offset_mapping"]]
            start += len(piece) + len(IMAGE)
        return Text(np.array(ids, np.int64), np.array(marks, np.bool_), picture_at)


def positions(text: Text, patches: int, longest: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return ids with −1 for each patch token, cut at `longest`, and which are taught."""
    if text.picture_at is None:
        return text.ids[:longest], text.taught[:longest]
    at = text.picture_at
    ids = np.concatenate([text.ids[:at], np.full(patches, -1, np.int64), text.ids[at:]])
    taught = np.concatenate([text.taught[:at], np.zeros(patches, np.bool_), text.taught[at:]])
    return ids[:longest], taught[:longest]
