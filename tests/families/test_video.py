"""Clips: a level for each frame, given frames that come back, windows, and a beginning as a run of images."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families._clips import plan_windows
from limner.families.flow import Flow
from limner.families.video import Video, VideoSampling
from limner.networks.unets.vdm import VDMLevels

TINY = Video.presets["tiny"].model
CLIPS = ImageSpec(3, 16, 16, frames=4, captions=True)


def video(spec: ImageSpec = CLIPS, **changes: Any) -> Video:
    """A tiny model that does not draw zeros: what is zero at the start is stirred."""
    torch.manual_seed(0)
    model = families.build("video", dataclasses.replace(TINY, **changes), spec)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()  # type: ignore[return-value]


def draw(model: Video, condition: Condition, seeds: Any = (0,), **knobs: Any) -> Tensor:
    *_, last = model.sample(condition, VideoSampling(**{"steps": 2, **knobs}), Draws(seeds))
    return last.picture()


def given(frames: list[int], total: int = 4, n: int = 1) -> Condition:
    """These of ``total`` frames are given."""
    torch.manual_seed(1)
    clip = torch.rand(n, 3, total, 16, 16) * 2 - 1
    mask = torch.ones(n, 1, total, 1, 1)
    mask[:, :, frames] = 0
    return Condition(n, text=["red"] * n, image=clip, mask=mask)


VDM: dict[str, Any] = {"network": "vdm", "vdm": VDMLevels(8, (1, 2), 2)}
KINDS: list[dict[str, Any]] = [{}, {"positions": "relative"}, {"levels": "shared"}, {"causal": True}, VDM,
                               # Untrained guesses of this one are all clipped: beyond the range, with headroom.
                               {**VDM, "levels": "shared", "headroom": 0.0}]  # fmt: skip


@pytest.mark.parametrize("changes", KINDS)
def test_trains_and_draws_clips_of_any_channels_and_sides(changes: dict[str, Any]) -> None:
    model = video(ImageSpec(1, 12, 20, frames=3), **changes)
    clips = draw(model, Condition(2), [0, 1])
    assert clips.shape == (2, 1, 3, 12, 20) and clips.isfinite().all() and clips.abs().max() <= 1
    loss = sum(model.loss(Batch(clips, Condition(2))).values())
    assert torch.as_tensor(loss).isfinite() and loss > 0


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("frames", [[0], [0, 1, 2]])
def test_given_frames_come_back_exactly_and_are_followed(changes: dict[str, Any], frames: list[int]) -> None:
    model, condition = video(**changes), given(frames)
    assert condition.image is not None
    clip = draw(model, condition)
    assert torch.equal(clip[:, :, frames], condition.image[:, :, frames])
    other = dataclasses.replace(condition, image=-condition.image)
    assert not torch.allclose(draw(model, other)[:, :, 3], clip[:, :, 3], atol=1e-4)
    left = [i for i in range(4) if i not in frames]
    blank = condition.image.clone()
    blank[:, :, left] = 0.5
    same = draw(model, dataclasses.replace(condition, image=blank))
    assert torch.equal(same, clip), "what a person gives for frames that are drawn counts for nothing"


def test_between_two_frames_and_in_the_middle() -> None:
    model = video()
    for frames in ([0, 3], [1, 2], [3]):
        condition = given(frames)
        clip = draw(model, condition)
        assert torch.equal(clip[:, :, frames], condition.image[:, :, frames])  # type: ignore[index]


@pytest.mark.parametrize("order", ["pyramid", "frames"])
def test_frames_drawn_one_after_another(order: Any) -> None:
    model, condition = video(), given([0])
    clip = draw(model, condition, order=order)
    assert torch.equal(clip[:, :, 0], condition.image[:, :, 0])  # type: ignore[index]
    assert clip.isfinite().all() and not torch.allclose(clip, draw(model, condition))
    canvases = [*model.sample(condition, VideoSampling(steps=2, order=order), Draws([0]))]
    assert len(canvases) == canvases[-1].total == (4 if order == "pyramid" else 6)


def test_a_clip_goes_on_by_windows() -> None:
    model, condition = video(), given([0, 1, 2], total=11)
    clip = draw(model, condition)
    assert clip.shape[2] == 11 and clip.isfinite().all()
    assert torch.equal(clip[:, :, :3], condition.image[:, :, :3])  # type: ignore[index]
    assert (clip.diff(dim=2).abs().amax((0, 1, 3, 4)) > 0).all()
    short = draw(
        model, dataclasses.replace(condition, image=condition.image[:, :, :7], mask=condition.mask[:, :, :7])
    )  # type: ignore[index]
    assert torch.equal(short[:, :, :5], clip[:, :, :5]), "the first window does not depend on how many follow"


@pytest.mark.parametrize(
    ("frames", "known", "kept", "spans"),
    [
        (16, [], None, [(0, 16)]),
        (40, [], None, [(0, 16), (8, 24), (16, 32), (24, 40)]),
        (41, [], None, [(0, 16), (8, 24), (16, 32), (24, 40), (32, 48)]),  # the last is cut
        (64, [*range(16)], None, [(8, 24), (16, 32), (24, 40), (32, 48), (40, 56), (48, 64)]),
        (64, [0], 4, [(0, 16), (12, 28), (24, 40), (36, 52), (48, 64)]),
        (20, [0, 19], None, [(0, 16), (4, 20)]),  # the last frame is given
        (5, [0], None, [(0, 16)]),
        (5, [0, 4], None, [(0, 5)]),
    ],
)
def test_windows(frames: int, known: list[int], kept: int | None, spans: list[tuple[int, int]]) -> None:
    drawn = torch.ones(1, 1, frames, 1, 1, dtype=torch.bool)
    drawn[:, :, known] = False
    windows = plan_windows(drawn, 16, VideoSampling(kept=kept))
    assert [(window.first, window.last) for window in windows] == spans


@pytest.mark.parametrize(
    ("known", "stages"),
    [
        ([], [(0, 16, 5, 4, 1.0), (0, 16, 1, 4, 1.0), (0, 16, 1, 3, 0.7)]),
        ([0, 15], [(0, 16, 5, 4, 1.0), (0, 16, 1, 4, 1.0), (0, 16, 1, 3, 0.7)]),
        ([0, 1], [(0, 16, 1, 4, 1.0)]),  # what is given between key frames tells more than they could
        ([0, 5, 10, 15], [(0, 16, 1, 4, 1.0)]),  # nothing is left of the key frames
    ],
)
def test_key_frames_come_first(known: list[int], stages: list[tuple[int, int, int, int, float]]) -> None:
    drawn = torch.ones(1, 1, 16, 1, 1, dtype=torch.bool)
    drawn[:, :, known] = False
    sampling = VideoSampling(steps=4, order="keyframes", redraw=0.7)
    planned = plan_windows(drawn, 16, sampling)
    assert [(s.first, s.last, s.stride, s.steps, s.redraw) for s in planned] == stages
    assert len(plan_windows(drawn, 16, dataclasses.replace(sampling, redraw=0.0))) == min(len(stages), 2)


def test_key_frames_are_drawn_by_the_whole_clips_times_and_then_all_agree() -> None:
    model, seen = video(dataclasses.replace(CLIPS, frames=9), sparse=0.5), []
    network, condition = model.network.forward, given([0], total=9)

    def watched(x: Tensor, t: Tensor, rows: Any, stride: int = 1) -> Tensor:
        seen.append((x.shape[2], stride))
        return network(x, t, rows, stride)

    model.network.forward = watched
    canvases = [*model.sample(condition, VideoSampling(steps=2, redraw=0.5), Draws([0]))]
    assert seen == [(3, 4)] * 2 + [(9, 1)] * 3 and len(canvases) == canvases[-1].total == 5
    clip = canvases[-1].picture()
    assert torch.equal(clip[:, :, 0], condition.image[:, :, 0])  # type: ignore[index]
    before = canvases[3].picture()  # of all frames, before they are drawn once more
    assert not torch.allclose(before[:, :, 4], clip[:, :, 4]) and torch.equal(canvases[3].picture(), before)
    apart = canvases[1].picture()
    assert torch.equal(apart[:, :, [1, 2, 3, 5, 6, 7]], torch.zeros(1, 3, 6, 16, 16)), (
        "between, nothing is drawn yet"
    )
    assert torch.equal(canvases[2].picture()[:, :, [0, 4, 8]], apart[:, :, [0, 4, 8]])


def test_history_guidance_moves_away_from_the_clip_without_given_frames() -> None:
    model, condition = video(), given([0])
    plain, guided, more = (draw(model, condition, history_guidance=scale) for scale in (1.0, 1.5, 2.0))
    assert torch.equal(guided[:, :, 0], plain[:, :, 0])
    assert not torch.allclose(guided, plain, atol=1e-4) and not torch.allclose(guided, more, atol=1e-4)
    nothing = Condition(1, text=["red"])
    assert torch.equal(draw(model, nothing, history_guidance=3.0), draw(model, nothing)), "no frame is given"


def test_a_clip_is_its_seeds_alone() -> None:
    model, condition = video(), given([0], total=7, n=3)
    together = draw(model, condition, [4, 5, 6])
    alone = draw(model, condition[1:2], [5])
    assert_close(alone[0], together[1], atol=1e-5, rtol=0)


def test_levels_in_training() -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    t, known = video(independent=0.25, given=0.5).random_levels(4000, 4, device)
    assert ((t == 1) == known).all()
    some = known.any(1)
    assert 0.45 < some.float().mean() < 0.55
    own = (t[~some].amax(1) != t[~some].amin(1)).float().mean()
    assert 0.4 < own < 0.6, "a quarter of all, half of those without given frames"
    t, known = video(levels="shared").random_levels(100, 4, device)
    assert not known.any() and (t == t[:, :1]).all()
    t, known = video(**VDM).random_levels(4000, 4, device)
    assert not t.is_floating_point() or (t == t.round()).all()
    assert (t[known] == 0).all() and t.max() == 999


def test_given_frames_do_not_count_in_the_loss() -> None:
    """A network that is right about the others alone has no loss."""
    model = video(independent=0.0, given=1.0)
    clip = torch.rand(8, 3, 4, 16, 16) * 2 - 1
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, rows: Any) -> Tensor:
        known = (t == 1)[:, None, :, None, None]
        assert torch.equal(torch.where(known, x, 0), torch.where(known, clip, 0)), "they are clean"
        seen.append(known)
        return torch.where(known, 9.0, clip)

    network.embedder = model.network.embedder  # type: ignore[attr-defined]
    del model.network
    model.network = network  # type: ignore[assignment]
    assert model.loss(Batch(clip, Condition(8)))["velocity"] < 1e-6
    assert seen[0].any()


def test_a_still_among_clips_is_a_clip_of_one_frame() -> None:
    """Its other frames take no part, and it gives none of its one."""
    model = video(given=1.0, independent=0.0, condition_dropout=0.0)
    clip = torch.rand(4, 3, 4, 16, 16) * 2 - 1
    counts = torch.ones(4, 4, dtype=torch.bool)
    counts[2:, 1:] = False
    lengths: list[tuple[int, ...]] = []
    forward = type(model.network).forward

    def network(self: Any, x: Tensor, t: Tensor, rows: Any) -> Tensor:
        lengths.append((len(x), x.shape[2]))
        assert x.shape[2] > 1 or not (t == 1).any()
        return forward(self, x, t, rows)

    batch = Batch(clip, Condition(4, text=["a", "b", "c", "d"]), counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.network), "forward", network)
        torch.manual_seed(5)
        loss = model.loss(batch)["velocity"]
        other = clip.clone()
        other[2:, :, 1:] = 0
        torch.manual_seed(5)
        assert torch.equal(model.loss(Batch(other, batch.condition, counts))["velocity"], loss)
        model.loss(batch[2:])
    assert lengths == [(2, 4), (2, 1), (2, 4), (2, 1), (2, 1)]


@pytest.mark.parametrize("changes", [{}, {"pretrained": "run"}, VDM])
def test_training_begins_on_single_frames_and_goes_over_few_to_whole_clips(changes: dict[str, Any]) -> None:
    """As many numbers a step or fewer; a run that builds on single frames has seen them, held-out losses never cut."""
    cheap = {"still_phase": 0.2, "sparse_phase": 0.3, "given": 0.0, "independent": 0.0}
    model = video(dataclasses.replace(CLIPS, frames=16), **cheap, **changes).train()
    torch.manual_seed(0)
    clips = torch.rand(2, 3, 16, 16, 16) * 2 - 1
    batch = Batch(clips, Condition(2, text=["a", "b"]))
    shown: list[tuple[int, int, int]] = []
    forward = type(model.network).forward

    def network(self: Any, x: Tensor, t: Tensor, rows: Any, **strided: Any) -> Tensor:
        shown.append((len(x), x.shape[2], strided.get("stride", 1)))
        if rows.tokens is not None:  # each part of a clip beside its own caption
            assert torch.equal(rows.tokens[::2], rows.tokens[:1].expand_as(rows.tokens[::2]))
        return forward(self, x, t, rows, **strided)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.network), "forward", network)
        for model.progress in (0.0, 0.19, 0.2, 0.3, 0.4, 0.49, 0.5, 1.0):
            model.loss(batch)
        model.progress = 0.0
        model.eval().loss(batch)
    *early, last, held_out = ((rows, frames) for rows, frames, _ in shown)
    single, few, whole = (8, 1), (4, 4), (2, 16)
    assert last == held_out == whole
    if changes is VDM:
        assert set(early) == {whole}
    elif changes:
        assert early == [few] * 3 + [whole] * 4
    else:
        assert early == [single] * 2 + [few] * 4 + [whole]
        assert {step for _, frames, step in shown if frames == 4} <= {3, 4, 5}


def test_few_frames_are_seen_to_the_end_of_training() -> None:
    """A fraction of each batch, each clip beside its own caption; held-out losses see whole clips alone."""
    model = video(dataclasses.replace(CLIPS, frames=16), sparse=0.5).train()
    batch = Batch(torch.rand(4, 3, 16, 16, 16), Condition(4, text=["a", "b", "c", "d"]))
    parts = model.split(torch.arange(4))
    assert [(rows.tolist(), seen) for rows, seen in parts] == [([0, 1], "sparse"), ([2, 3], "whole")]
    shown: list[tuple[int, int]] = []
    forward = type(model.network).forward

    def network(self: Any, x: Tensor, t: Tensor, rows: Any, **strided: Any) -> Tensor:
        shown.append((len(x), x.shape[2]))
        return forward(self, x, t, rows, **strided)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.network), "forward", network)
        model.loss(batch)
        model.eval().loss(batch)
    assert shown == [(4, 4), (2, 16), (4, 16)]
    assert [seen for _, seen in video(**VDM, sparse=0.5).train().split(torch.arange(4))] == ["whole"]


@pytest.mark.parametrize("spec", [CLIPS, ImageSpec(3, 16, 16, frames=4, classes=("a", "b"))])
def test_one_frame_of_a_new_run_is_the_image_runs_output_bit_for_bit(spec: ImageSpec) -> None:
    """Also of each frame of a clip, before the first step."""
    torch.manual_seed(3)
    flow = Flow(Flow.presets["tiny"].model, dataclasses.replace(spec, frames=1)).eval()
    torch.nn.init.normal_(flow.network.unet.head.weight, std=0.1)
    model = Video(TINY, spec).eval()
    model.network.frame.load_state_dict(flow.network.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.7])
    condition = Condition(2, text=["a", "b c"]) if spec.captions else Condition(2, label=torch.tensor([0, 1]))
    image = flow.network(x, t, flow.embed(condition))
    clip = model.network(x[:, :, None], t[:, None], model.embed(condition))
    assert image.abs().max() > 0.01 and torch.equal(clip[:, :, 0], image)


def test_bad_requests_are_one_sentence() -> None:
    with pytest.raises(LimnerError, match="trains on clips, not on stills"):
        Video(TINY, ImageSpec(3, 16, 16))
    with pytest.raises(LimnerError, match="leave one of them out"):
        Video(dataclasses.replace(TINY, pretrained="run", **VDM), CLIPS)
    with pytest.raises(LimnerError, match="are more than the whole training"):
        Video(dataclasses.replace(TINY, still_phase=0.6, sparse_phase=0.5), CLIPS)
    with pytest.raises(LimnerError, match="nothing is left to draw"):
        draw(video(), given([0, 1, 2, 3]))
    with pytest.raises(LimnerError, match="cannot keep 4"):
        draw(video(), given([0], total=9), kept=4)
    with pytest.raises(LimnerError, match="sees a later one: leave out --last"):
        draw(video(causal=True), given([0, 3]))
    with pytest.raises(LimnerError, match="cannot be drawn with --order frames"):
        draw(video(levels="shared"), given([0]), order="frames")
    changes: dict[str, Any]
    for changes in ({}, {"sparse": 0.5, "causal": True}):  # a run from before key frames has no share of them
        with pytest.raises(LimnerError, match="cannot draw with --order keyframes"):
            draw(video(**changes), Condition(1), order="keyframes")
    with pytest.raises(LimnerError, match="takes no --history-guidance"):
        draw(video(levels="shared"), given([0]), history_guidance=2.0)
