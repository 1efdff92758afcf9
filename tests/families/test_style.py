"""style: its styles by name, blends and strength, the pictures that it learns from, its losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import limner
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families import style as module
from limner.families._restyle import maps_of
from limner.families.style import Style, StyleConfig, StyleSampling, names_of, shares_of
from limner.losses.perceptual import feature_maps
from limner.losses.style import gram_matrix
from tests.helpers import paint

TINY = Style.presets["tiny"].model


def build(channels: int = 3, **settings: Any) -> Style:
    torch.manual_seed(0)
    config = StyleConfig(
        **{"perceptual_network": "random", "style_size": 32, "width": 4, "blocks": 1, **settings}
    )
    model = Style(config, ImageSpec(channels, 32, 32))
    for p in model.network.parameters():
        p.data += 0.1 * torch.randn_like(p)  # so that styles differ before they are learnt
    return model.requires_grad_(False).eval()


def apply(model: Style, image: Tensor, **sampling: Any) -> Tensor:
    draws = Draws(range(len(image)))
    return model.translate(image, Condition(len(image)), StyleSampling(**sampling).fit(model), draws)


def picture(channels: int = 3, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, channels, 32, 40, generator=generator) * 2 - 1
    if channels == 4:
        image[:, :3] = torch.minimum(image[:, :3], image[:, 3:])  # premultiplied
    return image


# ---- styles by name


def test_styles_are_named_after_their_files() -> None:
    assert names_of("art/waves.jpg, mosaic.png,waves.2.webp") == ["waves", "mosaic", "waves.2"]


@pytest.mark.parametrize(
    ("styles", "said"),
    [(" ,", "no styles"), ("a/waves.jpg,b/waves.png", "named waves"), ("waves,x/waves.png", "named waves")],
)
def test_styles_without_a_name_of_their_own_are_refused(styles: str, said: str) -> None:
    with pytest.raises(LimnerError, match=said):
        names_of(styles)


@pytest.mark.parametrize(
    ("style", "shares"),
    [
        ("", [1, 0, 0]),
        ("waves", [0, 1, 0]),
        ("waves:0.6,mosaic:0.2", [0.25, 0.75, 0]),
        ("waves, mosaic", [0.5, 0.5, 0]),
        ("a:b:3", [0, 0, 1]),
        ("a:b", [0, 0, 1]),
    ],
)
def test_shares_of_a_blend(style: str, shares: list[float]) -> None:
    assert shares_of(style, ["mosaic", "waves", "a:b"]) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("wave", "no style 'wave'. Did you mean waves?"),
        ("zzz", "no style 'zzz'. There are mosaic and waves."),
        ("waves:x", "share 'x' of the style waves is not a number"),
        ("waves:0", "not positive"),
        ("waves:-1,mosaic:2", "not positive"),
        ("waves:nan", "not positive"),
        ("waves:inf", "not positive"),
    ],
)
def test_a_style_that_is_not_there_is_one_sentence(style: str, said: str) -> None:
    with pytest.raises(LimnerError, match=said) as error:
        StyleSampling(style=style).fit(build())
    assert str(error.value).endswith((".", "?")) and "\n" not in str(error.value)


# ---- what is painted


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_strength_0_is_the_given_picture(channels: int) -> None:
    model, image = build(channels), picture(channels)
    made = apply(model, image, strength=1.0)
    assert torch.equal(apply(model, image, strength=0.0), image)
    torch.testing.assert_close(apply(model, image, strength=0.5), (image + made) / 2)
    assert (made - image).abs().max() > 0.1


def test_alpha_stays_and_colours_stay_below_it() -> None:
    image = picture(4)
    made = apply(build(4), image)
    assert torch.equal(made[:, 3:], image[:, 3:])
    assert (made[:, :3] <= made[:, 3:] + 1e-6).all()
    opaque = torch.cat([image[:, :3], torch.ones_like(image[:, 3:])], dim=1)
    torch.testing.assert_close(apply(build(4), opaque)[:, :3], apply(build(3), image[:, :3]))


def test_styles_differ_and_a_blend_lies_between_what_they_learnt() -> None:
    model, image = build(), picture()
    one, other = (apply(model, image, style=name) for name in ("mosaic", "waves"))
    assert (one - other).abs().max() > 0.05
    assert torch.equal(apply(model, image), one)
    blend = model.network(image, torch.tensor([[0.25, 0.75]]).expand(2, 2)).clamp(-1, 1)
    torch.testing.assert_close(apply(model, image, style="waves:3,mosaic:1"), blend)


def test_training_and_evaluation_paint_the_same() -> None:
    model, image = build(), picture()
    painted = apply(model, image)
    assert torch.equal(apply(model.train(), image), painted)


# ---- losses


def test_losses_of_the_paper_are_means_over_features() -> None:
    """As pytorch/examples has them: content of one map, and Gram matrices over C H W, each times its weight."""
    model = build(styles="waves", relative=False, content=1e5, style=1e10)
    image = picture()
    terms = model.loss(Batch(image, Condition(2)))
    made = feature_maps("random", model.network(image, torch.ones(2, 1)))
    given, style = (feature_maps("random", x) for x in (image, model.seen(model.pictures)))
    content = 1e5 * (made[1] - given[1]).square().mean()
    pairs = [(gram_matrix(a), gram_matrix(b)) for a, b in zip(made, style, strict=True)]
    torch.testing.assert_close(terms["content"], content)
    torch.testing.assert_close(terms["style"], sum(1e10 * (a - b).square().mean() for a, b in pairs))


def test_relative_losses_do_not_depend_on_the_scale_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(), Batch(picture(), Condition(2))
    torch.manual_seed(3)
    before = model.loss(batch)
    monkeypatch.setattr(module, "maps_of", lambda *x, **y: [7 * m for m in maps_of(*x, **y)])
    model.targets = (None, [])
    torch.manual_seed(3)
    for name, value in model.loss(batch).items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-4)


def test_grams_are_those_of_the_pictures_that_it_holds_now() -> None:
    """Kept between steps, and made again once the pictures change: learnt, or read from a checkpoint."""
    model = build()
    before = model.style_grams()
    assert model.style_grams() is before
    model.learn_pictures({})
    other = {file: torch.rand(1, 3, 32, 32) * 2 - 1 for file in model.files}
    model.learn_pictures(other)
    fresh = build()
    fresh.load_state_dict(model.state_dict())
    for mine, theirs, old in zip(model.style_grams(), fresh.style_grams(), before, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert not torch.allclose(mine, old)


def test_a_picture_of_one_colour_has_a_finite_slope() -> None:
    """A white tile, in the layout of training: each norm may enlarge the rounding of the one before 300 times."""
    model = build(width=16, blocks=5).to(memory_format=torch.channels_last).requires_grad_(True)
    white = torch.ones(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    sum(model.loss(Batch(white, Condition(2))).values()).backward()
    assert torch.nn.utils.get_total_norm([p.grad for p in model.network.parameters()]).isfinite()
    image = picture()
    assert torch.equal(module.uneven(image), image)


def test_variation_is_a_mean_over_pixels() -> None:
    model = build(variation=2.0)
    terms = model.loss(Batch(picture(), Condition(2)))
    doubled = model.loss(Batch(picture().repeat(1, 1, 2, 1), Condition(2)))
    assert 0 < float(terms["variation"]) < 20
    assert float(doubled["variation"]) == pytest.approx(float(terms["variation"]), rel=0.3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"content_map": 3}, "--model.content-map 3 is too high, since random has 3 feature maps"),
        ({"perceptual_network": "vgg16.safetensors"}, "vgg16.safetensors is no file"),
    ],
)
def test_features_that_are_not_there_are_refused_before_training(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LimnerError, match=said):
        build(**settings).objectives()


# ---- style pictures as files


def train(tmp_path: Path, styles: str, family: str = "style", **settings: Any) -> Path:
    photos = (
        paint(tmp_path / "photos", 8, (16, 16)) if not (tmp_path / "photos").exists() else tmp_path / "photos"
    )
    limner.train(
        family, photos, tmp_path / "run", preset="tiny", budget="16img", quiet=True,
        model={"styles": styles, "perceptual_network": "random", **settings},
        training={"samples": 0, "precision": "float32", "average": 0.0},
    )  # fmt: skip
    return tmp_path / "run"


def test_a_run_holds_its_style_pictures(tmp_path: Path) -> None:
    red = Image.new("RGB", (90, 50), (255, 0, 0))
    red.paste((0, 0, 255), (20, 0, 70, 50))  # the middle 50 x 50
    red.save(tmp_path / "red.png")
    clear = Image.new("RGBA", (40, 40), (0, 255, 0, 0))
    clear.save(tmp_path / "clear.webp")
    run = train(tmp_path, f"{tmp_path / 'red.png'},{tmp_path / 'clear.webp'},waves")
    for file in ("red.png", "clear.webp"):
        (tmp_path / file).unlink()
    model = limner.load(run).model
    assert isinstance(model, Style) and model.names == ["red", "clear", "waves"]
    assert model.pictures[0].float().mean((1, 2)).tolist() == pytest.approx([0, 0, 255], abs=2)
    assert model.pictures[1].eq(255).all()  # what is transparent is seen over white
    assert model.pictures[2].float().std() > 10


@pytest.mark.parametrize("fault", ["missing", "small", "text", "empty"])
def test_style_pictures_that_cannot_be_used_are_refused_before_training(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "art.png"
    if fault == "small":
        Image.new("RGB", (1, 1)).save(file)
    elif fault == "text":
        file.write_text("no picture")
    elif fault == "empty":
        file.write_bytes(b"")
    with pytest.raises(LimnerError, match=r"art\.png") as error:
        train(tmp_path, str(file))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    if fault == "small":
        assert "1x1 pixels, too few to learn from" in str(error.value)


def test_the_commands_paint_in_the_styles_of_files(limner: Any, tmp_path: Path) -> None:
    """A picture of any size; strength 0 gives back its pixels; an unknown style is one sentence."""
    photos, art, to = paint(tmp_path / "photos", 8, (32, 32)), tmp_path / "art", tmp_path / "out.png"
    paint(art, 2, (40, 60), seed=5)
    settings = ("--size", 32, "--preset", "tiny", "--budget", "16img", "--training.samples", 0)
    styles = f"{art / '000.png'},{art / '001.png'}"
    limner("train", "style", photos, "--model.styles", styles, *settings, "--out", tmp_path / "run")
    given = tmp_path / "given.png"
    Image.effect_noise((37, 21), 80).convert("RGB").save(given)
    command = ("apply", tmp_path / "run", given, "--to", to, "--overwrite")
    limner(*command, "--style", "001:2,000", "--strength", 0)
    assert Image.open(to).tobytes() == Image.open(given).tobytes()
    limner(*command, "--style", "001:2,000")
    assert Image.open(to).size == (37, 21) and Image.open(to).tobytes() != Image.open(given).tobytes()
    refused = limner(*command, "--style", "002x", ok=False)
    assert refused.returncode == 2 and "has no style '002x'" in refused.stderr
