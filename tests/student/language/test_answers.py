"""Each task's figure is what an independent restatement of its official rules gives, quirks included."""

import itertools
from pathlib import Path

import pytest
from eupe_pipeline.storage.annotations.questions import MME_COGNITION, MME_PERCEPTION, POPE_SUBSETS, Question
from eupe_pipeline.student.language.answers import is_right_in_the_real_world, letter_of, mme_word, vqa_form, vqa_score, yes_or_no
from eupe_pipeline.student.language.scores import score

FORMS = {
    "The Coca-Cola": "coca cola",  # a mark between letters becomes a space
    "coca- cola": "coca cola",  # beside a space it goes
    "a-b c- d": "ab c d",  # beside a space anywhere: it goes everywhere
    "Two dogs": "2 dogs",
    "none": "0",
    "ten": "10",
    "eleven": "eleven",
    "1,000": "1000",
    "3.5": "3.5",
    "St. Paul.": "st paul",
    "$5.00!": "$5.00",  # the mark at the end becomes a space, which goes
    "isnt": "isn't",
    "dont": "don't",
    "couldnt've": "couldn't've",
    "y'alld've": "y'all'd've",
    "somebody'd": "somebodyd",  # the official table has it the wrong way round
    "wed": "wed",  # the table has we'd've, but not we'd
    "twas": "'twas",
    "Mcdonald's": "mcdonald 's",
    "what?": "what",
    "line\nbreak\tand tab": "line break and tab",
    "an apple a day the end": "apple day end",
    "....." * 8: "." * 8,  # 40 full stops, of which 32 go
}


@pytest.mark.parametrize("said", FORMS)
def test_answers_are_brought_to_the_official_form(said: str) -> None:
    assert vqa_form(said) == FORMS[said]


def restated_vqa(said: str, people: list[str]) -> float:
    """All ten sets of nine people, one left out of each."""
    forms = [FORMS.get(one, one) for one in people]
    sets_of_nine = list(itertools.combinations(range(10), 9))
    return sum(min(1.0, [forms[index] for index in nine].count(FORMS.get(said, said)) / 3) for nine in sets_of_nine) / len(sets_of_nine)


