"""What one does with a latent: ways, directions, sheets of a run, and the point of a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limner.core import Condition, Draws, ImageSpec, Latent, Layered, LimnerError
from limner.inference import explore, latents
from limner.inference.explore import Space
from limner.inference.options import ExploreOptions, ProjectOptions
from limner.networks.interpolation import lerp, slerp
from tests.helpers import paint

TINY = ("--preset", "tiny", "--training.samples", 4)


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Ways ---------------------------------------------------------------------------------------------------


def test_an_arc_is_a_great_circle() -> None:
    one, other = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=torch.float64)
    shares = torch.tensor([0.0, 1 / 3, 1.0], dtype=torch.float64)
    third = (3 + 1 / 3) * torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6), 0], dtype=torch.float64)
    torch.testing.assert_close(slerp(one, other, shares), torch.stack([one, third, other]))
    points = double(2, 5, 100)  # of several layers: each on its own
    way = slerp(points[0], points[1], shares)
    assert way.shape == (3, 5, 100)
    torch.testing.assert_close(way[:, 2], slerp(points[0, 2], points[1, 2], shares))


@pytest.mark.parametrize("times", [1.0, -1.0, 0.0], ids=["same", "opposite", "nothing"])
def test_an_arc_without_a_plane_is_straight(times: float) -> None:
    one, shares = double(8), torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(slerp(one, times * one, shares), lerp(one, times * one, shares))


def test_a_loop_ends_where_it_began_and_a_plane_has_its_corners() -> None:
    points = double(4, 6)
    for interpolate in (slerp, lerp):
        round_ = latents.loop(points, 5, interpolate)
        assert round_.shape == (20, 6)
        torch.testing.assert_close(round_[::5], points)
        steps = (round_ - round_.roll(1, 0)).norm(dim=1)  # with the step from the last frame to the first
        assert steps.max() < 0.6 * (points - points.roll(1, 0)).norm(dim=1).max()
        between = latents.plane(points, 3, interpolate)
        torch.testing.assert_close(between[[0, 0, -1, -1], [0, -1, 0, -1]], points)


# Directions ---------------------------------------------------------------------------------------------


def test_directions_of_points_that_vary_along_axes() -> None:
    points = double(4000, 3) * torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64) + 7
    found = latents.principal_directions(points, 2)
    torch.testing.assert_close(found.abs().argmax(1), torch.tensor([1, 2]))
    assert found.gather(1, found.abs().argmax(1, keepdim=True)).min() > 0.99


def test_directions_in_which_a_linear_painter_changes_most() -> None:
    weight = double(50, 12) * torch.logspace(0, -2, 12, dtype=torch.float64)
    found = latents.jacobian_directions(
        lambda z: (z @ weight.T).reshape(-1, 2, 5, 5), double(4, 12), 3, step=0.1
    )
    _, vectors = torch.linalg.eigh(weight.T @ weight)
    torch.testing.assert_close((found * vectors.flip(1).T[:3]).sum(1).abs(), torch.ones(3).double())


def test_directions_of_a_curved_painter_are_its_mean_jacobians() -> None:
    weight = double(20, 6)
    points = double(3, 6, seed=1)

    def painter(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight.T)

    found = latents.jacobian_directions(painter, points, 2, step=1e-4, passes=60)
    jacobians = torch.stack([torch.autograd.functional.jacobian(painter, p) for p in points])
    vectors = torch.linalg.eigh((jacobians.mT @ jacobians).mean(0)).eigenvectors.flip(1).T
    torch.testing.assert_close((found * vectors[:2]).sum(1).abs(), torch.ones(2).double(), atol=1e-4, rtol=0)


# The point of an image ----------------------------------------------------------------------------------


def test_descent_keeps_the_best_and_each_start_to_itself() -> None:
    aim = double(3, 4)
    starts = torch.zeros(3, 4, dtype=torch.float64)

    def loss(points: Tensor) -> Tensor:
        return (points - aim[: len(points)]).square().sum(1)

    best, least = latents.descend(loss, starts, 300, 0.1)
    torch.testing.assert_close(best, aim, atol=1e-2, rtol=0)
    alone, _ = latents.descend(loss, starts[:1], 300, 0.1)
    torch.testing.assert_close(alone[0], best[0])
    start, least = latents.descend(loss, aim.clone(), 5, 10.0)  # wild steps from the best there is
    assert torch.equal(start, aim) and least.max() == 0
    nowhere, least = latents.descend(lambda p: p.sum(1) * math.nan, starts, 3, 0.1)
    assert torch.equal(nowhere, starts) and least.isinf().all()


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (1, 40), (5, 7)])
def test_distance(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size) * 2 - 1
    assert torch.equal(explore.distance(x, x), torch.zeros(2))
    near, far = explore.distance(x + 0.01, x), explore.distance(x + 0.1, x)
    assert (near > 0).all() and (far > near).all()
    x.requires_grad_()
    explore.distance(x, torch.zeros_like(x)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


# A stand-in whose layers take points of their own -------------------------------------------------------


class Stripes(nn.Module):
    """Layer i paints row i of the image: it takes as many layers as rows."""

    follows: frozenset[str] = frozenset()
    layers = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3), requires_grad=False)
        self.device, self.spec = torch.device("cpu"), ImageSpec(3, 4, 4)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        return 0.3 * draws.normal(3) * torch.tensor([1.0, 2.0, 0.5]) + 0.1

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        rows = latent if latent.ndim == 3 else latent[:, None].expand(-1, 4, -1)
        return (rows @ self.weight).mT[..., None].expand(-1, -1, -1, 4)  # [B, 3, 4, 4]


def stripes() -> Space:
    from limner.core import DataOptions

    model = Stripes()
    drawn = model.latent(Condition(500), Draws(range(500)))
    return Space(model, ImageSpec(3, 4, 4), "x", DataOptions(), False, drawn, drawn.mean(0), 0.4)


def test_capabilities_are_seen_in_the_methods() -> None:
    assert isinstance(Stripes(), Layered)
    assert not isinstance(nn.Linear(1, 1), Latent)


def test_points_with_layers_of_their_own() -> None:
    space = stripes()
    found = space.directions("auto", 2, "", lambda share: None)  # of the points, which are not round
    assert found.abs().argmax(1).tolist() == [1, 0]
    one, other = space.points(range(2), (), 1.0)
    middle = space.interpolate(one, other, torch.tensor([0.5]))[0]
    torch.testing.assert_close(middle, (one + other) / 2)
    torch.testing.assert_close(space.points(range(2), (), 0.0), space.centre.expand(2, -1))


def test_mixing_takes_coarse_layers_of_one_and_fine_ones_of_another(tmp_path: Path, monkeypatch) -> None:
    space = stripes()
    given = (torch.full((4, 3), 0.25),)
    options = ExploreOptions(rows=1, columns=5, directions=2)
    anchors = explore.Anchors(space, options, ("",), ("mine", "a", "b", "c", "d"), given, range(4))
    painted = []
    monkeypatch.setattr(explore, "save_grid", lambda path, images, words, _: painted.append((images, words)))
    explore.mixing(anchors, tmp_path / "mixing.png", lambda share: None)
    images, words = painted[0]
    assert len(images) == 3 * 16 and words[1] == "mine to layer 1, then a"
    points = anchors.points("")
    assert points.shape == (5, 4, 3)
    torch.testing.assert_close(images[17][:, :2, 0], points[0, :2].T)  # crossing at 2
    torch.testing.assert_close(images[17][:, 2:, 0], points[1, 2:].T)
    for sheet in (explore.interpolations, explore.plane, explore.directions):
        sheet(anchors, tmp_path / "x.png", lambda share: None)


# Runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "images"
    for seed, name in enumerate(("cat", "dog")):
        paint(folder / name, 20, seed=seed)
    return folder


@pytest.fixture(scope="module")
def gan(source: Path, limner) -> Path:
    out = source.parent / "dcgan"
    limner("train", "dcgan", source, "--out", out, *TINY, "--budget", "320img")
    return out


@pytest.fixture(scope="module")
def vae(source: Path, limner) -> Path:
    out = source.parent / "vae"
    limner("train", "vae", source, "--out", out, *TINY, "--budget", "1280img")
    return out


def test_explore_draws_every_sheet(gan: Path, limner, tmp_path: Path) -> None:
    to = tmp_path / "to"
    report = json.loads(
        limner("explore", gan, "--to", to, "--rows", 3, "--columns", 4, "--directions", 2, "--json").stdout
    )
    assert report["labels"] == ["cat", "dog"] and report["points"] == ["seed 0", "seed 1", "seed 2", "seed 3"]
    names = {"interpolation.png", "loop.gif", "plane.png", "directions.png"}
    assert {Path(sheet).name for sheet in report["sheets"]} == names
    assert {path.name for path in to.iterdir()} == names | {"directions.safetensors"}
    sizes = {}
    for name in names:
        with Image.open(to / name) as picture:
            picture.load()
            sizes[name] = picture.size
            assert len(set(picture.convert("RGB").resize((60, 60)).get_flattened_data())) > 50, (
                f"{name} shows nothing"
            )
            if name.endswith("gif"):
                assert picture.n_frames == explore.FRAMES * explore.LOOPS and picture.info["loop"] == 0
    tile = 16 * 8 + 12  # enlarged, with the gutter
    assert sizes["interpolation.png"][0] == 4 * tile + 12
    assert sizes["directions.png"][0] == 7 * tile + 12
    with safe_open(to / "directions.safetensors", "pt") as file:
        found, sigmas = file.get_tensor("directions"), file.get_tensor("sigmas")
    torch.testing.assert_close(found @ found.T, torch.eye(2), atol=1e-4, rtol=0)
    assert (sigmas - 1).abs().max() < 0.1  # the noise is standard normal


@pytest.mark.parametrize("by", ["pca", "weights"])
def test_directions_may_come_from_elsewhere(by: str, gan: Path, tmp_path: Path) -> None:
    options = ExploreOptions(label=("dog",), rows=1, columns=2, directions=2, by=by, truncation=0.5)
    explore.explore(gan, tmp_path, options, quiet=True)
    with safe_open(tmp_path / "directions.safetensors", "pt") as file:
        found = file.get_tensor("directions")
    torch.testing.assert_close(found @ found.T, torch.eye(2), atol=1e-4, rtol=0)


def test_a_seeds_image_is_the_one_that_sample_draws(gan: Path, limner, tmp_path: Path) -> None:
    space = explore.open_space(gan)
    one = space.paint(space.points([3], ["dog"], 1.0), ["dog"])
    limner("sample", gan, "--n", 1, "--seed", 3, "--label", "dog", "--to", tmp_path / "x.png")
    from limner.pictures.grid import to_pil

    with Image.open(tmp_path / "x.png") as drawn:
        pairs = zip(to_pil(one[0]).tobytes(), drawn.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 3  # sample draws in half precision


def test_projection_finds_an_image_of_its_own(gan: Path, limner, tmp_path: Path) -> None:
    """An image that the run drew has a point: so it is found, with its label."""
    limner("sample", gan, "--n", 1, "--seed", 5000, "--label", "dog", "--to", tmp_path / "own.png")
    to = tmp_path / "to.png"
    report = json.loads(
        limner("project", gan, tmp_path / "own.png", "--to", to, "--prior", 0, "--json").stdout
    )
    assert report["psnr"] > report["psnr_start"] + 5 and report["psnr"] > 30
    assert report["label"] == "dog" and to.exists()
    with safe_open(report["latent"], "pt") as file:
        assert file.get_tensor("latent").shape == (8,) and file.metadata()["label"] == "dog"
    again = explore.project(gan, tmp_path / "own.png", to, ProjectOptions(prior=0), quiet=True)
    assert again.psnr == pytest.approx(report["psnr"], abs=0.1), "the same call finds the same point"
    for other, why in ((tmp_path / "own.png", "is read here"), (gan / "model.png", "exists already")):
        with pytest.raises(LimnerError, match=f"{why} and would be replaced"):
            explore.project(gan, tmp_path / "own.png", other, quiet=True)

    # and explore starts from the point, with its label
    few = ("--rows", 1, "--columns", 2, "--directions", 1)
    out = tmp_path / "explored"
    shown = json.loads(
        limner("explore", gan, "--to", out, *few, "--start", report["latent"], "--json").stdout
    )
    assert shown["points"][:2] == ["to", "seed 0"] and shown["labels"] == ["dog"]


def test_projection_starts_from_what_the_model_encodes(
    vae: Path, source: Path, limner, tmp_path: Path
) -> None:
    picture = source / "cat" / "000.png"
    space = explore.open_space(vae)
    assert not space.responds_to_label
    target = explore.open_picture(picture, space.spec, space.options)
    points, words = explore.candidates(space, target, ProjectOptions(tries=3))
    assert points.shape == (3 + 1 + 1, 4) and words == []
    torch.testing.assert_close(points[-1:], space.model.encode(target))
    to = tmp_path / "to.png"
    projection = explore.project(vae, picture, to, ProjectOptions(steps=50, prior=0, tries=1), quiet=True)
    found = explore.load_point(projection.latent, space)[0][None]
    begun, ended = (explore.distance(space.paint(p, ()), target).item() for p in (points[-1:], found))
    assert ended < begun and projection.label == ""
    none = explore.project(vae, picture, to, ProjectOptions(steps=0), quiet=True)
    assert none.psnr == none.psnr_start


def test_what_cannot_be_done_is_refused(gan: Path, vae: Path, source: Path, limner, tmp_path: Path) -> None:
    flow = tmp_path / "flow"
    limner("train", "flow", source, "--out", flow, *TINY, "--budget", "8img")
    picture = source / "cat" / "000.png"
    point = tmp_path / "point.safetensors"
    save_file({"latent": torch.zeros(5)}, point)
    refused = [
        (gan, {"label": ("cow",)}, "no label 'cow'"),
        (vae, {"label": ("cat",)}, "--label"),
        (vae, {"by": "weights"}, "--by jacobian"),
        (gan, {"rows": 0}, "choose 1 to 1000"),
        (gan, {"start": (point,)}, "another run"),
        (gan, {"start": (picture,)}, "not a point"),
        (gan, {"start": (tmp_path / "none.safetensors",)}, "not a point"),
    ]
    for run, options, why in refused:
        with pytest.raises(LimnerError, match=why):
            explore.explore(run, options=ExploreOptions(**options), quiet=True)
    for file, to, options, why in [
        (source, "x.png", {}, "no picture"),
        (picture, "x.jpg", {}, r"\.png"),
        (picture, "x.png", {"tries": 0}, "choose 1 or more"),
        (picture, "x.png", {"each_layer": True}, "--each-layer"),
    ]:
        with pytest.raises(LimnerError, match=why):
            explore.project(gan, file, to, ProjectOptions(**options), quiet=True)
    for command in (("explore", flow), ("project", flow, picture)):
        done = limner(*command, ok=False)
        assert done.returncode == 2 and "which has no latent space" in " ".join(done.stderr.split())


def test_labels_that_a_run_ignores_are_refused(source: Path, limner, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limner("train", "dcgan", source, "--out", run, *TINY, "--budget", "8img", "--model.condition", "none")
    assert not explore.open_space(run).responds_to_label
    with pytest.raises(LimnerError, match="takes no --label"):
        explore.explore(run, tmp_path / "to", ExploreOptions(label=("cat",)), quiet=True)
    few = ExploreOptions(rows=1, columns=2, directions=1)
    assert explore.explore(run, tmp_path / "to", few, quiet=True).labels == []
