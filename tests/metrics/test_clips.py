"""Measures of clips: against public numbers, and on changes that they must see."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from limner.core import ImageSpec, Model
from limner.metrics.clip_features import i3d, of_frames, random_clips
from limner.metrics.copies import Originals
from limner.metrics.distances import frechet_distance
from limner.metrics.features import of_model, random_vgg
from limner.metrics.find import find, find_of_clips
from limner.metrics.motion import jitter, motion
from limner.networks.i3d import CLASSES, I3D
from limner.networks.images.channels import with_channels
from limner.networks.random_clips import moving_leaves
from limner.settings import LimnerError
from tests.helpers import golden


def leaves(n: int, seed: int = 0, side: int = 16, frames: int = 8) -> torch.Tensor:
    return moving_leaves(n, torch.Generator().manual_seed(seed), frames, side)


def test_motion_and_jitter_match_the_golden_numbers():
    inputs, expected = golden("jitter")
    clip = inputs["clip"].movedim(1, 0)[None]  # [1, C, T, H, W]
    for measure, name in ((motion, "motion"), (jitter, "jitter")):
        found = measure(clip)
        assert_close(found[0], expected[name], rtol=1e-9, atol=1e-9)
        assert float(found.mean()) == pytest.approx(expected[f"mean_{name}"], rel=1e-9)
    still = clip[:, :, :1].expand_as(clip)
    assert float(jitter(still).max()) == expected["still"] == float(motion(still).max())


def test_what_moves_evenly_has_no_jitter():
    """A ramp of brightness that rises by 0.1 a frame, and one that goes back and forth by as much."""
    even = torch.linspace(-0.5, 0.5, 11)[None, None, :, None, None].expand(1, 3, 11, 4, 4)
    uneven = (torch.arange(11) % 2 * 0.1)[None, None, :, None, None].expand(1, 3, 11, 4, 4)
    assert_close(motion(even), motion(uneven))
    assert float(jitter(even).max()) < 1e-6 and float(jitter(uneven).mean()) == pytest.approx(0.2)


def test_frechet_distance_of_clips_matches_the_golden_number():
    inputs, expected = golden("frechet_video")
    assert frechet_distance(inputs["real"], inputs["drawn"]) == pytest.approx(expected["distance"], rel=1e-6)


def test_channels_of_clips_are_turned_into_one_another_as_those_of_images():
    for have in (1, 3, 4):
        clip = leaves(2)[:, :1].repeat(1, have, 1, 1, 1)
        for channels in (1, 3, 4):
            frames = [with_channels(frame, channels) for frame in clip.unbind(2)]
            assert_close(with_channels(clip, channels), torch.stack(frames, 2), rtol=0, atol=0)


def test_random_features_of_clips_are_the_same_everywhere_and_describe_any_clip():
    one, two = random_clips(), find_of_clips("random")
    x = leaves(3)
    assert_close(one.of(x), two.of(x))
    assert one.hash == two.hash and len(one.hash) == 12 and one.clips
    for channels in (1, 3, 4):
        for frames, height, width in ((1, 8, 8), (2, 20, 48), (5, 64, 100)):
            found = one.of(torch.rand(2, channels, frames, height, width) * 2 - 1)
            assert found.shape == (2, 48) and found.isfinite().all()
    assert_close(torch.cat([one.of(part) for part in x.split(1)]), one.of(x), rtol=1e-4, atol=1e-4)


def test_random_features_tell_clips_from_those_whose_time_is_wrong():
    """Each by at least 5 floors: what other clips of the same kind score."""
    features, clips = random_clips(), leaves(80, side=32)
    clips[:, :, :3] = clips[:, :, 2:3]  # they begin with a rest, so that backwards differs
    real, other = clips[:40], clips[40:]
    generator = torch.Generator().manual_seed(1)
    shuffled = torch.stack([clip[:, torch.randperm(8, generator=generator)] for clip in other])
    offsets = torch.randint(-1, 2, (len(other), 8, 2), generator=generator).tolist()
    jittered = torch.stack(
        [
            torch.stack([frame.roll(at, (1, 2)) for frame, at in zip(clip.unbind(1), places, strict=True)], 1)
            for clip, places in zip(other, offsets, strict=True)
        ]
    )
    known = features.of(real)
    floor = frechet_distance(known, features.of(other))
    for changed in (shuffled, other[:, :, 4:5].expand_as(other), other.flip(2), jittered):
        assert frechet_distance(known, features.of(changed)) > 5 * floor
    noisy = (other + torch.randn(other.shape, generator=generator) / 127.5).clamp(-1, 1)  # by a grey level
    assert frechet_distance(known, features.of(noisy)) < 2 * floor


def test_features_on_frames_are_those_of_images():
    features, images = of_frames(random_vgg()), leaves(2)[:, :, 0]
    assert_close(features.of(images), random_vgg().of(images))
    assert features.name == "random on frames" and not features.clips


class Clipper(Model):
    """Describes clips by the mean colour of each frame."""

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.mean((3, 4)).flatten(1)


def test_a_run_that_describes_clips_has_features_of_clips_of_its_length():
    model = Clipper(None, ImageSpec(3, 8, 12))
    model.spec = ImageSpec(3, 8, 12, frames=4)
    model.weight = torch.nn.Parameter(torch.zeros(1))  # of whose device the model is
    features = of_model(model, "runs/a", "0123456789abcdef")
    assert features.clips and features.hash == "0123456789ab" and "8x12" in features.resize
    assert_close(features.of(torch.full((2, 1, 4, 16, 16), 0.5)), torch.full((2, 12), 0.5))
    with pytest.raises(LimnerError, match="clips of 4 frames, and these have 8"):
        features.of(leaves(1))


def test_i3d_is_the_published_network():
    with torch.device("meta"):
        network = I3D()
    # Inception v1 inflated, with the scales and offsets of its norms, and 1,024 x 400 + 400 of the logits.
    assert sum(p.numel() for p in network.parameters()) == 12_697_264
    assert sum(p.numel() for name, p in network.named_parameters() if "logits" not in name) == 12_287_264
    shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_3b.b1b.conv3d.weight"] == (128, 96, 3, 3, 3)
    assert shapes["Mixed_4f.b2a.bn.running_var"] == (32,)
    assert shapes["Mixed_5c.b3b.conv3d.weight"] == (128, 832, 1, 1, 1)
    assert shapes["logits.conv3d.weight"] == (CLASSES, 1024, 1, 1, 1) and len(shapes) == 344
    for frames in (9, 16, 64):
        clips = torch.zeros(2, 3, frames, 224, 224, device="meta")
        assert network(clips).shape == (2, CLASSES)


def test_i3d_needs_weights_and_says_so(tmp_path):
    with pytest.raises(LimnerError, match=r"i3d need --weights FILE\.safetensors"):
        i3d("")
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(LimnerError, match="does not hold the weights of i3d"):
        find_of_clips("i3d", tmp_path / "a.safetensors")
    with pytest.raises(LimnerError, match="describe clips, and these are still images"):
        find("i3d")
    with pytest.raises(LimnerError, match="take no weights"):
        find_of_clips("random", tmp_path / "a.safetensors")


@pytest.mark.slow
def test_i3d_describes(tmp_path):
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in I3D().state_dict().items()}, tmp_path / "w.safetensors")
    features = i3d(tmp_path / "w.safetensors")
    found = features.of(leaves(2, frames=9))
    assert found.shape == (2, CLASSES) and found.isfinite().all() and features.clips
    with pytest.raises(LimnerError, match="at least 9 frames, and these have 8"):
        features.of(leaves(1))


def test_copies_of_clips_are_found_under_the_same_change_in_every_frame():
    clips = leaves(30, side=32)
    searched = Originals(clips)
    moved = clips[:3].roll(2, -1)
    copies = torch.cat([clips[3:6], clips[6:9].flip(-1), moved, 0.9 * clips[9:12]])
    found = searched.nearest(copies)
    assert found.index.tolist() == [3, 4, 5, 6, 7, 8, 0, 1, 2, 9, 10, 11]
    assert float(found.distance.max()) < 2
    assert [change.kind for change in found.changes[:6]] == ["unchanged"] * 3 + ["mirrored"] * 3
    assert all("moved" in change.kind for change in found.changes[6:9])
    assert float(searched.nearest(leaves(3, seed=9, side=32)).distance.min()) > 20


def test_a_clip_whose_frames_are_of_another_order_is_no_copy():
    clips = leaves(10, side=32)
    assert float(Originals(clips).nearest(clips[:3].flip(2)).distance.min()) > 10
