"""`[extract]` of a recipe that goes from photos to students: how teachers' tokens are cached. `train` and `extract-features` ignore it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...jobs.extraction.options import ExtractOptions, TeacherRequest
from ...storage.core.choices import Codec, Precision
from ...storage.core.errors import BadInput, unknown_name
from ...storage.features.layers import checked_layers
from ...storage.views.input_size import SizePx, as_size
from ...storage.views.view_spec import ViewSpec
from ...teachers.runtime.devices import choose_device, choose_precision


@dataclass(frozen=True)
class ExtractConfig:
    """How teachers' tokens are cached, and those of the proxy."""

    teachers: tuple[str, ...]
    """Names of the teachers."""
    teacher_sizes_px: Mapping[str, SizePx] = field(default_factory=dict)
    """Input size by teacher, the side of a square or [height, width]; a teacher that is not named has its own."""
    views_per_image: int = 1
    """Recorded random views of each training photo."""
    proxy_size_px: SizePx = 256
    """Input size of the proxy when its tokens are cached for stage 2."""
    seed: int = 0
    """Seed of the views."""
    precision: Precision = "auto"
    """What teachers compute in; auto: bf16 where this machine has it."""
    codec: Codec = "int8"
    """How patch tokens are stored."""
    tokens_per_view: int = 0
    """Patch tokens of a view that are kept, at recorded random positions; 0: all."""
    grid: tuple[int, ...] = ()
    """Rows and columns of the stored tokens; empty: each teacher's own."""
    layers: tuple[int, ...] = ()
    """Blocks of each teacher, counted from 1, whose patch tokens are stored too; what they weigh says `[stageN.teacher.layers]`."""
    images_per_shard: int = 128
    """Images of one unit of work."""
    statistics_batches: int = 0
    """Batches of 32 views that each teacher's mean and std come from; 0: as many views as cost no second pass, or 3 % of many."""
    batch_size: int = 32
    """Views in one forward pass of a teacher."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Why each value is what it is."""

    def __post_init__(self) -> None:
        stray = sorted(set(self.teacher_sizes_px) - set(self.teachers))
        if stray:
            raise unknown_name("teacher in extract.teacher_sizes_px", stray[0], self.teachers)
        if len(self.grid) not in (0, 2):
            raise BadInput(f"extract.grid is [rows, columns], or [] for each teacher's own, got {list(self.grid)}")
        object.__setattr__(self, "layers", checked_layers(self.layers))
        sizes = {name: as_size(size, f"teacher {name}") for name, size in self.teacher_sizes_px.items()}
        object.__setattr__(self, "teacher_sizes_px", sizes)
        object.__setattr__(self, "proxy_size_px", as_size(self.proxy_size_px, "the proxy"))

    def requests(self, known: tuple[TeacherRequest, ...] = ()) -> tuple[TeacherRequest, ...]:
        """Return the teachers with their sizes and precision here; of those that are `known`, their weight files, devices and specs."""
        by_name = {request.name: request for request in known}
        return tuple(self._request(by_name.get(name, TeacherRequest(name))) for name in self.teachers)

    def _request(self, request: TeacherRequest) -> TeacherRequest:
        size_px, spec = self.teacher_sizes_px.get(request.name), request.spec
        if spec is not None:  # resolved before this recipe was known
            spec = replace(spec, precision=choose_precision(self.precision, choose_device("auto").value).value)
            spec = spec if size_px is None else spec.at_size(size_px)
        return replace(request, size_px=size_px, spec=spec)

    def options(
        self, store: str, data: str, teachers: tuple[TeacherRequest, ...], views: ViewSpec, *, workers: int | None = None,
        address: str | None = None,
    ) -> ExtractOptions:  # fmt: skip
        """Return the request of an extraction of `teachers` over `views` of a dataset.

        Of centre views, which nothing learns from, all tokens are kept and no layers; a proxy, which is none of `self.teachers`, has none.
        """
        sampled = views.kind != "center" and self.tokens_per_view
        of_teachers = views.kind != "center" and all(request.name in self.teachers for request in teachers)
        return ExtractOptions(
            store=store, data=data, teachers=teachers, views=views, images_per_shard=self.images_per_shard, codec=self.codec,
            tokens_per_view=self.tokens_per_view if sampled else None,
            grid=(self.grid[0], self.grid[1]) if self.grid else None, precision=self.precision, layers=self.layers if of_teachers else (),
            statistics_batches=self.statistics_batches or None, batch_size=self.batch_size, workers=workers, address=address,
        )  # fmt: skip
