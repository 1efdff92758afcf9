"""unCLIP: golden numbers, published sizes, and what each of its stages is given."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import limner
from limner import families
from limner.core import Batch, Blend, Canvas, Condition, Draws, ImageSpec, LimnerError
from limner.diffusion import objectives
from limner.diffusion.paths import Discrete, betas, noised
from limner.families._unclip import blur, embedding_scale, nearest_to
from limner.inference.prompts import warn_if_cut
from limner.networks.transformers.prior import PriorTransformer
from limner.networks.transformers.sequence import SequenceBlocks
from limner.networks.unets.stage import StageConfig, StageUNet, extra_tokens
from limner.synthesis.folder import ImageBatch
from tests.helpers import golden, paint

TEXTS = ["a red circle", "two blue squares", "", "一只猫"]
SPEC = ImageSpec(3, 16, 16, captions=True)


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = replace(families.load("unclip").presets["tiny"].model, **changes)
    return families.build("unclip", config, SPEC)


@pytest.fixture(scope="module")
def model() -> Any:
    """Every weight is random, so that everything that is given changes the result."""
    made = make()
    for part in (made.prior, made.decoder, made.upsampler):
        for weight in part.parameters():
            if weight.abs().max() < 1e-3:
                torch.nn.init.normal_(weight, std=0.05)
    return made.eval()


def pictures(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")


def draw(model: Any, condition: Condition, seeds: list[int], **sampling: Any) -> Tensor:
    canvases: Iterator[Canvas] = model.sample(condition, model.Sampling(**sampling), Draws(seeds))
    return list(canvases)[-1].picture()


# ---- golden numbers


def test_the_golden_prior_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean embedding is predicted, with one weight for all noise levels."""
    inputs, expected = golden("unclip_prior_loss")
    t, path = inputs["t"].long(), Discrete(betas("cosine", 1000))
    clean = make().double()
    config = clean.config
    width = config.comparer.embedding
    mean, std = torch.zeros(width).double(), torch.ones(width).double()
    mean[:3], std[:3] = inputs["mean"], inputs["std"]
    clean.embedding_mean, clean.embedding_square = mean, std**2 + mean**2
    embedding = torch.zeros(2, width).double()
    embedding[:, :3] = inputs["embedding"]
    z = clean.standardise(embedding)[:, :3]
    assert_close(z, expected["normalised"], rtol=1e-9, atol=1e-9)
    assert_close(path.alphas_cumprod[t], expected["alphas_cumprod"], rtol=1e-9, atol=1e-9)
    assert_close(noised(path, z, inputs["noise"], t), expected["noisy"], rtol=1e-9, atol=1e-9)

    def network(x: Tensor, times: Tensor) -> Tensor:
        assert_close(x, expected["noisy"], rtol=1e-9, atol=1e-9)
        return inputs["predicted"]

    monkeypatch.setattr(objectives.torch, "randn_like", lambda x: inputs["noise"])
    loss = objectives.clean_loss(network, z, path, t)["data"]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)


def test_the_golden_scale_of_embeddings() -> None:
    inputs, expected = golden("unclip_prior_scale")
    assert embedding_scale(inputs["width"]) == inputs["scale"]
    assert embedding_scale(inputs["width"]) / inputs["width"] ** 0.5 == pytest.approx(expected["deviation"])
    scaled = make(embeddings="scaled")
    unit = torch.nn.functional.normalize(torch.randn(500, 32), dim=1)
    assert scaled.standardise(unit).square().mean().sqrt().item() == pytest.approx(
        expected["deviation"], rel=1e-5
    )


def test_the_golden_choice_of_two_samples() -> None:
    inputs, expected = golden("unclip_two_samples")
    text, samples = inputs["text"], inputs["samples"]
    cosines = torch.nn.functional.cosine_similarity(samples, text[None], dim=1)
    assert_close(cosines, expected["dot"], rtol=1e-9, atol=1e-9)
    assert_close(nearest_to(text[None], samples[None])[0], samples[expected["chosen"]])
    assert_close(nearest_to(text[None], samples.flip(0)[None])[0], samples[expected["chosen"]])


