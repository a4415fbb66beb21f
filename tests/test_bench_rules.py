"""The benchmark of recipes by rule: what is finished is not done again, another rule is, and the page keeps what people wrote."""

from pathlib import Path

from benchmarks.bench_rules import COMMON, UNTRAINED, Results, Row, table, write_page

RULED = COMMON | {"optimizer.learning_rate": 3e-3}
TUNED = {"rate 0.0007": COMMON | {"optimizer.learning_rate": 7e-4}, "rate 0.0015": COMMON | {"optimizer.learning_rate": 1.5e-3}}


def results(folder: Path) -> Results:
    kept = Results(folder / "trainings.jsonl", 1000)
    scores = {"ruled": (RULED, 39.0, 39.4), UNTRAINED: (RULED, 20.0, 22.0), "rate 0.0007": (TUNED["rate 0.0007"], 30.0, 32.0),
              "rate 0.0015": (TUNED["rate 0.0015"], 41.0, 39.0)}  # fmt: skip
    for recipe, (values, *percents) in scores.items():
        for seed, percent in enumerate(percents):
            kept.add(Row("digits", recipe, seed, 1000, values, percent, 1.0))
    return kept


def test_a_finished_training_is_kept_for_its_own_values_and_length_alone(tmp_path: Path) -> None:
    results(tmp_path)
    again = Results(tmp_path / "trainings.jsonl", 1000)
    assert again.has("digits", "ruled", 1, RULED)
    assert not again.has("digits", "ruled", 2, RULED)
    assert not again.has("stamps", "ruled", 1, RULED)
    assert not again.has("digits", "ruled", 1, RULED | {"optimizer.learning_rate": 2e-3})
    assert not Results(tmp_path / "trainings.jsonl", 500).rows


def test_the_table_has_means_the_best_of_the_tuned_and_the_share_of_it(tmp_path: Path) -> None:
    lines = table(results(tmp_path), {"digits": RULED}, {"digits": TUNED}).splitlines()
    assert lines[2:] == [
        "| rate 0.0007 | 31.00 |", "| rate 0.0015 | **40.00** |", "| **by rule** | 39.20 |", "| by rule, of the best of eight | 98.0 % |",
        "| the rule's learning rate | 0.003 |", "| untrained | 21.00 |",
    ]  # fmt: skip


def test_a_new_table_leaves_what_people_wrote_below_it(tmp_path: Path) -> None:
    page = tmp_path / "rules.md"
    write_page(page, "| old |")
    page.write_text(page.read_text().replace("Nothing yet.", "It holds."))
    write_page(page, "| new |")
    assert "| new |" in page.read_text()
    assert "| old |" not in page.read_text()
    assert page.read_text().endswith("## What it says\n\nIt holds.\n")
