"""What trains an autoencoder or a tokenizer: errors of its pictures, and a patch discriminator with adaptive weight.

Esser 2021, "Taming Transformers" (VQGAN).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limner.core import ImageSpec
from limner.families._codec import CodecConfig
from limner.losses.adversarial import hinge_d, hinge_g
from limner.losses.perceptual import check_network, feature_maps, perceptual_distance
from limner.networks.gans.patchgan import PatchGAN, fit_layers
from limner.networks.images.headroom import with_headroom


class Discriminator(nn.Module):
    """Logits of patches. ``present`` is a buffer, so that held-out losses have the terms that training reached."""

    present: Tensor  # 1 once the adversarial loss has begun, else 0

    def __init__(self, config: CodecConfig, spec: ImageSpec):
        super().__init__()
        layers = fit_layers(config.discriminator_layers, (spec.height, spec.width))
        self.patches = PatchGAN(spec.channels, config.discriminator_width, layers)
        self.register_buffer("present", torch.tensor(float(config.adversarial_from == 0)))

    def forward(self, image: Tensor) -> Tensor:
        return self.patches(image)  # [B, 1, h, w]


def check_perceptual(config: CodecConfig) -> None:
    """Raises LimnerError, before training, where the network of the perceptual distance is not here."""
    if config.perceptual:
        check_network(config.perceptual_network)


def picture_errors(config: CodecConfig, output: Tensor, image: Tensor, scale: int = 1) -> dict[str, Tensor]:
    """The mean absolute error and the perceptual distance of pictures [B, C, H, W], times ``scale``."""
    wanted = with_headroom(image, config.headroom)
    terms = {"pixels": scale * (output - wanted).abs().mean()}
    if config.perceptual:
        drawn, shown = (feature_maps(config.perceptual_network, x) for x in (output, wanted))
        terms["perceptual"] = config.perceptual * scale * perceptual_distance(drawn, shown).mean()
    return terms


def adversarial_terms(
    config: CodecConfig, discriminator: Discriminator, error: Tensor, output: Tensor, last: Tensor
) -> dict[str, Tensor]:
    """The decoder's adversarial loss, by the weight of its ``last`` layer: nothing before it begins.

    Held-out losses have none, since its weight needs gradients.
    """
    if not (config.adversarial and discriminator.present and output.requires_grad):
        return {}
    adversarial = hinge_g(discriminator(output))
    return {"adversarial": config.adversarial * adaptive_weight(error, adversarial, last) * adversarial}


def discriminator_terms(
    config: CodecConfig, discriminator: Discriminator, image: Tensor, redraw: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """Half the hinge loss, as in VQGAN; 0 before ``adversarial_from``. ``redraw`` gives what was made of ``image``."""
    if not (config.adversarial and discriminator.present):
        nothing = torch.stack([p.sum() for p in discriminator.parameters()]).sum()
        return {"adversarial": 0.0 * nothing}
    with torch.no_grad():
        output = redraw()
    real = with_headroom(image, config.headroom)
    return {"adversarial": 0.5 * hinge_d(discriminator(real), discriminator(output))}


def adaptive_weight(error: Tensor, adversarial: Tensor, last: Tensor, limit: float = 1e4) -> Tensor:
    """Ratio of both losses' gradient norms by the decoder's last layer, at most ``limit`` (Esser 2021, eq. 7)."""
    (by_error,) = torch.autograd.grad(error, last, retain_graph=True)
    (by_adversarial,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (by_error.norm() / (by_adversarial.norm() + 1e-4)).clamp(0, limit).detach()
