"""Which of timm's backbones are accepted as students, and why the others are not (docs/results/students.md, bench-students.json).

Every name of timm is asked for `features_only`; of those that have it, the share that `timm:NAME` accepts is the figure. A name costs two
builds and a few passes on the meta device, half a second of a free core. Each answer is a line of docs/results/students.jsonl as soon as
it is there: first a model of every family (a file of timm is one), then a second of every family that has one, and so on, those that are
called small before those that are called large. An unfinished run so knows all families; run again, it asks what is missing. A line names
its timm: those of another version are asked anew. Remove the file where what is accepted has changed in this package.

    python -m benchmarks.bench_students [--jobs 2] [--only-report]
"""

import argparse
import fcntl
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from concurrent.futures import as_completed
from contextlib import suppress
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .figures import report
from .workers import workers

FIGURE = "students.accepted/features_only"
TARGETS = {FIGURE: (">=", 0.9)}
RESULTS = Path("docs/results")
ANSWERS = RESULTS / "students.jsonl"
SMALL = re.compile(r"test|atto|femto|pico|nano|micro|tiny|mini|small|_x?xs|_ti_|_s_|_s$|_[smab]0|_050|18|26t|_5m|b0")
LARGE = re.compile(r"large|huge|giant|gigantic|enormous|_so\d|_xl|_[lgh]_|_[lgh]$|_\db|_[567]b|269|200|152|_\d{3}m|x3|x4")
REASONS = {  # the first whose pattern is found in a refusal
    "its stride is not whole, or varies with the size": "its stride is not whole|by the stride that it states",
    "it has no feature map, or no head that pools it": "gives no feature map|gives no class token|does not say how many pixels",
    "not square RGB pictures": "takes square RGB",
    "patches that are not square": "a student's are square",
    "timm cannot build it": "timm cannot build",
}


def ask(name: str, answers: Path) -> None:
    """Append what timm and the package say of one model to the file of answers."""
    from eupe_pipeline.storage.core.errors import BadInput
    from eupe_pipeline.teachers.encoders.build import canonical

    answer: dict[str, Any] = {"timm": version("timm"), "model": name, "features_only": has_features_only(name)}
    try:
        record = canonical(f"timm:{name}")
        answer |= {"patch": record.get("map", record["family"]), "cls": record["cls"]}
    except BadInput as error:
        answer["refused"] = str(error)
    except Exception as error:  # noqa: BLE001 - whatever else a user would see as a crash
        answer["crashed"] = repr(error)[:500]
    with answers.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(answer) + "\n")


def has_features_only(name: str) -> bool:
    """Return whether timm builds a model with `features_only=True`."""
    import torch
    from eupe_pipeline.teachers.runtime.empty_build import SkipInitialisation
    from eupe_pipeline.teachers.runtime.timm_import import import_timm

    import_timm()
    import timm

    try:
        with torch.device("meta"), SkipInitialisation():
            timm.create_model(name, pretrained=False, features_only=True)
    except Exception:  # noqa: BLE001 - timm raises what each family happens to
        return False
    return True


def all_names() -> list[str]:
    """Return timm's architectures: the n-th of every family before the next of any, in a family the small first, else at random."""
    from eupe_pipeline.teachers.runtime.timm_import import import_timm

    import_timm()
    import timm

    families: dict[str, list[str]] = defaultdict(list)
    for name in sorted(timm.list_models(), key=lambda name: (size_by_name(name), hashlib.sha256(name.encode()).digest())):
        families[family_of(name)].append(name)
    turns = zip_longest(*(families[family] for family in sorted(families)))
    return [name for turn in turns for name in turn if name is not None]


def family_of(name: str) -> str:
    """Return the file of timm that a model is in."""
    import timm

    return str(timm.model_entrypoint(name).__module__).rpartition(".")[2]


def size_by_name(name: str) -> int:
    """Return 0 of a model whose name says that it is small, 2 of one that is large, 1 of the others."""
    return 0 if SMALL.search(name) else 2 if LARGE.search(name) else 1


def read_answers(answers: Path) -> dict[str, dict[str, Any]]:
    """Return the answers about the installed timm by model; a line that a kill has cut is asked again."""
    found = list[dict[str, Any]]()
    for line in answers.read_text().splitlines() if answers.is_file() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return {one["model"]: one for one in found if one["timm"] == version("timm")}


