"""The folder of a distillation, and what is recorded there of what was asked and decided.

OUT/distill.json            what was asked for, how tokens are cached, the versions of the dataset that were trained on, measured rates
OUT/recipes/NAME.toml       the recipe of each student and of the proxy, as `train --recipe` takes it; decided once
OUT/proxy/                  the run of stage 1
OUT/STUDENT/stage2/         the runs of a student; over the photos that were added later, OUT/STUDENT-v2/ and so on
OUT/STUDENT/export/FORMAT/  what is deployed
OUT/steps.json              seconds and rows of each finished step
OUT/results.json, OUT/report.html
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.core.urls import absolute
from ...storage.objects.atomic_files import make_folder, write_atomically

FORMAT = 1


class DistillFolder:
    """One distillation on disk; `version` counts the versions of the dataset that were trained on here, from 1."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.version = 1
        self._record = _read(out / "distill.json")
        self.steps: dict[str, dict[str, Any]] = _read(out / "steps.json")
        if self._record and self._record.get("format") != FORMAT:
            raise BadInput(f"{out}/distill.json has format {self._record.get('format')!r}, this version reads {FORMAT}; take another --out")
        if not self._record and out.is_dir() and any(path.name not in ("data", "store") for path in out.iterdir()):
            raise BadInput(f"{out} is not empty and holds no distillation; give a new folder as --out")

    @property
    def is_begun(self) -> bool:
        """Whether a distillation was begun here."""
        return bool(self._record)

    def begin(self, request: Mapping[str, Any], *, write: bool = True) -> None:
        """Record what is asked for; raises BadInput where the folder holds the answer to another request.

        Where nothing was computed yet, what was decided for another request is forgotten: a corrected mistake needs no other folder.
        """
        asked = json.loads(json.dumps(request))
        recorded = _spelled_as_now(self._record.get("request", asked))
        different = [key for key in asked if recorded.get(key) != asked[key]]
        if different and not self._has_work():
            self._record = {}
            for path in (self.out / "recipes").glob("*.toml") if write else ():
                path.unlink()
        elif different:
            lines = "; ".join(f"{key} was {recorded.get(key)!r}, now {asked[key]!r}" for key in different)
            raise BadInput(f"{self.out} holds a distillation of another request ({lines}); ask as before, or give another --out")
        self._keep(write, format=FORMAT, request=asked)

    def _has_work(self) -> bool:
        return bool(self.steps) or any(self.out.glob("*/stage*/recipe.json")) or any(self.out.glob("proxy*/recipe.json"))

    def at_version(self, dataset: str, earlier: Collection[str], *, write: bool = True) -> None:
        """Take the dataset's key as the version that is trained on; `earlier` are the keys of the versions that it continues.

        Raises BadInput for a dataset that continues none of those that were trained on here.
        """
        versions = list(self._record.get("versions", []))
        if dataset not in versions:
            if versions and not set(versions) & set(earlier):
                raise BadInput(
                    f"{self.out} is a distillation of {versions[-1]}, and these photos are others ({dataset}), not that folder with photos "
                    "added; give another --out"
                )
            self._keep(write, versions=[*versions, dataset])
        self.version = self._record["versions"].index(dataset) + 1

    @property
    def kept(self) -> Mapping[str, Any]:
        """What was recorded by `keep`."""
        return dict(self._record.get("kept", {}))

    def keep(self, *, write: bool = True, **values: Any) -> None:
        """Record what was decided, so that it is not decided again; a dry run keeps it in memory alone."""
        self._keep(write, kept={**self.kept, **values})

    def _keep(self, write: bool = True, /, **values: Any) -> None:
        changed = {**self._record, **json.loads(json.dumps(values))}
        if changed != self._record:
            self._record = changed
            if not write:
                return
            make_folder(self.out)
            write_atomically(self.out / "distill.json", json.dumps(changed, indent=1, ensure_ascii=False).encode())

    def recipe_file(self, name: str) -> Path:
        """Return the recipe of a student or of "proxy"."""
        return self.out / "recipes" / f"{self._name(name)}.toml"

    def proxy(self) -> Path:
        """Return the folder of stage 1's run."""
        return self.out / self._name("proxy")

    def run(self, student: str, stage: int) -> Path:
        """Return the folder of a student's run."""
        return self.out / self._name(student) / f"stage{stage}"

    def export(self, student: str) -> Path:
        """Return the folder of a student's exports."""
        return self.out / self._name(student) / "export"

    def label(self, name: str) -> str:
        """Return the name of a student or of "proxy" for people, with the version of the photos from the second on."""
        return name + (f"-v{self.version}" if self.version > 1 else "")

    def _name(self, name: str) -> str:
        return re.sub(r"[^A-Za-z0-9_.+-]+", "-", self.label(name))

    def done(self, step: str, seconds: float, rows: int) -> None:
        """Keep the seconds and rows of all of a step's work, however many calls it took."""
        self.steps[step] = {"seconds": seconds, "rows": rows, "rows_per_s": rows / max(seconds, 1e-9)}
        write_atomically(self.out / "steps.json", json.dumps(self.steps, indent=1).encode())

    def added(self, step: str, seconds: float, rows: int) -> None:
        """Add what one call did to a step; nothing where it found the work done."""
        if rows:
            before = self.steps.get(step, {"seconds": 0.0, "rows": 0})
            self.done(step, before["seconds"] + seconds, before["rows"] + rows)


def _spelled_as_now(value: Any) -> Any:
    """Return a recorded request with paths as they are spelled now: former versions kept a `..` in them."""
    if isinstance(value, dict):
        return {_spelled_as_now(key): _spelled_as_now(item) for key, item in value.items()}
    return absolute(value) if isinstance(value, str) and value.startswith("/") else value


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CacheDamaged(f"{path} cannot be read ({error}); remove it, and the same command writes it anew from what is there") from error
