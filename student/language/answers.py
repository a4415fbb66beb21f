"""When an answer is right: the rules of TextVQA, GQA, POPE, ScienceQA, RealWorldQA and MME, with the quirks of their official code.

- TextVQA: the answer and the ten people's are brought to one form as EvalAI's processor does it, then the mean over the ten of
  min(1, equal ones among the other nine / 3). Its quirks are kept: a mark is removed where it stands beside a space anywhere in the
  answer, else it becomes a space; `'s` is parted from its word; at most 32 full stops go, those before a digit stay; `somebody'd` loses
  its apostrophe.
- GQA: equal after lower case, without full stops at the end (LLaVA-1.5's conversion for GQA's own script).
- POPE: `no` when the words No, no or not stand before the first full stop, else `yes`.
- ScienceQA: LLaVA-1.5's script: the letter alone, at the start before `. `, or after `The answer is `; anything else is wrong.
- MME: `yes` or `no` alone, else the one found in the first four characters, `yes` first; anything else is wrong.
- RealWorldQA has no official script; ours: equal after lower case without a full stop at the end, and where a letter is right, the letter
  that the answer begins with, alone or before `.`, `)` or `:`.
"""

import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {
    word: str(number) for number, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
} | {"none": "0"}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_SHORT_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
    how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
    'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
""".split()  # noqa: SIM905 - a list would take a line a word
_CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form for form in _SHORT_FORMS for place, letter in enumerate(form) if letter == "'"
} | {"somebody'd": "somebodyd"}  # fmt: skip
_FULL_STOPS = 32
"""The official code gives the flag re.UNICODE, which is 32, where the number of replacements stands."""
_LETTERS = "ABCDE"


def vqa_form(answer: str) -> str:
    """Return the form in which TextVQA compares answers."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = text.translate({ord(mark): "" if f"{mark} " in text or f" {mark}" in text else " " for mark in _MARKS})
    text = re.sub(r"\.(?!\d)", "", text, count=_FULL_STOPS)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_score(answer: str, people: Sequence[str]) -> float:
    """Return TextVQA's score in [0, 1] of an answer beside people's."""
    form, forms = vqa_form(answer), [vqa_form(one) for one in people]
    equal = forms.count(form)
    if not equal:
        return 0.0
    return sum(min(1.0, (equal - (one == form)) / 3) for one in forms) / len(forms)


def is_equal(answer: str, right: str) -> bool:
    """Return whether GQA's answer is right."""
    return answer.strip().rstrip(".").lower() == right


def yes_or_no(answer: str) -> str:
    """Return `yes` or `no` as POPE's script reads an answer."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_word(answer: str) -> str:
    """Return `yes`, `no` or `other` as MME's script reads an answer."""
    said = answer.lower()
    if said in ("yes", "no"):
        return said
    return next((word for word in ("yes", "no") if word in said[:4]), "other")


def letter_of(answer: str, choices: int) -> str | None:
    """Return the choice of `choices` that ScienceQA's answer names, None for none."""
    said = answer.replace("\n", ". ")
    if said.strip() in tuple(_LETTERS):
        letter = said.strip()
    elif said[:1] in tuple(_LETTERS) and said[1:3] == ". ":
        letter = said[0]
    else:
        found = re.search(r"The answer is ([A-E])\.", said) or re.search(r"The answer is ([A-E])", said)
        letter = found[1] if found else ""
    return letter if letter and letter in _LETTERS[:choices] else None


def is_right_in_the_real_world(answer: str, right: str) -> bool:
    """Return whether RealWorldQA's answer is right."""
    said, wanted = (text.strip().lower().removesuffix(".").strip() for text in (answer, right))
    if re.fullmatch(r"[a-z]", wanted):
        letter = re.match(r"\(?([a-z])(?:[.):]|$)", said)
        return letter is not None and letter[1] == wanted
    return said == wanted