def test_the_golden_extra_tokens() -> None:
    inputs, expected = golden("unclip_extra_tokens")
    found = extra_tokens(inputs["embedding"] @ inputs["weight"].T, inputs["tokens"])
    assert_close(found, expected["tokens"], rtol=1e-9, atol=1e-9)


# ---- sizes, counted on the public implementations; the preset paper has the others


@pytest.mark.parametrize(("depth", "parameters"), [(20, 1_022_028_544), (24, 1_223_461_632)])
def test_the_size_of_the_prior(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        prior = PriorTransformer(SequenceBlocks(2048, depth, 32), 768, 768, 77)
    assert sum(p.numel() for p in prior.parameters()) == parameters
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in prior.named_children()}
    assert count == {
        "time": 8_392_704, "text_proj": 1_574_912, "text_embedding_proj": 1_574_912, "noisy_proj": 1_574_912,
        "transformer": depth * 50_358_272, "norm": 4_096, "head": 1_573_632,
    }  # fmt: skip


# ---- the prior


def test_the_prior_is_causal_and_ignores_padding() -> None:
    torch.manual_seed(0)
    prior = PriorTransformer(SequenceBlocks(16, 2, 2), 6, 5, 9).eval()
    for weight in prior.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, text, t = torch.randn(2, 6), torch.randn(2, 6), torch.tensor([3.0, 900.0])
    tokens = torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    found = prior(x, t, text, tokens, mask)
    alone = prior(x[1:], t[1:], text[1:], tokens[1:, :2], mask[1:, :2])
    assert_close(found[1], alone[0])
    for changed in (
        prior(x + 1, t, text, tokens, mask), prior(x, t + 1, text, tokens, mask),
        prior(x, t, text + 1, tokens, mask), prior(x, t, text, tokens + 1, mask),
    ):  # fmt: skip
        assert ((changed - found).abs().amax(1) > 1e-4).all()
    seen = []
    prior.transformer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    prior(x, t, text, tokens, mask)
    prior(x, t, text, torch.cat([tokens[:, :3], tokens[:, 3:] + 1], dim=1), mask)
    assert_close(seen[0][1][0, :3], seen[1][1][0, :3])  # places before the change do not see it
    assert not torch.allclose(seen[0][1][0, 3:], seen[1][1][0, 3:], atol=1e-4)


def test_embeddings_are_measured_on_the_first_images_and_in_training_alone() -> None:
    made, image = make(), pictures(64)
    batches = [Batch(part, Condition(32, text=["a"] * 32)) for part in image.split(32)]
    made.eval().prior_loss(batches[0])
    assert made.measured == 0
    made.train()
    for batch in batches:
        made.prior_loss(batch)
    embedding = made.embed_images(image)
    assert made.measured == 64
    z = made.standardise(embedding)
    assert_close(z.mean(0), torch.zeros(32), atol=1e-3, rtol=0)
    assert_close(z.std(0, correction=0), torch.ones(32), atol=1e-2, rtol=0)
    assert_close(made.restore(z), embedding, atol=1e-5, rtol=1e-4)
    made.measured.fill_(10_000)
    mean = made.embedding_mean.clone()
    made.prior_loss(batches[0])
    assert torch.equal(made.embedding_mean, mean)


# ---- the decoder


def test_embedding_and_text_are_left_out_separately() -> None:
    made, count = make(embedding_dropout=0.1, caption_dropout=0.5), 2000
    seen: list[tuple[Tensor, list[str]]] = []

    def embed(embedding: Tensor, texts: list[str], encode: Any) -> Any:
        seen.append((embedding, texts))
        raise InterruptedError

    made.decoder.embed = embed
    with pytest.raises(InterruptedError):
        made.decoder_loss(Batch(pictures(1).expand(count, -1, -1, -1), Condition(count, text=["a"] * count)))
    absent = (seen[0][0] == made.decoder.projection.absent).all(1)
    blank = torch.tensor([not text for text in seen[0][1]])
    assert absent.float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert blank.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (absent & blank).float().mean().item() == pytest.approx(0.05, abs=0.02), "independently"


