"""How far a student agrees with its teachers, without labels: cosines after its adapters, linear CKA before them.

The cosines compare the student's adapter outputs with the teacher's *normalised* tokens, as the loss sees them: decoded from the store,
centred and scaled by the set's statistics, and grids of unequal size aligned as the loss aligns them (`losses.align_grids`: the smaller one
upsampled). So the mean cosine of class tokens is exactly 1 − L_cls, that of patch tokens 1 − the cosine term of L_patch.

Linear CKA (Kornblith et al. 2019, section 3: ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms of centred features) compares the student's own
features, before the adapters, with the same normalised tokens; it does not change under rotation and isotropic scaling of either. It is the
plain estimate, *not* the debiased one: with few images beside the channels it is high whatever is compared, so compare it only between
samples of one size. Features that do not vary have no CKA and count as 0.

Everything is accumulated in float64, batch by batch; no token is kept. Price: 8 · (Dx² + Dy² + Dx·Dy) bytes for each teacher's class and
patch tokens. Axes: n tokens, D channels; x student, y teacher.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...teachers.encoders.tokens import SampledTokens, Tokens, gather_tokens
from ..model.losses import Places, align_grids, taught_tokens
from ..model.student import Student

Targets = Mapping[str, Tokens | SampledTokens]
_COSINE_EPS = 1e-8  # as in the losses: a zero vector is orthogonal to everything
_ROUNDING = 1e-24  # of the mean's square: what is left of a constant when its mean is taken off
_ROWS_AT_ONCE = 8192  # of tokens in float64


class LinearCka:
    """Centred second moments of pairs of features, merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._means: tuple[Tensor, Tensor] = (torch.zeros(()), torch.zeros(()))
        self._moments: dict[str, Tensor] = {}

    def update(self, x_nD: Tensor, y_nD: Tensor) -> None:
        """Take in pairs of features, each side of one width throughout."""
        for start in range(0, len(x_nD), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self._merge(x_nD[part].double(), y_nD[part].double())

    def _merge(self, x_nD: Tensor, y_nD: Tensor) -> None:
        means = x_nD.mean(0), y_nD.mean(0)
        x, y = x_nD - means[0], y_nD - means[1]
        added, total = len(x_nD), self.count + len(x_nD)
        moments = {"xx": x.T @ x, "yy": y.T @ y, "yx": y.T @ x}
        if not self.count:
            self._means, self._moments = means, moments
        else:
            dx, dy = means[0] - self._means[0], means[1] - self._means[1]
            weight = self.count * added / total
            between = {"xx": torch.outer(dx, dx), "yy": torch.outer(dy, dy), "yx": torch.outer(dy, dx)}
            for name, moment in self._moments.items():
                moment += moments[name] + weight * between[name]
            self._means = self._means[0] + dx * added / total, self._means[1] + dy * added / total
        self.count = total

    def value(self) -> float:
        """Return CKA in [0, 1]."""
        xx, yy, yx = (float(torch.linalg.norm(self._moments[name])) for name in ("xx", "yy", "yx"))
        rounding = [_ROUNDING * self.count * float(mean.square().sum()) for mean in self._means]
        return min(1.0, yx**2 / (xx * yy)) if xx > rounding[0] and yy > rounding[1] else 0.0


class TokenAgreement:
    """Mean cosine and CKA of one kind of token."""

    def __init__(self) -> None:
        self._cosines, self._cka = 0.0, LinearCka()

    def update(self, predicted_nD: Tensor, features_nD: Tensor, target_nD: Tensor) -> None:
        """Take in adapter outputs, the features before the adapter, and the teacher's tokens."""
        cosine_n = functional.cosine_similarity(predicted_nD.float(), target_nD.float(), dim=-1, eps=_COSINE_EPS)
        self._cosines += float(cosine_n.double().sum())
        self._cka.update(features_nD, target_nD)

    def figures(self) -> dict[str, float]:
        """Return `cosine` and `cka`."""
        return {"cosine": self._cosines / self._cka.count, "cka": self._cka.value()}


class Agreement:
    """Of a student with one teacher: class tokens, where the teacher has any, and patch tokens."""

    def __init__(self) -> None:
        self._kinds: dict[str, TokenAgreement] = {}

    def update(
        self, predicted: Tokens | SampledTokens, features: Tokens | SampledTokens, target: Tokens | SampledTokens,
        places: Places | None = None,
    ) -> None:  # fmt: skip
        """Take in a batch: adapter outputs, the student's features, normalised targets; the first two at a sampled target's positions.

        `places` says where letterboxed images lie: patch tokens in their padding are left out.
        """
        if predicted.cls_BD is not None and features.cls_BD is not None and target.cls_BD is not None:
            self._kind("cls").update(predicted.cls_BD, features.cls_BD, target.cls_BD)
        predicted_nD, target_nD = _aligned(predicted, target)
        features_nD = _aligned(features, target)[0]
        taught_n = ... if places is None else taught_tokens(predicted, target, places).flatten()
        self._kind("patch").update(predicted_nD[taught_n], features_nD[taught_n], target_nD[taught_n])

    def _kind(self, name: str) -> TokenAgreement:
        return self._kinds.setdefault(name, TokenAgreement())

    def figures(self) -> dict[str, Any]:
        """Return `agreement`, the mean of the cosines, and for `cls` and `patch` their `cosine` and `cka`."""
        kinds = {name: kind.figures() for name, kind in self._kinds.items()}
        return {"agreement": _mean([kind["cosine"] for kind in kinds.values()]), **kinds}


def _aligned(student: Tokens | SampledTokens, target: Tokens | SampledTokens) -> tuple[Tensor, Tensor]:
    """Return patch tokens (n, D) of both sides, at the same places."""
    if isinstance(student, SampledTokens) or isinstance(target, SampledTokens):
        assert isinstance(student, SampledTokens) and isinstance(target, SampledTokens)  # noqa: PT018  # `outputs` gathers them
        return student.patch_BTD.flatten(0, 1), target.patch_BTD.flatten(0, 1)
    ours_BHWD, theirs_BHWD = align_grids(student.patch_BHWD, target.patch_BHWD)
    return ours_BHWD.flatten(0, 2), theirs_BHWD.flatten(0, 2)


def outputs(student: Student, pixels_BHWC: Tensor, targets: Targets) -> dict[str, tuple[Tokens | SampledTokens, Tokens | SampledTokens]]:
    """Return what a student makes of uint8 pixels for each teacher in `targets`: adapter outputs, and the features before the adapters."""
    tokens: Tokens = student.encoder(student.encoder.preprocessing.apply(pixels_BHWC))
    made = {}
    for name, heads in zip(student.teacher_names, student.adapters, strict=True):
        if name in targets:
            target = targets[name]
            features = gather_tokens(tokens, target) if isinstance(target, SampledTokens) else tokens
            made[name] = (heads(features), features)
    return made


def summarize(agreements: Mapping[str, Agreement]) -> dict[str, Any]:
    """Return each teacher's figures by name under `teachers`, and their means over the teachers.

    `agreement` is the one figure that chooses the best checkpoint: the mean over teachers of the mean of their class and patch cosine.
    """
    teachers = {name: agreement.figures() for name, agreement in agreements.items()}
    means = {
        f"{kind}_{figure}": _mean([figures[kind][figure] for figures in teachers.values() if kind in figures])
        for kind in ("cls", "patch")
        for figure in ("cosine", "cka")
        if any(kind in figures for figures in teachers.values())
    }
    return {"agreement": _mean([figures["agreement"] for figures in teachers.values()]), **means, "teachers": teachers}


def gap(trained: Mapping[str, Any], held_out: Mapping[str, Any]) -> dict[str, float]:
    """Return by how much each figure is higher on trained images than on held-out ones: above 0 where a student has overfitted."""
    return {name: trained[name] - held_out[name] for name in trained if name != "teachers"}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
