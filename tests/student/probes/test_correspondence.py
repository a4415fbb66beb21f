"""Matches against the plain way: upsample all channels, normalise, take the highest cosine."""

import numpy as np
import pytest
import torch
from eupe_pipeline.student.probes.correspondence import correct_keypoints, match_keypoints, sample_tokens, summarize_pck
from torch.nn import functional


def test_matches_are_those_of_the_whole_upsampled_map() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(6, 6, 80, generator=generator), torch.randn(6, 6, 80, generator=generator)
    points = np.array([[3.0, 5.0], [40.2, 17.7], [47.0, 47.0], [0.0, 0.0]])
    upsampled = [
        functional.normalize(functional.interpolate(one.permute(2, 0, 1)[None].double(), (48, 48), mode="bilinear")[0], dim=0)
        for one in (source, target)
    ]
    wanted = []
    for x, y in np.rint(points).astype(int):
        cosine = torch.einsum("d,dhw->hw", upsampled[0][:, y, x], upsampled[1])
        best = int(cosine.argmax())
        wanted.append((best % 48, best // 48))
    torch.testing.assert_close(
        sample_tokens(source, torch.from_numpy(points), 48)[1].double(), upsampled[0][:, 18, 40], atol=1e-5, rtol=1e-4
    )
    assert match_keypoints(source, target, points, 48).tolist() == [list(map(float, one)) for one in wanted]


def test_matches_at_an_oblong_input_are_those_of_its_whole_map() -> None:
    generator = torch.Generator().manual_seed(3)
    source, target = torch.randn(4, 6, 80, generator=generator), torch.randn(4, 6, 80, generator=generator)
    points = np.array([[3.0, 5.0], [47.0, 31.0], [40.2, 17.7], [0.0, 40.0]])  # the last is outside, and stands for the border
    ours, theirs = (
        functional.normalize(functional.interpolate(one.permute(2, 0, 1)[None].double(), (32, 48), mode="bilinear")[0], dim=0)
        for one in (source, target)
    )
    found = match_keypoints(source, target, points, (32, 48)).astype(int).tolist()
    for (x, y), (left, top) in zip([(3, 5), (47, 31), (40, 18), (0, 31)], found, strict=True):
        cosine_YX = torch.einsum("d,dhw->hw", ours[:, y, x], theirs)  # equal along the border, where the map is repeated
        torch.testing.assert_close(cosine_YX[top, left], cosine_YX.max(), atol=1e-6, rtol=0)


def test_a_picture_is_found_in_itself() -> None:
    tokens = torch.randn(8, 8, 32, generator=torch.Generator().manual_seed(1))
    points = np.array([[12.0, 20.0], [52.0, 44.0]])
    assert np.abs(match_keypoints(tokens, tokens, points, 64) - points).max() <= 1


def test_hits_lie_within_a_tenth_of_the_box() -> None:
    found, truth = np.array([[0.0, 0.0], [10.0, 0.0], [8.0, 6.1]]), np.zeros((3, 2))
    assert correct_keypoints(found, truth, 100.0).tolist() == [True, True, False]


def test_the_summary_has_three_means() -> None:
    found = summarize_pck({"cat": [np.array([True, True, True, False]), np.array([False])], "dog": [np.array([True])]})
    assert found["categories"] == {"cat": pytest.approx(60.0), "dog": 100.0}
    assert found["pck"] == pytest.approx(80.0)
    assert found["pck_of_all_keypoints"] == pytest.approx(100 * 4 / 6)
    assert found["pck_of_pairs"] == pytest.approx(100 * (0.75 + 0 + 1) / 3)