def test_a_pictures_own_embedding_replaces_the_priors(model: Any) -> None:
    image = pictures(2)
    prior = model.prior.forward
    try:
        model.prior.forward = None  # is not called
        varied = draw(model, Condition(2, image=image), [3, 4])
        other = draw(model, Condition(2, image=image.flip(0)), [3, 4])
    finally:
        model.prior.forward = prior
    assert (varied - other).abs().amax((1, 2, 3)).min() > 1e-4
    text = draw(model, Condition(2, text=["a red circle"] * 2, image=image), [3, 4])
    assert not torch.allclose(text, varied, atol=1e-5), "a prompt beside the picture is read"


def test_no_text_draws_from_the_embedding_alone(model: Any) -> None:
    image = pictures(1)
    draws = [
        draw(model, Condition(1, text=[text], image=image), [3], no_text=True)
        for text in ("a red circle", "")
    ]
    assert_close(draws[0], draws[1])
    by_text = [
        draw(model, Condition(1, text=[text]), [3], no_text=True) for text in ("a red circle", "two squares")
    ]
    assert not torch.allclose(by_text[0], by_text[1], atol=1e-5), "the prior still reads it"


@pytest.mark.parametrize("given", ["image", "text"])
def test_a_blend_leads_from_one_end_to_the_other(model: Any, given: str) -> None:
    image = pictures(2)
    ends = [
        Condition(3, image=image[i : i + 1].expand(3, -1, -1, -1))
        if given == "image"
        else Condition(3, text=[TEXTS[i]] * 3)
        for i in range(2)
    ]
    way = replace(ends[0], blend=Blend(ends[1], torch.tensor([0.0, 0.5, 1.0])))
    found = draw(model, way, [5, 5, 5])
    assert (found[1:] - found[:-1]).abs().amax((1, 2, 3)).min() > 1e-5
    if given == "image":
        for place, end in ((0, 0), (2, 1)):
            assert_close(found[place], draw(model, ends[end][:1], [5])[0], atol=1e-5, rtol=1e-4)
    assert_close(draw(model, way[1:2], [5])[0], found[1], atol=1e-5, rtol=1e-4)


def test_canvases_count_the_steps_of_all_stages(model: Any) -> None:
    sampling = model.Sampling(steps=3, prior_steps=4, upsampler_steps=2)
    for condition, before in (
        (Condition(1, text=["a"]), 4),
        (Condition(1, image=pictures(1)), 0),
        (Condition(1, text=["a"], blend=Blend(Condition(1, text=["b"]), torch.ones(1))), 8),
    ):
        canvases = list(model.sample(condition, sampling, Draws([0])))
        assert [canvas.done for canvas in canvases] == list(range(1, before + 6))
        assert {canvas.total for canvas in canvases} == {before + 5}
        assert all(canvas.picture().shape == (1, 3, 16, 16) for canvas in canvases)


def test_guidance_that_was_not_learnt_is_refused() -> None:
    made = make(embedding_dropout=0.0, condition_dropout=0.0).eval()
    assert draw(made, Condition(1, text=["a"]), [0]).isfinite().all()
    flags = {"guidance": "embedding-dropout", "prior_guidance": "condition-dropout"}
    for name, dropout in flags.items():
        said = f"with --{name.replace('_', '-')} 2: .* train with --model.{dropout} above 0"
        with pytest.raises(LimnerError, match=said):
            draw(made, Condition(1, text=["a"]), [0], **{name: 2.0})


# ---- the upsampler


