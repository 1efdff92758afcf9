"""Runs to and from diffusers: what its own networks, with random weights, make of the same input."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import limner
from limner import checkpoint, families
from limner.config import Run, write_run
from limner.core import Condition, DataOptions, Draws, Exchanges, ImageSpec, LimnerError, Model
from limner.diffusion.paths import Discrete, betas
from limner.inference import exchange
from limner.networks import exchange as exchanging

diffusers = pytest.importorskip("diffusers", reason="exchange is not tested: pip install diffusers")

DDPM: Any = families.load("ddpm")
SMALL = DDPM.Config(
    network="ddpm", width=64, multiples=(1, 2), blocks=1, attention_resolutions=(8,), head_width=0
)
UNET: dict[str, Any] = {  # as google/ddpm-cifar10-32, but smaller
    "sample_size": 16, "block_out_channels": (64, 128), "layers_per_block": 1, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip


def stirred(module: nn.Module) -> Any:
    """With random weights of a size that leaves no part without a say."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        scale = parameter.ndim == 1 and name.endswith("weight")  # of a norm
        std = 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        nn.init.normal_(parameter, float(scale), std)
    return module.eval()


def kept(model: Model, out: Path, family: str) -> Path:
    """A run of the model."""
    run = Run(family, (), "tiny", None, "1img", 0, model.config, family_training(family), DataOptions())
    out.mkdir(parents=True)
    checkpoint.write_model(
        out / checkpoint.MODEL, model.state_dict(), checkpoint.make_header(run, model.spec, 7)
    )
    write_run(out, run)
    return out


def family_training(family: str) -> Any:
    return families.load(family).presets["tiny"].training


