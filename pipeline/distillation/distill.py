"""`distill`: from a folder of photos to deployed students in one call.

Index, decide, plan; then extract, train, evaluate, export, report. What can be refused is refused before the first forward: unknown names,
test images that are trained on, a plan that does not fit. What was decided stays decided: the same call goes on from where it was stopped.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...jobs.export_run import ExportOptions, export_run
from ...jobs.extraction.options import TeacherRequest
from ...jobs.runs.licences import report_terms, terms_by_name, terms_field, terms_of_request
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import file_sha256, short
from ...storage.core.urls import is_url
from ...storage.images.dataset import ImageDataset
from ...storage.images.indexing import build_index
from ...storage.images.locations import lies_inside, refuse_store_inside
from ...storage.objects.atomic_files import make_folder, write_atomically
from ...storage.objects.content_addressed import MARKER
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.objects.objects import open_objects
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, as_size, size_hw
from ...student.export.export import refuse_architecture
from ...student.export.formats import FORMATS, named
from ...student.probes.evaluation_records import FOLDER as EVALUATIONS
from ...teachers.encoders.build import canonical
from ...teachers.registry.licences import refuse_terms
from ...teachers.registry.resolve import BACKBONE_FILE, resolve_teacher
from ...teachers.registry.table import Terms
from ...teachers.runtime.devices import choose_device, choose_precision
from ..recipes.load import read_document, stages_of
from ..reports.page_contents import PictureChoice, gather, open_sets
from ..reports.report import write_report
from .decide import decided_recipes, decisions_of
from .facts import device_facts, student_facts
from .figures import TOKENS, agreement_figures, check_test, knn_figures, live_comparison, set_sizes
from .folder import DistillFolder
from .layers import check_layers
from .options import STAGES, DistillOptions
from .plan import check_limits, check_room, make_plan
from .recipes import DistillRecipes
from .rules import ruled_proxy
from .steps import Distillation, chosen_model

_VISIBLE_GRID = 8  # tokens a side
EXPORTED = ("timm", "onnx")  # of these, the first that holds the student, where no format was asked for


@dataclass(frozen=True)
class Prepared:
    """A distillation of which everything is decided and nothing computed."""

    options: DistillOptions
    plan: Mapping[str, Any]
    """What will be done and what it costs: `hours` and `bytes` that are still to be spent, `decisions` with their reasons."""
    recipes: DistillRecipes
    data: str
    """The photos' dataset by its key."""
    test: str | None
    folder: DistillFolder

    def run(self, on_event: OnEvent = ignore_event) -> dict[str, Any]:
        """Do what is not done yet; returns what stands in results.json. Raises BadInput, CacheMismatch and Interrupted as the steps do."""
        started = time.perf_counter()
        store = FeatureStore.open(self.options.store_url)
        work = Distillation(self.options, self.folder, store, self.data, on_event)
        with work.session():
            runs = work.train_all(self.recipes)
            agreement = agreement_figures(work, runs, on_event)
            knn = knn_figures(work, self.recipes, runs, self.test, on_event) if self.test is not None else {}
        results = {
            "title": f"Distillation of {self.options.dataset}",
            "dataset": self.data,
            "students": {student: {f"stage{stage}": str(run) for stage, run in stages.items()} for student, stages in runs.items()},
            "exports": {student: self._export(student, stages, on_event) for student, stages in runs.items()},
            "knn": knn,
            "agreement": agreement,
            "steps": self.folder.steps,
            "feature_sets": set_sizes(store, work.features),
            "live": live_comparison(work, self.recipes),
            "facts": self._facts(store, knn, agreement),
            "terms": self.plan["terms"],
            "recipes": dict(self.recipes.files),
            "commands": work.commands,
            "report": str(self.folder.out / "report.html"),
            "seconds": time.perf_counter() - started,
        }  # fmt: skip
        write_atomically(self.folder.out / "results.json", json.dumps(results, indent=1).encode())
        page = self._report(work, runs, results, on_event)
        on_event({"event": "note", "text": f"the report is {page}"})
        return results

    def _export(self, student: str, stages: Mapping[int, Path], on_event: OnEvent) -> dict[str, str]:
        """Write the student's model of its last stage in each format; one that was written from it and its evaluations stays."""
        run, out, written = chosen_model(stages[max(stages)]), self.folder.export(student), dict[str, str]()
        proxy = self.folder.proxy() if self.recipes.proxy is not None else None
        for name in default_formats(student) if self.options.exports is None else self.options.exports:
            form, graph = named(name)
            if not is_exported(out / name, run):
                store = self.options.store_url if graph.precision == "int8" else None  # ranges are measured on the views that taught it
                request = ExportOptions(run, out, (form,), store=store, proxy=proxy, target=graph.target, precision=graph.precision)
                export_run(request, on_event)
            written[name] = str(out / name)
        return written

    def _facts(self, store: FeatureStore, knn: Mapping[str, Any], agreement: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Return what stands at the top of the report."""
        photos = len(store.dataset(self.data))
        facts = {"Photos": f"{photos:,} ({self.data})", "Teachers": ", ".join(self.recipes.extract.teachers), "Machine": _machine()}
        for student in self.recipes.students:
            label, one = ("", "Student") if len(self.recipes.students) == 1 else (f"{student}: ", f"Student {student}")
            if (random := knn.get(f"{label}random")) is not None:
                last = next(knn[label + name] for name in ("stage3", "stage2") if label + name in knn)
                untrained = max(random[token]["ours"] for token in TOKENS if token in random)
                gained = last["cls"]["ours"] - untrained
                facts[one] = f"{last['cls']['ours']:.1f} % kNN, {gained:+.1f} points over the better feature of the untrained student"
        for student, stages in agreement.items():
            last = list(stages.values())[-1]
            text = f"{last['agreement']:.3f} mean cosine on held-out photos, {last['gap']['agreement']:.3f} more on trained ones"
            facts[f"Agreement of {student} with its teachers"] = text
        return facts

    def _report(self, work: Distillation, runs: Mapping[str, Mapping[int, Path]], results: Mapping[str, Any], on_event: OnEvent) -> Path:
        """Write the page about all runs, their feature sets and these results."""
        page = self.folder.out / "report.html"
        shown = [
            *([self.folder.proxy()] if self.recipes.proxy is not None else []),
            *(run for stages in runs.values() for run in stages.values()),
        ]
        sets = open_sets(shown, self.options.store_url, list(work.features.values()))
        teachers = self.recipes.extract.requests(self.options.teachers)
        choice = PictureChoice(
            models=[request.name for request in teachers],
            model_sizes=picture_sizes(teachers, shown),
            weights={request.name: str(request.weights) for request in teachers if request.weights is not None},
        )
        contents = gather(shown, sets, choice, verified=False, on_event=on_event)
        write_report(replace(contents, results=results), page)
        return page


def distill(options: DistillOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Go from photos to deployed students; returns the results, or the plan with `dry_run`.

    Raises BadInput before any forward for what cannot work, and Interrupted with everything finished kept.
    """
    prepared = prepare(options, on_event)
    if options.dry_run:
        return {"dry_run": True, **prepared.plan}
    return prepared.run(on_event)


def prepare(options: DistillOptions, on_event: OnEvent = ignore_event) -> Prepared:
    """Index the photos, decide everything and return it with the plan; raises BadInput for what cannot work."""
    for student in options.students:
        refuse_architecture(canonical(student), [named(name)[0] for name in options.exports or ()])
    options = replace(options, teachers=tuple(map(resolved_request, options.teachers)))
    folder = DistillFolder(options.folder)
    _refuse_places(options, folder)
    with contextlib.ExitStack() as resources:
        terms = _say_terms(options, on_event)  # before a store is made
        store = _writable_store(options) if not options.dry_run else resources.enter_context(_dry_store(options))
        photos = _indexed(store, options.photos, options.dataset, options, on_event)
        test = None if options.test is None else _indexed(store, options.test, f"{options.dataset}-test", options, on_event)
        if test is not None:
            check_test(photos, test, options.allow_overlap, on_event)
        folder.begin(_request(options), write=not options.dry_run)
        earlier = [f"{photos.name}@{short(version.digest)}" for version in photos.earlier]
        folder.at_version(photos.key, earlier, write=not options.dry_run)
        stages = chosen_stages(options, folder)
        if options.targets is not None and 3 not in stages:
            raise BadInput(f"--targets says where stage 3's come from, and the stages are {','.join(map(str, stages))}; leave it out")
        recipes = decided_recipes(options, folder, store, photos, stages, on_event)
        check_layers(recipes, options.teachers, on_event)
        plan = {
            **make_plan(options, recipes, folder, photos, _datasets_of(options)),
            "stages": {"value": list(stages), "origin": folder.kept["why_stages"]},
            "decisions": decisions_of(recipes, folder),
            **terms_field(terms),
        }
        check_room(plan)
        check_limits(plan, options)
    on_event({"event": "plan", **plan})
    return Prepared(options, plan, recipes, photos.key, None if test is None else test.key, folder)


def _refuse_places(options: DistillOptions, folder: DistillFolder) -> None:
    """Raise BadInput before anything is made where the store or the result would lie in the photos or the test images.

    A result that lies there already is gone on with, where its store is elsewhere; a store that does is named by the walk.
    """
    do = "give --out (the default store lies beside it) and --store places outside of it"
    for source in filter(None, (options.photos, options.test)):
        refuse_store_inside(options.store_url, source, do)
        if lies_inside(str(options.out), source) and not folder.is_begun and not lies_inside(options.store_url, source):
            raise BadInput(
                f"the result {options.out} would lie in {source}, whose files are taken for photos, and a later call would look for photos "
                f"in the result; {do}"
            )


def _indexed(store: FeatureStore, source: str, name: str, options: DistillOptions, on_event: OnEvent) -> ImageDataset:
    return build_index(
        store.objects, source, name, max_bad_share=options.max_bad_share, allow_removed=options.allow_removed, on_event=on_event
    )


def _say_terms(options: DistillOptions, on_event: OnEvent) -> dict[str, Terms]:
    """Report and return the terms of the teachers, as an extraction does; raises BadInput where they do not allow what they have to."""
    specs = [request.spec for request in options.teachers if request.spec is not None]
    asked = [(request.name, request.weights) for request in options.teachers]
    with contextlib.ExitStack() as resources:
        store = _existing_store(options) or resources.enter_context(_dry_store(options))
        terms = terms_by_name(terms_of_request(store.objects, asked, specs, options.terms))
    refuse_terms(options.require_licence, terms)
    report_terms(terms, on_event)
    return terms


def _request(options: DistillOptions) -> dict[str, Any]:
    """Return what of a request decides the students' targets: the folder answers to one such request."""
    teachers = {
        teacher.name: {"size_px": teacher.size_px, "weights": teacher.weights and str(teacher.weights)} for teacher in options.teachers
    }
    asked = {
        "stages": options.stages,
        "proxy": options.proxy,
        "recipe": options.recipe,
        "name": options.dataset,
        "layers": list(options.layers) or None,  # as the record of a folder from before there were any reads
        "layer_weights": dict(options.layer_weights) or None,
        "targets": options.targets,
    }
    return {"teachers": teachers, **asked, "budget_bytes": options.budget_bytes, "hours": options.hours}


def chosen_stages(options: DistillOptions, folder: DistillFolder) -> tuple[int, ...]:
    """Return the stages that are run, and keep them with the proxy's architecture in the folder; raises BadInput without a proxy."""
    write = not options.dry_run
    if "stages" in folder.kept:
        return tuple(folder.kept["stages"])
    stages, why = _asked_stages(options)
    if options.proxy is not None and 1 not in stages:
        shown = ",".join(map(str, stages))
        raise BadInput(
            f"--proxy is stage 1's student, and stage 1 is not among the stages {shown} ({why}); leave it out, or give --stages 1,2"
        )
    if options.proxy is not None:
        canonical(options.proxy)
    if 1 in stages and options.recipe is None:
        name, reason = (options.proxy, "ours: asked for") if options.proxy else proxy_of(options.students[0])
        if name is None and options.stages == "auto":
            stages, why = STAGES["2"], f"the students learn from the teachers themselves: {reason}"
        elif name is None:
            raise BadInput(f"stage 1 needs a proxy: {reason}; name one with --proxy, or leave stage 1 out with --stages 2")
        else:
            folder.keep(proxy=name, write=write)
            why += f"; proxy {name}  # {reason}"
    folder.keep(stages=stages, why_stages=why, write=write)
    return stages


def _asked_stages(options: DistillOptions) -> tuple[tuple[int, ...], str]:
    if options.stages != "auto":
        return STAGES[options.stages], "asked for"
    if options.recipe is not None:
        stages = tuple(stages_of(read_document(options.recipe)[1]))
        return stages if stages in STAGES.values() else STAGES["2"], f"as recipe {options.recipe} has them"
    if len(options.teachers) == 1:
        return STAGES["2"], "ours: the tokens of one teacher teach the student directly"
    return STAGES["1,2,3"], "the paper's, since a proxy joins several teachers"


def proxy_of(student: str) -> tuple[str | None, str]:
    """Return the architecture of the proxy for a student by rule, None where none is large enough, and the reason."""
    proxy = ruled_proxy(student_facts(student), device_facts(choose_device("auto").value))
    return proxy or (None, f"none of ours that this machine trains has 3.5 times the parameters of {student}")


def _writable_store(options: DistillOptions) -> FeatureStore:
    if not is_url(options.store_url):
        make_folder(Path(options.store_url).parent)
    return FeatureStore.create(options.store_url)


def _existing_store(options: DistillOptions) -> FeatureStore | None:
    """Return the store, None where none was made yet."""
    there = open_objects(options.store_url).size(MARKER) is not None
    return FeatureStore.open(options.store_url) if there else None


@contextlib.contextmanager
def _dry_store(options: DistillOptions) -> Iterator[FeatureStore]:
    """Yield a store that keeps what is indexed in memory, over the one that is there or over an empty one."""
    with tempfile.TemporaryDirectory(prefix="eupe-distill-") as nothing:
        base = _existing_store(options) or FeatureStore.create(f"{nothing}/store")
        yield FeatureStore(DryRunObjects(base.objects))


def _datasets_of(options: DistillOptions) -> list[str]:
    store = _existing_store(options)
    return [] if store is None else store.list_datasets()


def resolved_request(request: TeacherRequest) -> TeacherRequest:
    """Return a teacher with its weights found and hashed, once for all steps; raises BadInput for what cannot be."""
    precision = choose_precision("auto", choose_device("auto").value).value
    spec = request.spec or resolve_teacher(request.name, weights=request.weights, size_px=request.size_px, precision=precision)
    return replace(request, spec=spec)


def picture_sizes(teachers: Sequence[TeacherRequest], runs: Sequence[Path]) -> dict[str, SizePx]:
    """Return the input size of each model in the pictures, by name or run: its own, doubled while its grid is too coarse to see."""
    sizes: dict[str, SizePx] = {}
    for request in (*teachers, *(TeacherRequest(str(run)) for run in runs)):
        spec = request.spec or resolve_teacher(request.name)
        with contextlib.suppress(BadInput):  # an encoder of one size keeps it
            while min(spec.grid) < _VISIBLE_GRID:
                spec = spec.at_size(as_size([2 * side for side in size_hw(spec.preprocessing.size_px)]))
        sizes[request.name] = spec.preprocessing.size_px
    return sizes


def _machine() -> str:
    import torch

    return f"{os.cpu_count()} cores, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}"


def default_formats(student: str) -> tuple[str, ...]:
    """Return the format in which a student is exported where none was asked for; none for a shape that no format holds."""
    family = str(canonical(student)["name"])
    return tuple(form for form in EXPORTED if (FORMATS[form].families is None or family in (FORMATS[form].families or ())))[:1]


def is_exported(folder: Path, run: Path) -> bool:
    """Return whether a folder holds an export of exactly these weights, whose card has every evaluation of them."""
    record = folder / "export.json"
    if not record.is_file() or json.loads(record.read_text()).get("weights_sha256") != file_sha256(run / BACKBONE_FILE):
        return False
    evaluated = [path.stat().st_mtime_ns for path in (run / EVALUATIONS).glob("*.json")]
    return max(evaluated, default=0) <= record.stat().st_mtime_ns
