"""The mean of a video's frames: against a slow loop in float64, whatever stands in frames that are none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.frames import as_images, embed_frames, held
from transmamba.core.output import Capture, Output
from transmamba.errors import UserError

WEIGHT = torch.randn(3 * 4 * 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
COUNTS = (4, 1, 2)


def embeds(inputs: Mapping[str, Tensor]) -> Output:
    """A tower that is no linear function of its pictures."""
    assert inputs.keys() == {"image"} and inputs["image"].ndim == 4
    return Output(embeddings={"image": torch.tanh(inputs["image"].flatten(1) @ WEIGHT)})


def videos() -> dict[str, Tensor]:
    frames = torch.randn(3, 4, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"frames": frames, "frames_mask": torch.arange(4) < torch.tensor(COUNTS)[:, None]}


def test_it_is_the_mean_of_unit_embeddings_at_length_1() -> None:
    inputs = videos()
    made = embed_frames(inputs, {}, embeds)
    for row, count in enumerate(COUNTS):
        total = torch.zeros(7, dtype=torch.float64)
        for frame in inputs["frames"][row, :count]:
            one = embeds({"image": frame[None]}).embeddings["image"][0]
            total += one / one.norm()
        mean = total / count
        torch.testing.assert_close(made[row], mean / mean.norm(), rtol=1e-12, atol=1e-14)
    every = embed_frames({"frames": inputs["frames"]}, {}, embeds)
    assert torch.equal(every[0], made[0]) and (every[1] - made[1]).abs().max() > 0.01


def test_masked_frames_do_not_matter_and_get_no_gradient() -> None:
    inputs = videos()
    wanted, mask = embed_frames(inputs, {}, embeds), inputs["frames_mask"]
    other = inputs["frames"].clone()
    other[~mask] = 1e3
    other.requires_grad_()
    made = embed_frames({**inputs, "frames": other}, {}, embeds)
    assert torch.equal(made, wanted)
    (gradient,) = torch.autograd.grad(made[:, 0].sum(), other)
    assert not gradient[~mask].any() and gradient[mask].flatten(1).any(dim=1).all()


def test_what_videos_do_not_have_is_refused() -> None:
    inputs = videos()
    for capture in (
        Capture(hidden=frozenset({0})),
        Capture(branches=frozenset({0})),
        Capture(mixers={0: frozenset({"output"})}),
    ):
        with pytest.raises(UserError, match=r"reads the image tower's tokens.*embedding_cosine"):
            embed_frames(inputs, {"image": capture}, embeds)
    assert torch.equal(embed_frames(inputs, {"image": Capture()}, embeds), embed_frames(inputs, {}, embeds))
    with pytest.raises(UserError, match="both image and frames"):
        embed_frames({**inputs, "image": inputs["frames"][:, 0]}, {}, embeds)
    with pytest.raises(UserError, match="embeds no pictures"):
        embed_frames(inputs, {}, lambda images: Output())


def test_as_images_they_keep_their_videos_number() -> None:
    inputs = videos()
    batch = Batch(inputs, {"group": torch.arange(3)}, torch.tensor([5, 8, 2]), {"samples": 3, "pairs": 3})
    found = as_images(batch)
    assert found.index.tolist() == [5, 5, 5, 5, 8, 2, 2] and found.counts == {"samples": 7}
    assert found.inputs.keys() == {"image"} and not found.targets
    wanted = torch.cat([inputs["frames"][row, :count] for row, count in enumerate(COUNTS)])
    assert torch.equal(found.inputs["image"], wanted)


def test_a_scan_sees_every_frame_held_for_its_share_of_the_time() -> None:
    """4 times: one frame fills all, each of two is held for two; where they stand in the row is all one."""
    frames = torch.arange(3 * 4, dtype=torch.float64).reshape(3, 4, 1, 1, 1)
    mask = torch.tensor([[True, True, True, True], [False, False, True, False], [True, False, False, True]])
    made = held(frames, mask).reshape(3, 4)
    assert made.tolist() == [[0, 1, 2, 3], [6, 6, 6, 6], [8, 8, 11, 11]]
    long = torch.arange(64.0)[None, :, None, None, None]
    for count in (1, 3, 40, 63, 64):
        times = held(long, torch.arange(64)[None] < count).flatten()
        # frame n is shown from n / count to (n + 1) / count of the time; asked for in the middles of 64 parts
        assert times.tolist() == [int((time + 0.5) / 64 * count) for time in range(64)]


def test_a_scan_takes_the_place_of_the_mean() -> None:
    inputs = videos()
    other = inputs["frames"].clone()
    other[~inputs["frames_mask"]] = 1e3

    def scan(frames: Tensor) -> Tensor:
        weights = torch.arange(1.0, 5.0, dtype=torch.float64)
        return torch.einsum("btchw,t->bchw", frames, weights).flatten(1)

    made = embed_frames(inputs, {}, embeds, scan)
    assert torch.equal(embed_frames({**inputs, "frames": other}, {}, embeds, scan), made)
    assert (made[0] - F.normalize(scan(inputs["frames"])[0], dim=0)).abs().max() < 1e-12
    with pytest.raises(UserError, match="reads the image tower's tokens"):
        embed_frames(inputs, {"image": Capture(hidden=frozenset({0}))}, embeds, scan)
