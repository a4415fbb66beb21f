"""`[views]` of a recipe: which views its targets are of, as far as the recipe says; an extraction draws them, a training compares them.

What a recipe leaves out is None and may be anything. How many views an image has and their seed are stated for extractions alone: other
draws of the same distribution train as well. Of each kind of views those values count that its identity has (`VIEW_KINDS`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...storage.core.choices import PadPosition
from ...storage.core.errors import BadInput
from ...storage.views.photometric import Distortion
from ...storage.views.view_spec import VIEW_KINDS, ViewSpec

NOT_COMPARED = ("views_per_image", "seed", "pixels")


@dataclass(frozen=True)
class ViewsConfig:
    """`[views]`: how the teachers' and the student's views are drawn; fields as those of `storage.views.ViewSpec`."""

    kind: str | None = None
    """`random_resized_crop`, `center`, `whole` or `letterbox`."""
    views_per_image: int | None = None
    """Recorded views of each image (ours: the paper draws them anew)."""
    seed: int | None = None
    """Seed of the draws."""
    scale: tuple[float, ...] | None = None
    """Least and largest share of the image's area."""
    ratio: tuple[float, ...] | None = None
    """Least and largest width over height."""
    flip_probability: float | None = None
    """Of a horizontal flip."""
    crop_fraction: float | None = None
    """Of the shorter side, for centre views."""
    crop_ratio: float | None = None
    """Width over height of centre views: that of an input which is not square."""
    pad_position: PadPosition | None = None
    """Where a letterboxed view's padding is: `end`, right or bottom, or `center`, on both sides."""
    pad_rgb: tuple[int, ...] | None = None
    """Colour of that padding, three levels from 0 to 255."""
    photometric: str | None = None
    """Who sees colour jitter, blur and solarisation: `none`, `teacher_same` for both, `student_only`."""
    distortion: Distortion | None = None
    """How strong and how often those are."""

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            if (pair := getattr(self, name)) is not None and len(pair) != 2:
                raise BadInput(f"recipe value views.{name} = {list(pair)} is not the two numbers of a range")
        try:
            self.spec()
        except BadInput as error:
            raise BadInput(f"recipe table views: {error}") from error

    def stated(self) -> dict[str, Any]:
        """Return the values that the recipe states, by field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def spec(self, base: ViewSpec | None = None) -> ViewSpec:
        """Return the views that are stated, with `base` where nothing is."""
        base = base or ViewSpec()
        values = self.stated()
        kind = VIEW_KINDS.get(values.get("kind", base.kind))
        if kind is not None and not kind.is_random:
            values |= {"photometric": "none", "views_per_image": 1}
        return dataclasses.replace(base, **values)

    def differences(self, spec: ViewSpec) -> dict[str, tuple[object, object]]:
        """Return each value in which recorded views are not those that are stated: key → (theirs, the stated one)."""
        stated, recorded = _flat(self.spec(spec).identity()), _flat(spec.identity())
        if stated["kind"] != recorded["kind"]:
            return {"kind": (recorded["kind"], stated["kind"])}
        different = {
            key: (recorded.get(key), value) for key, value in stated.items() if key not in NOT_COMPARED and recorded.get(key) != value
        }
        return {"photometric": different["photometric"]} if "photometric" in different else different


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity with the distortion's values as `distortion.<key>`."""
    distortion = identity.pop("distortion", {})
    return identity | {f"distortion.{key}": value for key, value in distortion.items()}