def keep_answers(answers: Path, found: dict[str, dict[str, Any]]) -> None:
    """Write the file anew with these answers alone, by name."""
    written = answers.with_suffix(".new")
    written.write_text("".join(f"{json.dumps(found[name])}\n" for name in sorted(found)))
    written.replace(answers)


def asked_of_families(found: Collection[str]) -> tuple[int, int]:
    """Return how many families there are, and how many models of each were asked, or all that it has."""
    every, seen = Counter(map(family_of, all_names())), Counter(map(family_of, found))
    return len(every), min((seen[family] for family, count in every.items() if seen[family] < count), default=max(every.values()))


def reason_of(answer: dict[str, Any]) -> str:
    """Return the kind of a refusal."""
    if "crashed" in answer:
        return "an error that should have been a refusal"
    return next((kind for kind, pattern in REASONS.items() if re.search(pattern, answer["refused"])), "other")


def summarise(found: dict[str, dict[str, Any]], asked: int) -> None:
    """Print the figure, and write the table and the JSON."""
    having = {name: one for name, one in found.items() if one["features_only"]}
    accepted = {name: one for name, one in having.items() if "patch" in one}
    refused = {name: one for name, one in found.items() if "patch" not in one}
    reasons = Counter(map(reason_of, refused.values()))
    kinds = Counter(str(one["patch"]) for one in accepted.values())
    classes = Counter(one["cls"] for one in accepted.values())
    beside = sum("patch" in one for name, one in found.items() if name not in having)
    share = len(accepted) / max(1, len(having))
    families, first = asked_of_families(found)
    details = {
        "timm": version("timm"), "families": families, "asked of every family": first, "names": asked,
        "asked": len(found), "features_only": len(having), "accepted": len(accepted),
        "accepted without features_only": beside, "kinds": dict(kinds), "class tokens": dict(classes), "reasons": dict(reasons),
    }  # fmt: skip
    report({FIGURE: share}, TARGETS, details, RESULTS / "bench-students.json")
    rows = [
        f"| {kind} | {count} | {', '.join(sorted(name for name, one in refused.items() if reason_of(one) == kind))} |"
        for kind, count in reasons.most_common()
    ]
    table = "\n".join(["| reason | models | which |", "|---|---|---|", *rows])
    all_of_them = f"all {asked}, of {families} families (a file of timm is one)"
    so_far = f"{len(found)} of {asked} so far,\n{first} of each of {families} families (a file of timm is one) that has so many"
    text = [
        "# Backbones of timm as students",
        f"`make bench-students` asks timm {version('timm')} about its architectures: "
        f"{so_far if len(found) < asked else all_of_them}.\n"
        f"{len(having)} of them have `features_only`; {len(accepted)} of those ({100 * share:.1f} %) are accepted as "
        f"`--student timm:NAME`{f', and so are {beside} of the others' if beside else ''}.\nThe rest is refused before a run's folder "
        "is made. Each model's answer, with the words of a refusal, is a line of\n[students.jsonl](students.jsonl):",
        table,
        f"Where the patch tokens come from: {_words(kinds)}.\n(NCHW and NHWC: the features are a map; tokens: a sequence that timm's "
        "`forward_intermediates` lays out; vit and convnext: by their own norms.)",
        f"What serves as class token: {_words(classes)}.",
        "An accepted model takes the sizes that a forward on the meta device takes: each size of a run is tried before its folder is made.",
    ]
    (RESULTS / "students.md").write_text("\n\n".join(text) + "\n")


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def main() -> None:
    """Ask what has not been asked, side by side, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only-report", action="store_true", help="write the tables of what has been asked so far")
    options = parser.parse_args()
    names, known = all_names(), read_answers(ANSWERS)
    keep_answers(ANSWERS, known)
    missing = [] if options.only_report else [name for name in names if name not in known]
    with workers(options.jobs) as pool:
        for done, task in enumerate(as_completed(pool.submit(ask, name, ANSWERS) for name in missing), start=1):
            task.result()
            if done % 50 == 0:
                print(f"{done} of {len(missing)}", flush=True)
    keep_answers(ANSWERS, found := read_answers(ANSWERS))
    summarise(found, len(names))


if __name__ == "__main__":
    main()
