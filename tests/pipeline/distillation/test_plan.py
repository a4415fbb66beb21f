"""A plan above a limit is refused with what it needs, also where several stages have their least steps."""

from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.pipeline.distillation.options import DistillOptions
from eupe_pipeline.pipeline.distillation.plan import check_limits, check_room, needs_consent
from eupe_pipeline.storage.core.errors import BadInput


def asked(**limits: Any) -> DistillOptions:
    return DistillOptions("photos", Path("run"), (TeacherRequest("efficientnet-lite0"),), ("vit-mini",), **limits)


def test_a_plan_above_a_limit_is_refused_with_what_it_needs() -> None:
    plan = {"hours": 2.0, "bytes": 3_000_000_000, "store": "store"}
    check_limits(plan, asked())
    check_limits(plan, asked(hours=2.0, budget_bytes=3_000_000_000))
    with pytest.raises(BadInput, match=r"takes 2 h where --hours is 1\.5; .* measures speeds anew, and --hours 3 leaves room"):
        check_limits(plan, asked(hours=1.5))
    with pytest.raises(BadInput, match=r"needs 3 GB where --budget is 2\.9 GB"):
        check_limits(plan, asked(budget_bytes=2_900_000_000))


def test_consent_is_asked_above_an_hour_or_twenty_gigabytes_alone(tmp_path: Path) -> None:
    plan = {"hours": 1.0, "bytes": 20e9, "store": str(tmp_path / "store")}
    assert needs_consent(plan) is None
    assert "1 h 30 min" in (needs_consent({**plan, "hours": 1.5}) or "")
    assert "21.0 GB" in (needs_consent({**plan, "bytes": 21e9}) or "")


def test_more_bytes_than_the_disk_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"its disk has .* GB free; give --budget"):
        check_room({"bytes": 10**18, "store": str(tmp_path / "not" / "there")})
    check_room({"bytes": 10**18, "store": "s3://bucket/store"})
