"""The request of a curation, checked where it is made."""

from dataclasses import dataclass

from ...storage.core.errors import BadInput
from ...storage.core.urls import absolute


@dataclass(frozen=True)
class CurateOptions:
    """Which images of a dataset are to stay, judged by one feature set over it; raises BadInput on invalid values."""

    key: str
    """The feature set, by name or name@digest."""
    store: str
    """Folder or URL of the feature store."""
    name: str | None = None
    """Of the subset that is recorded; None only with `dry_run`."""
    near_duplicates: float | None = None
    """Cosine from which two images are near duplicates; None: near duplicates stay, unless `auto`."""
    auto: bool = False
    """Choose the threshold from the similarities of nearest neighbours."""
    against: str | None = None
    """A test set's features by the same teacher: images that are near duplicates of one of it leave."""
    balance: float | None = None
    """How many images stay (a whole number), or which share (below 1), drawn evenly over clusters."""
    seed: int = 0
    listed: int = 20
    """Groups and leaks that are named in the result, the largest first."""
    dry_run: bool = False
    """Only say what would stay."""

    def __post_init__(self) -> None:
        if self.name is None and not self.dry_run:
            raise BadInput("a subset needs a name: give --name NAME, or --dry-run to look only")
        if not self.finds and self.balance is None:
            raise BadInput("say what to curate by: --near-duplicates auto, --against KEY, --balance N, or several of them")
        if self.auto and self.near_duplicates is not None:
            raise BadInput(f"the threshold is auto or {self.near_duplicates}, not both")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise BadInput(f"a threshold of near duplicates is a cosine above 0 and at most 1, such as 0.95, got {self.near_duplicates:g}")
        if self.balance is not None and not (0 < self.balance < 1 or (1 <= self.balance <= 2**53 and self.balance == int(self.balance))):
            raise BadInput(f"--balance takes a number of images from 1, or a share between 0 and 1, got {self.balance:g}")
        if self.seed < 0 or self.listed < 0:
            raise BadInput(f"seed and listed are 0 or more, got {self.seed} and {self.listed}")
        object.__setattr__(self, "store", absolute(self.store))  # frozen for everybody else

    @property
    def groups(self) -> bool:
        """Whether near duplicates within the dataset leave."""
        return self.auto or self.near_duplicates is not None

    @property
    def finds(self) -> bool:
        """Whether anything is compared at all."""
        return self.groups or self.against is not None