def same_guess(unet: Any, model: Any, label: torch.Tensor | None = None) -> None:
    """Of noisy images at several times."""
    spec = model.spec
    x, t = torch.randn(3, *spec.shape), torch.tensor([0, 431, 999])
    with torch.no_grad():
        theirs = unet(x, t, label).sample
        ours = model.network(x, t, label)
    assert theirs.std() > 0.1
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "cifar": {},
    "heads": {"attention_head_dim": 32},
    "later": {
        "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5, "downsample_padding": 1,
        "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32, "attention_head_dim": 64,
        "num_class_embeds": 3, "out_channels": 6, "sample_size": (16, 24),
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_unet_there_and_back(variant: str, tmp_path: Path) -> None:
    changes = VARIANTS[variant]
    unet = stirred(diffusers.UNet2DModel(**{**UNET, **changes}))
    learned = "learned_range" if "out_channels" in changes else "fixed_large"
    scheduler = diffusers.DDPMScheduler(variance_type=learned)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "theirs")

    assert exchange.from_diffusers(tmp_path / "theirs", tmp_path / "run") == "ddpm"
    model: Any = limner.load(tmp_path / "run").model
    label = torch.tensor([0, 2, 1]) if model.network.classes else None
    same_guess(unet, model, label)

    exchange.to_diffusers(tmp_path / "run", tmp_path / "ours")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    same_guess(pipeline.unet.eval(), model, label)
    assert pipeline.scheduler.config.variance_type == learned
    assert unet.state_dict().keys() == pipeline.unet.state_dict().keys()
    for name, value in unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], value)


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
def test_what_is_predicted_is_told_there_and_back(predict: str) -> None:
    parts = DDPM(dataclasses.replace(SMALL, predict=predict), ImageSpec(3, 16, 16)).to_diffusers()
    kind = {"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}[predict]
    assert parts[-1].settings["prediction_type"] == kind
    back = DDPM.from_diffusers(parts)
    assert back is not None and back.config.predict == predict and back.config.headroom == 0


def test_the_published_networks_settings_are_the_paper_presets() -> None:
    """google/ddpm-cifar10-32, which has all of Ho 2020's parameters."""
    preset = DDPM.presets["paper"]
    with torch.device("meta"):
        model = DDPM(preset.model, ImageSpec(3, 32, 32))
        unet, pipeline = model.to_diffusers()[1], model.to_diffusers()[0]
        theirs = diffusers.UNet2DModel.from_config(unet.settings)
    assert pipeline.settings["_class_name"] == "DDPMPipeline"
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in unet.weights.items()}
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
    expected = {
        **UNET, "sample_size": 32, "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    assert {name: unet.settings[name] for name in expected} == expected


@pytest.mark.parametrize("headroom", [0.0, 0.1])
def test_their_pipeline_draws_what_ours_draws(headroom: float, tmp_path: Path) -> None:
    """Of the same noise, by DDIM; guesses are clipped, and as far out as ours are."""
    model = stirred(DDPM(dataclasses.replace(SMALL, headroom=headroom), ImageSpec(3, 16, 16)))
    parts = kept(model, tmp_path / "run", "ddpm")
    exchange.to_diffusers(parts, tmp_path / "ours")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(10)
    draws = Draws([3])
    x = draws.normal(3, 16, 16)
    with torch.no_grad():
        for t in scheduler.timesteps:
            guess = pipeline.unet.eval()(x, t).sample
            x = scheduler.step(guess, t, x, use_clipped_model_output=True).prev_sample
    *_, last = model.sample(Condition(1), DDPM.Sampling(steps=10, solver="ddim", spacing="ddim"), Draws([3]))
    assert last.picture().std() > 0.3
    assert_close(last.picture(), x.clamp(-1, 1), atol=1e-2, rtol=0)


def test_old_names_and_a_flat_folder(tmp_path: Path) -> None:
    """As published before 2023: attention under other names, the network at the top."""
    unet = stirred(diffusers.UNet2DModel(**UNET))
    unet.save_pretrained(tmp_path)
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path)
    weights = exchange.read_weights(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in list(weights):
        for new, before in old.items():
            if f".{new}." in name:
                weights[name.replace(f".{new}.", f".{before}.")] = weights.pop(name)
    exchange.save_file(weights, tmp_path / exchange.WEIGHTS)
    exchange.from_diffusers(tmp_path, tmp_path / "run")
    model: Any = limner.load(tmp_path / "run").model
    assert model.config.schedule == "cosine"
    same_guess(unet, model)


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    def model(**changes: Any) -> Any:
        return DDPM(dataclasses.replace(SMALL, **changes), ImageSpec(3, 16, 16))

    for changes, reason in (
        ({"network": "quick"}, "network"),
        ({"network": "adm", "head_width": 32}, "residual blocks"),
        ({"steps": 100}, "100 steps"),
        ({"width": 32}, "16 to 32 groups"),
    ):
        with pytest.raises(LimnerError, match=reason):
            model(**changes).to_diffusers()
    with pytest.raises(LimnerError, match="18x16"):
        DDPM(dataclasses.replace(SMALL, multiples=(1, 2, 2)), ImageSpec(3, 18, 16)).to_diffusers()

    def importing(**changes: Any) -> None:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        diffusers.UNet2DModel(**{**UNET, **changes}).save_pretrained(folder)
        exchange.from_diffusers(folder, folder / "run")

    for changes, reason in (
        ({"act_fn": "gelu"}, "act_fn"),
        ({"down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")}, "ResnetDownsampleBlock2D"),
        ({"norm_eps": 1e-5}, "norm_eps"),
        ({**VARIANTS["later"], "attn_norm_num_groups": None}, "attn_norm_num_groups"),
        ({"norm_num_groups": 16}, "norm_num_groups"),
        ({"out_channels": 5}, "5 channels"),
        ({"block_out_channels": (64, 96)}, "multiples"),
    ):
        with pytest.raises(LimnerError, match=reason):
            importing(**changes)


SCHEDULERS = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]