@pytest.mark.parametrize("equal", range(11))
def test_the_score_is_the_mean_over_all_nine_of_ten_people(equal: int) -> None:
    people = ["two dogs"] * (equal // 2) + ["2 dogs"] * (equal - equal // 2) + [f"cat{number}" for number in range(10 - equal)]
    restated = ["2 dogs" if one == "two dogs" else one for one in people]
    assert vqa_score("Two dogs", people) == pytest.approx(restated_vqa("2 dogs", restated))
    assert vqa_score("Two dogs", people) == pytest.approx({0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9}.get(equal, 1.0))


def ask(number: int, right: str, group: str = "", picture: str = "") -> Question:
    return Question(f"{group} {number}", Path(picture or f"{number}.jpg"), "?", (right,), group)


def test_textvqa_and_gqa_are_means_over_questions() -> None:
    people = ("stop", "stop", "Stop.", "a stop", "sign", "sign", "go", "go", "go", "go")
    asked = [Question("1", Path("1.jpg"), "?", people), Question("2", Path("1.jpg"), "?", ("x",) * 10)]
    assert score("textvqa", asked, ["sign", "y"])["accuracy"] == pytest.approx(100 * 0.6 / 2)
    gqa = [ask(number, "brown") for number in range(4)]
    assert score("gqa", gqa, ["Brown.", " brown", "brown dog", "brown.."])["accuracy"] == 75.0


POPE_SAYS = {
    "Yes": "yes", "No": "no", "no, there is none": "no", "There is not": "no", "Nothing": "yes", "NO": "yes", "Yes. There is no": "yes",
    "maybe": "yes", "": "yes", "it has no.": "no",
}  # fmt: skip


@pytest.mark.parametrize("said", POPE_SAYS)
def test_pope_reads_yes_unless_no_or_not_stands_before_the_first_full_stop(said: str) -> None:
    assert yes_or_no(said) == POPE_SAYS[said]


def test_popes_figures_are_those_of_the_confusion_matrix_and_their_means() -> None:
    said = {"adversarial": "yynnyn", "popular": "nnnnnn", "random": "yyyyyy"}
    right = "yynnny"
    asked = [ask(number, "yes" if letter == "y" else "no", subset) for subset in POPE_SUBSETS for number, letter in enumerate(right)]
    answers = ["Yes" if letter == "y" else "No" for subset in POPE_SUBSETS for letter in said[subset]]
    figures = score("pope", asked, answers)
    for subset in POPE_SUBSETS:
        cells = [said[subset][n] + right[n] for n in range(6)]
        tp, fp, fn, tn = (cells.count(cell) for cell in ("yy", "yn", "ny", "nn"))
        of = figures["subsets"][subset]
        assert of["accuracy"] == pytest.approx(100 * (tp + tn) / 6)
        assert of["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn) if tp else 0)
        assert of["precision"] == pytest.approx(100 * tp / (tp + fp) if tp + fp else 0)
        assert of["recall"] == pytest.approx(100 * tp / (tp + fn))
        assert of["yes_ratio"] == pytest.approx(100 * (tp + fp) / 6)
    assert figures["f1"] == pytest.approx(sum(of["f1"] for of in figures["subsets"].values()) / 3)


LETTERS = {
    "B": "B", " B ": "B", "B. because": "B", "B because": None, "B.because": None, "The answer is B": "B", "The answer is B. Not C": "B",
    "I think The answer is A, or The answer is B.": "B", "b": None, "E": None, "F": None, "B\nsince": "B", "": None,
}  # fmt: skip


@pytest.mark.parametrize("said", LETTERS)
def test_scienceqas_letter_is_read_as_llavas_script_does(said: str) -> None:
    assert letter_of(said, 3) == LETTERS[said]


def test_scienceqa_counts_what_names_no_choice_as_wrong() -> None:
    assert score("sqa", [ask(number, "B", "3") for number in range(4)], ["B", "A", "dunno", "B. x"])["accuracy"] == 50.0


@pytest.mark.parametrize(
    ("said", "right", "is_right"),
    [("A", "A", True), ("A.", "A", True), ("(a) the car", "A", True), ("A car", "A", False), ("B", "A", False), ("Yes.", "yes", True),
     ("Two", "2", False), ("50 ", "50", True), ("A: x", "a", True), ("no", "No", True)],
)  # fmt: skip
def test_realworldqa_takes_the_letter_or_the_words(said: str, right: str, is_right: bool) -> None:
    assert is_right_in_the_real_world(said, right) is is_right


MME_SAYS = {
    "Yes": "yes",
    "no": "no",
    "No, it is": "no",
    "Not": "no",
    "yes": "yes",
    "Well no": "other",
    "Eyes": "yes",
    "Now yes": "no",
    "": "other",
}


@pytest.mark.parametrize("said", MME_SAYS)
def test_mme_reads_the_first_four_characters(said: str) -> None:
    assert mme_word(said) == MME_SAYS[said]


def test_mmes_score_is_accuracy_plus_pictures_with_both_right_summed_by_kind() -> None:
    asked, answers, expected = list[Question](), list[str](), {}
    for place, category in enumerate((*MME_PERCEPTION, *MME_COGNITION)):
        wrong = {(picture, line) for picture in range(4) for line in range(2) if (picture * 2 + line) % (place + 2) == 0}
        for picture, line in itertools.product(range(4), range(2)):
            right = "yes" if line == 0 else "no"
            asked.append(ask(line, right, category, f"{category}/{picture}.jpg"))
            answers.append({"yes": "no", "no": "yes"}[right] if (picture, line) in wrong else right)
        accuracy = 100 * (8 - len(wrong)) / 8
        expected[category] = accuracy + 100 * (4 - len({picture for picture, _ in wrong})) / 4
    figures = score("mme", asked, answers)
    assert figures["perception"] == pytest.approx(sum(expected[name] for name in MME_PERCEPTION))
    assert figures["cognition"] == pytest.approx(sum(expected[name] for name in MME_COGNITION))
    assert {name: of["score"] for name, of in figures["categories"].items()} == pytest.approx(expected)