def test_the_upsampler_sees_blur_in_training_only(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image, seen = pictures(2), []
    with monkeypatch.context() as patch:
        patch.setattr(model.upsampler, "forward", lambda x, t: seen.append(x[:, 3:]) or x[:, :3])
        model.upsampler_loss(Batch(image, Condition(2)))
        sharp = model.enlarge(model.shrink(image))
        assert (seen[0] - sharp).abs().max() > 1e-3
        small = model.shrink(image)
        stage = model.upsampler_stage(small, model.upsampler_plan(model.Sampling()))
        one = torch.ones(2)
        stage.denoise(image, one, one, one, stage.embed(Condition(2)))
        assert_close(seen[1], sharp)


def test_blur_is_a_gaussian_of_three_pixels() -> None:
    point = torch.zeros(2, 1, 5, 5)
    point[:, :, 2, 2] = 1
    found = blur(point, torch.tensor([0.6, 0.0])[:, None, None, None])
    weights = torch.exp(-0.5 * torch.tensor([1.0, 0, 1]) ** 2 / 0.36)
    weights = weights / weights.sum()
    assert_close(found[0, 0, 1:4, 1:4], torch.outer(weights, weights))
    assert_close(found[1], point[1])
    assert_close(blur(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 4, 4))


def test_crops_need_a_network_without_positions() -> None:
    adm = StageConfig("adm", width=16, multiples=(1, 2), attention_resolutions=(), head_width=8)
    made = make(upsampler=adm, crop=2)
    assert made.upsampler_loss(Batch(pictures(2), Condition(2)))["velocity"].isfinite()
    with pytest.raises(LimnerError, match=r"--model\.crop 2"):
        make(crop=2)


def test_sides_that_the_upsampler_does_not_divide_are_refused() -> None:
    config = replace(families.load("unclip").presets["tiny"].model, scale=4)
    with pytest.raises(LimnerError, match=r"multiple of that, not 18x16: choose another --size"):
        families.build("unclip", config, ImageSpec(3, 18, 16, captions=True))


def test_the_decoder_reads_text_by_clip_or_by_its_own_encoder(model: Any) -> None:
    by_clip = make(read_by="clip")
    assert by_clip.decoder.text is None and model.decoder.text is not None
    rows = by_clip.decoder.embed(torch.randn(2, 32), TEXTS[:2], by_clip.encode_texts)
    assert rows.tokens.shape[1] == 4 + by_clip.encode_texts(TEXTS[:2]).tokens.shape[1]
    assert rows.mask[:, :4].all()


def test_a_stage_unet_adds_to_the_times_embedding() -> None:
    for network in ("quick", "adm"):
        torch.manual_seed(0)
        unet = StageUNet(StageConfig(network, width=16, multiples=(1, 2), head_width=8), 3, 3, (8, 8), 6)
        for weight in unet.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        x, t, tokens, mask = (
            torch.randn(1, 3, 8, 8),
            torch.tensor([0.3]),
            torch.randn(1, 2, 6),
            torch.ones(1, 2).bool(),
        )
        plain = unet(x, t, torch.zeros(1, 64), tokens, mask)
        assert plain.shape == x.shape
        assert not torch.allclose(plain, unet(x, t, torch.ones(1, 64), tokens, mask), atol=1e-4)
        assert not torch.allclose(plain, unet(x, t, torch.zeros(1, 64), tokens + 1, mask), atol=1e-4)


# ---- the pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unclip")
    images = paint(folder / "images", 24, (16, 16))
    for path in images.glob("*.png"):
        path.with_suffix(".txt").write_text("a red thing" if int(path.stem) % 2 else "a blue thing")
    limner.train(
        "unclip", images, folder / "run", preset="tiny", budget="48img", quiet=True,
        data={"cache": str(folder / "cache")}, training={"samples": 0, "precision": "float32"},
    )  # fmt: skip
    return folder


def test_a_run_draws_variations_and_blends(run: Path) -> None:
    pipeline, (one, other) = limner.load(run / "run"), sorted((run / "images").glob("*.png"))[:2]
    varied = pipeline.tensors(2, image=str(one))
    assert not torch.equal(varied[0], varied[1]), "each image has its own seed"
    way = pipeline.tensors(3, blend=(str(one), str(other)), seed=1)
    assert_close(way[0], pipeline.tensors(1, image=str(one), seed=1)[0], atol=1e-5, rtol=1e-4)
    assert_close(way[2], pipeline.tensors(1, image=str(other), seed=1)[0], atol=1e-5, rtol=1e-4)
    assert pipeline.tensors(3, blend=("a red thing", str(other))).isfinite().all()


def test_a_run_without_an_upsampler_draws_at_the_decoders_size(run: Path, tmp_path: Path) -> None:
    limner.train(
        "unclip", run / "images", tmp_path / "run", preset="tiny", budget="32img", quiet=True,
        data={"cache": str(run / "cache")}, training={"samples": 0},
        model={"scale": 1, "clip": str(run / "run" / "clip")},
    )  # fmt: skip
    pipeline = limner.load(tmp_path / "run")
    assert not list(pipeline.model.upsampler.parameters())
    assert pipeline.tensors(1, prompt="a red thing").shape == (1, 3, 16, 16)


def test_faulty_blends_are_one_sentence(run: Path) -> None:
    pipeline = limner.load(run / "run")
    with pytest.raises(LimnerError, match=r"There is no picture missing\.png"):
        pipeline.tensors(3, blend=("missing.png", "a red thing"))
    for others in ({"prompt": "a"}, {"image": "x.png"}, {"between": (1, 2)}):
        with pytest.raises(LimnerError, match="--blend names both ends"):
            pipeline.tensors(3, blend=("a", "b"), **others)


# ---- what a review found


def test_a_copy_is_on_the_same_path() -> None:
    """The moving average is a deep copy."""
    one = make(predict="noise")
    other = copy.deepcopy(one)
    time = torch.tensor([500.0])
    assert torch.equal(one.time(time), other.time(time)) and float(other.time(time)) == 0.5
    paths = [m.pixel_plan((8, 8), 4, 1.0).path for m in (one, other)]
    assert all(isinstance(path, Discrete) for path in paths)


def test_variances_are_learnt_beside_noise_alone() -> None:
    with pytest.raises(LimnerError, match=r"add --model.predict noise"):
        make(learn_variance=True)
    make(learn_variance=True, predict="noise")


def test_a_folder_of_a_blend_says_no_one_text() -> None:
    blend = Blend(Condition(2, text=["a dog", "a dog"]), torch.tensor([0.0, 1.0]))
    condition = Condition(2, text=["a cat", "a cat"], blend=blend)
    images = ImageBatch(torch.zeros(2, 3, 16, 16), [0, 1], condition, SPEC)
    assert [set(json.loads(images.metadata(i))) for i in range(2)] == [{"file_name", "seed"}] * 2


def test_a_prompt_that_any_of_its_readers_cuts_is_said() -> None:
    config = families.load("unclip").presets["tiny"].model
    comparer = replace(config.comparer, vocabulary=replace(config.comparer.vocabulary, length=200))
    short_of_text = make(comparer=comparer, text=replace(config.text, length=20))
    with pytest.warns(UserWarning, match="longer than the 20 bytes"):
        warn_if_cut(short_of_text, ["a red circle above a small blue square"])


def test_a_clip_of_another_size_is_refused_with_the_setting_that_helps(tmp_path: Path) -> None:
    images, quiet = (
        paint(tmp_path / "images", 12, (24, 24)),
        {"preset": "tiny", "budget": "8img", "quiet": True},
    )
    for path in images.glob("**/*.png"):
        path.with_suffix(".txt").write_text(f"picture {path.stem}", "utf-8")
    limner.train("clip", images, tmp_path / "clip", size=(24, 24), **quiet)
    with pytest.raises(
        LimnerError, match=r"was trained on 3x24x24: name another .* set --model\.clip-size to its"
    ):
        limner.train(
            "unclip", images, tmp_path / "run", size=(16, 16), model={"clip": str(tmp_path / "clip")}, **quiet
        )