@pytest.mark.filterwarnings("ignore")  # theirs, and ours of steps that are not kept
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_read_as_it_is_or_refused(name: str) -> None:
    try:
        theirs = getattr(diffusers, name)()
    except Exception as error:  # needs another library, or arguments
        pytest.skip(str(error)[:50])
    settings = {"_class_name": name, **getattr(theirs, "config", {})}
    if name not in ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler"):
        with pytest.raises(exchanging.ExchangeError, match=name):
            exchanging.scheduler_options(settings)
        return
    for beta_schedule in ("linear", "squaredcos_cap_v2"):
        theirs = getattr(diffusers, name)(beta_schedule=beta_schedule)
        schedule, steps, predict, learned, headroom = exchanging.scheduler_options(
            {"_class_name": name, **theirs.config}
        )
        assert predict == "noise" and not learned and headroom == 0
        assert_close(Discrete(betas(schedule, steps)).alphas_cumprod.float(), theirs.alphas_cumprod)


CHANGED: dict[str, Any] = {  # settings of DDPMScheduler and DDIMScheduler, and values that we do not have
    "num_train_timesteps": 500, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "sigmoid",
    "trained_betas": [0.1] * 1000, "variance_type": "learned", "clip_sample": False, "clip_sample_range": 2.0,
    "prediction_type": "flow_prediction", "thresholding": True, "rescale_betas_zero_snr": True,
    "new_setting": None, "tensor_format": "np",
}  # fmt: skip
HARMLESS = {  # of thresholding, which is off, and of the solver's steps, which a person chooses
    "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0, "timestep_spacing": "trailing", "steps_offset": 1,
    "set_alpha_to_one": False,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_every_setting_of_a_scheduler_is_known_or_refused(name: str) -> None:
    usual = {"_class_name": name, **getattr(diffusers, name)().config}
    own = {key for key in usual if not key.startswith("_")}
    assert own <= {*CHANGED, *HARMLESS}
    for key, value in CHANGED.items():
        if key in own or key in ("new_setting", "tensor_format"):
            with pytest.raises(exchanging.ExchangeError, match=f"its (setting )?{key}"):
                exchanging.scheduler_options({**usual, key: value})
    for key in own & {*HARMLESS}:
        assert exchanging.scheduler_options({**usual, key: HARMLESS[key]})[:3] == ("linear", 1000, "noise")


def test_what_a_scheduler_says_of_steps_is_said() -> None:
    usual = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}
    with pytest.warns(UserWarning, match="timestep_spacing 'trailing'.*--spacing"):
        exchanging.scheduler_options({**usual, "timestep_spacing": "trailing"})
    with pytest.warns(UserWarning, match="--variance 0"):
        exchanging.scheduler_options({**usual, "variance_type": "fixed_small"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exchanging.scheduler_options(usual)


def test_every_setting_of_a_network_is_known_or_refused() -> None:
    unet = {**diffusers.UNet2DModel(**UNET).config}
    codec = {**diffusers.AutoencoderKL(**KL).config}
    odd: list[Any] = ["x", -1, True, None, [], {}, [-1], 1e300, math.nan, [[]], "DownBlock2D", 10**9]
    for settings, read in ((unet, exchanging.unet_options), (codec, exchanging.codec_options)):
        read(settings)
        with pytest.raises(exchanging.ExchangeError, match="its setting brand_new, 3, is not known"):
            read({**settings, "brand_new": 3})
        for key in settings:
            for value in odd if not key.startswith("_") else ():
                with contextlib.suppress(exchanging.ExchangeError):
                    read({**settings, key: value})  # and no other error
    for changes in (
        {"mid_block_type": None}, {"time_embedding_dim": 32}, {"attn_norm_num_groups": 16},
        {"resnet_time_scale_shift": "ada_group"}, {"class_embed_type": "identity"}, {"layers_per_block": 10**9},
    ):  # fmt: skip
        with pytest.raises(exchanging.ExchangeError, match=next(iter(changes))):
            exchanging.unet_options({**unet, **changes})


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A pipeline that can be imported."""
    unet = diffusers.UNet2DModel(**{**UNET, "block_out_channels": (64, 64)})
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def refusal(folder: Path) -> str:
    with pytest.raises(LimnerError) as caught:
        exchange.from_diffusers(folder, folder / "run")
    assert not (folder / "run").exists()
    message = str(caught.value)
    assert len(message) < 600 and message.endswith(".")
    return message


def test_damaged_settings_are_one_sentence(whole: Path) -> None:
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        good = (whole / name).read_bytes()
        for bad in (b"", b"5", b"null", b"[]", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": NaN', good[:-40]):
            (whole / name).write_bytes(bad)
            assert Path(name).name in refusal(whole), (name, bad[:20])
        for bad in (b"{}", b'{"_class_name": 5}', b'{"_class_name": ["DDPMPipeline"]}'):
            (whole / name).write_bytes(bad)
            refusal(whole)
        (whole / name).write_bytes(good)
    assert exchange.from_diffusers(whole, whole.parent / "good") == "ddpm"


def test_pipelines_of_which_a_part_would_be_lost_are_refused(whole: Path) -> None:
    index = json.loads((whole / "model_index.json").read_text())

    def with_index(**changes: Any) -> str:
        (whole / "model_index.json").write_text(json.dumps({**index, **changes}))
        return refusal(whole)

    assert "LDMPipeline" in with_index(_class_name="LDMPipeline")
    assert "draws with vqvae too" in with_index(vqvae=["diffusers", "VQModel"])
    assert "autoencoder alone" in with_index(vae=["diffusers", "AutoencoderKL"])
    assert "lacks its unet (UNet2DConditionModel)" in with_index(unet=["diffusers", "UNet2DConditionModel"])
    assert "lacks its scheduler" in with_index(scheduler=[None, None])
    (whole / "model_index.json").unlink()
    shutil.copytree(whole / "unet", whole / "unet_ema")
    assert "more than one network (unet and unet_ema)" in refusal(whole)
    shutil.rmtree(whole / "unet_ema")
    (whole / "scheduler" / "scheduler_config.json").unlink()
    assert "no scheduler_config.json" in refusal(whole)


def test_weights_that_are_not_what_they_should_be_are_refused(whole: Path) -> None:
    good = exchange.read_weights(whole / "unet")

    def with_weight(name: str, value: torch.Tensor) -> str:
        exchange.save_file({**good, name: value.contiguous()}, whole / "unet" / exchange.WEIGHTS)
        return refusal(whole)

    weight = good["conv_in.weight"]
    assert "conv_in.weight holds infinite values or NaN" in with_weight("conv_in.weight", weight * math.nan)
    assert "conv_in.weight holds int8 values" in with_weight("conv_in.weight", weight.to(torch.int8))
    assert "conv_in.weight of 3x64x3x3 does not fit" in with_weight("conv_in.weight", weight.transpose(0, 1))
    config = json.loads((whole / "unet" / "config.json").read_text())
    huge = {**config, "block_out_channels": [65536, 65536]}  # would take terabytes
    (whole / "unet" / "config.json").write_text(json.dumps(huge))
    assert "does not fit the settings" in refusal(whole)
    (whole / "unet" / exchange.WEIGHTS).unlink()
    assert "file of weights is missing" in refusal(whole)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match="no folder"):
        exchange.from_diffusers(tmp_path / "nothing", tmp_path / "run")
    with pytest.raises(LimnerError, match="_class_name"):
        exchange.from_diffusers(tmp_path, tmp_path / "run")
    (tmp_path / "config.json").write_text('{"_class_name": "Transformer2DModel"}')
    with pytest.raises(LimnerError, match="Transformer2DModel"):
        exchange.from_diffusers(tmp_path, tmp_path / "run")
    diffusers.UNet2DModel(**UNET).save_pretrained(tmp_path)
    weights = exchange.read_weights(tmp_path)
    weights["more"] = weights.pop("conv_in.weight")
    exchange.save_file(weights, tmp_path / exchange.WEIGHTS)
    with pytest.raises(LimnerError, match=r"lacks 1 weights, such as conv_in\.weight"):
        exchange.from_diffusers(tmp_path, tmp_path / "run")
    (tmp_path / exchange.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(LimnerError, match="damaged"):
        exchange.from_diffusers(tmp_path, tmp_path / "run")
    (tmp_path / exchange.WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(LimnerError, match="safe_serialization"):
        exchange.from_diffusers(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_commands(tmp_path: Path, limner: Any) -> None:
    model = DDPM(SMALL, ImageSpec(1, 16, 16))
    run = kept(model, tmp_path / "run", "ddpm")
    assert "DDPMPipeline" in limner("export", run, "--to", "diffusers").stdout
    index = json.loads((run / "diffusers" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert "exists already" in limner("export", run, ok=False).stderr
    assert "--out" in limner("import", run / "diffusers", ok=False).stderr
    assert "ddpm" in limner("import", run / "diffusers", "--out", tmp_path / "again").stdout
    again = checkpoint.load(tmp_path / "again")
    assert (
        again.model.config == dataclasses.replace(model.config, condition="none") and again.header["parents"]
    )
    for name, value in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    other = families.load("flow")
    flow = kept(other(other.presets["tiny"].model, ImageSpec(1, 16, 16)), tmp_path / "flow", "flow")
    assert "flow has no counterpart" in limner("export", flow, ok=False).stderr


KL: dict[str, Any] = {
    "sample_size": 32, "block_out_channels": (32, 64, 64), "layers_per_block": 1, "latent_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
ATTENDING = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
}


@pytest.mark.parametrize("changes", [{}, ATTENDING], ids=["plain", "attending"])
def test_a_kl_autoencoder_there_and_back(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = stirred(diffusers.AutoencoderKL(**{**KL, **changes}))
    theirs.save_pretrained(tmp_path / "theirs")
    assert exchange.from_diffusers(tmp_path / "theirs", tmp_path / "run", (16, 24)) == "autoencoder"
    model: Any = limner.load(tmp_path / "run").model
    exchange.to_diffusers(tmp_path / "run", tmp_path / "ours")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours").eval()
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        mean, logvar = model.autoencoder.posterior(image)
        drawn = model.autoencoder.decode(mean)
        for network in (theirs, again):
            expected = network.encode(image).latent_dist
            assert expected.mean.std() > 0.1
            assert_close(mean, expected.mean, atol=1e-4, rtol=1e-4)
            assert_close(logvar, expected.logvar, atol=1e-4, rtol=1e-4)
            assert_close(drawn, network.decode(mean).sample, atol=1e-4, rtol=1e-4)


def test_the_published_autoencoder_is_the_paper_presets() -> None:
    """KL-f8, which Stable Diffusion kept."""
    family: Any = families.load("autoencoder")
    with torch.device("meta"):
        (part,) = family(family.presets["paper"].model, ImageSpec(3, 256, 256)).to_diffusers()
        theirs = diffusers.AutoencoderKL.from_config(part.settings)
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in part.weights.items()}
    assert sum(p.numel() for p in theirs.parameters()) == 83_653_863
    for preset in ("tiny", "small"):
        with pytest.raises(LimnerError, match="patches of 1"):
            family(family.presets[preset].model, ImageSpec(3, 32, 32)).to_diffusers()


def test_which_families_can() -> None:
    able = families.supporting(Exchanges)
    assert {"autoencoder", "ddpm"} <= {*able} and "flow" not in able
    assert isinstance(DDPM(SMALL, ImageSpec(3, 16, 16)), Exchanges)
