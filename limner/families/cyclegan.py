"""Translation between two domains that nothing pairs: CycleGAN, and CUT, which learns one direction.

Zhu, Park, Isola and Efros 2017, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks";
Park, Efros, Zhang and Zhu 2020, "Contrastive Learning for Unpaired Image-to-Image Translation".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset
from limner.families._given import SMALLEST, given_spec
from limner.families._presets import training
from limner.fields import Checked, Positive, Share
from limner.losses.adversarial import least_squares_d, least_squares_g, mean_score_penalty
from limner.losses.contrastive import patch_nce
from limner.losses.image_pool import ImagePool
from limner.networks.convnets import init_normal
from limner.networks.gans.patchgan import PatchGAN, fit_layers
from limner.networks.gans.translator import ResNetTranslator
from limner.networks.images.channels import with_channels, within
from limner.networks.layers import at_least_float32
from limner.settings import LimnerError, Optimiser, Training


@dataclass(frozen=True)
class CycleGANConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("pool", "keep_scale")

    # cyclegan: both directions, each undoing the other; cut: one direction, that keeps what is where
    kind: Literal["cyclegan", "cut"] = "cyclegan"
    width: int = 64  # feature maps of the generators at the full size
    blocks: int = 9  # residual blocks of the generators, at a quarter of the size
    # instance norm after the generators' first layer, as published; without it they see colours, not contrast alone
    first_norm: bool = True
    antialias: bool = False  # filters before halving and after doubling, as CUT has them
    discriminator_width: int = 64  # feature maps of the discriminators' first layer
    discriminator_layers: int = 3  # halvings of the discriminators; 3 see 70x70 pixels
    discriminator_norm: Literal["instance", "none"] = "instance"  # without it they too see colours
    # weight of the squared gradients of their mean scores (R1 and R2, Mescheder 2018)
    penalty: float = 0.0
    cycle: float = 10.0  # cyclegan: weight of the way there and back
    # cyclegan: weight of leaving the other domain's pictures as they are, times that of cycle; cut: its share of nce
    identity: Share = 0.5
    # cyclegan: weight of changing a picture no more than it takes, which keeps colours (Shrivastava 2017, eq. 4)
    keep: float = 0.0
    # difference in [-1, 1] from which on a larger change hardly costs more, so that grounds may change and colours
    # stay (Geman 1985); 0: the mean absolute difference
    keep_scale: float = 0.0
    pool: int = 50  # cyclegan: earlier pictures that the discriminators are shown again; 0: none
    nce: float = 1.0  # cut: weight of finding each place of the given picture again
    places: int = 256  # cut: places that are compared, of a picture and a layer
    features: int = 256  # cut: numbers that describe a place
    temperature: Positive = 0.07  # cut: of the comparison


@dataclass(frozen=True)
class CycleGANSampling(Checked):
    direction: Literal["forward", "backward"] = "forward"  # from the first domain to the second, or back

    def fit(self, model: Any) -> CycleGANSampling:
        """These settings, if the model has learned the direction. Raises LimnerError."""
        if self.direction == "backward" and model.config.kind == "cut":
            raise LimnerError(
                "This run of cyclegan is of kind cut, which learns one direction: leave out --direction backward, or "
                "train a run with the two sources exchanged."
            )
        return self


class Heads(nn.ModuleList):
    """Features of several layers -> descriptions of their places, of length 1 (Park 2020, 3)."""

    def __init__(self, widths: list[int], features: int):
        super().__init__(
            nn.Sequential(nn.Linear(wide, features), nn.ReLU(), nn.Linear(features, features))
            for wide in widths
        )
        init_normal(self)

    def describe(self, layer: int, maps: Tensor, places: Tensor) -> Tensor:
        """Feature maps [B, C, h, w] of a layer and N of its places -> [B, N, D]."""
        chosen = maps.flatten(2)[..., places].transpose(1, 2)  # [B, N, C]
        return F.normalize(at_least_float32(self[layer](chosen)), dim=-1, eps=1e-7)  # [B, N, D]


class CycleGAN(Model):
    """The given domain is the first, the wanted one the second; ``to_wanted`` leads from the first to the second."""

    Config = CycleGANConfig
    Sampling = CycleGANSampling
    given_by = ("domains",)
    averaged = ("generators",)
    scale = 1
    paper = (
        "Zhu 2017, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks; Park 2020, "
        "Contrastive Learning for Unpaired Image-to-Image Translation (CUT)"
    )
    about = "translation between two folders that nothing pairs, both ways"
    generators: Any  # ResNetTranslator by where it leads; of kind cut also the Heads
    discriminators: Any  # PatchGAN by domain
    pools: Any  # ImagePool by domain

    def __init__(self, config: CycleGANConfig, spec: ImageSpec):
        super().__init__(config, spec)
        c, given, size = config, given_spec(self), (spec.height, spec.width)
        if min(size) < SMALLEST or (given.height, given.width) != size:
            raise LimnerError(
                f"cyclegan needs both domains in one size of at least {SMALLEST}x{SMALLEST} pixels, not {given.height}"
                f"x{given.width} and {spec.height}x{spec.width}: choose another --size, without --data.given-size."
            )
        ends = {"wanted": (given.channels, spec.channels), "given": (spec.channels, given.channels)}
        if c.kind == "cut":
            del ends["given"]
        make = partial(
            ResNetTranslator, width=c.width, blocks=c.blocks, antialias=c.antialias, first_norm=c.first_norm
        )
        self.generators = nn.ModuleDict({f"to_{name}": make(*channels) for name, channels in ends.items()})
        layers, wide = fit_layers(c.discriminator_layers, size), c.discriminator_width
        self.discriminators = nn.ModuleDict(
            {
                name: PatchGAN(channels[1], wide, layers, norm=c.discriminator_norm)
                for name, channels in ends.items()
            }
        )
        shapes = {"wanted": spec.shape, "given": given.shape} if c.kind == "cyclegan" else {}
        self.pools = nn.ModuleDict({name: ImagePool(c.pool, shape) for name, shape in shapes.items()})
        if c.kind == "cut":  # they are trained with the generator
            self.generators["heads"] = Heads(self.generators["to_wanted"].feature_widths, c.features)
        self.factor = self.generators["to_wanted"].factor

    def objectives(self) -> list[Objective]:
        loss = self.cycle_loss if self.config.kind == "cyclegan" else self.contrastive_loss
        return [Objective("generators", loss), Objective("discriminators", self.discriminator_loss)]

    def cycle_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Zhu 2017, eq. 3, with least squares (4) and the identity loss (5.2)."""
        c, terms = self.config, {}
        given, wanted = domains(batch)
        for name, source, other in (("wanted", given, wanted), ("given", wanted, given)):
            there, back = self.generators[f"to_{name}"], self.generators[f"to_{other_end(name)}"]
            alike = c.identity > 0 and source.shape[1] == other.shape[1]
            drawn = there(torch.cat([source, other]) if alike else source)  # one call for both
            fake, same = drawn[: len(source)], drawn[len(source) :]
            terms[f"adversarial_{name}"] = least_squares_g(self.discriminators[name](fake))
            terms[f"cycle_{other_end(name)}"] = c.cycle * (back(fake) - source).abs().mean()
            if alike:
                terms[f"identity_{name}"] = c.cycle * c.identity * (same - other).abs().mean()
            if c.keep and source.shape[1] == other.shape[1]:
                terms[f"kept_{name}"] = c.keep * change(fake, source, c.keep_scale)
        return terms

    def contrastive_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Park 2020, eq. 5."""
        c, (given, wanted) = self.config, domains(batch)
        generator = self.generators["to_wanted"]
        alike = c.identity > 0 and given.shape[1] == wanted.shape[1]
        drawn = generator(torch.cat([given, wanted]) if alike else given)
        fake, same = drawn[: len(given)], drawn[len(given) :]
        terms = {"adversarial_wanted": least_squares_g(self.discriminators["wanted"](fake))}
        share = c.identity if alike else 0.0
        terms["places"] = c.nce * (1 - share) * self.compare_places(given, fake)
        if alike:
            terms["identity"] = c.nce * share * self.compare_places(wanted, same)
        return terms

    def compare_places(self, source: Tensor, made: Tensor) -> Tensor:
        """How well each place of the source is found from the made picture, in the generator's own features."""
        c, generator, heads = self.config, self.generators["to_wanted"], self.generators["heads"]
        made = with_channels(made, source.shape[1])
        losses = []
        queries = generator.features(made)
        with torch.no_grad():  # after the queries: autocast keeps the weights that it has rounded first
            keys = generator.features(source)
        for layer, (query, key) in enumerate(zip(queries, keys, strict=True)):
            count = query.shape[-2] * query.shape[-1]
            places = torch.randperm(count, device=query.device)[: c.places]
            found = heads.describe(layer, query, places)
            with torch.no_grad():
                wanted = heads.describe(layer, key, places)
            losses.append(patch_nce(found, wanted, c.temperature).mean())
        return torch.stack(losses).mean()

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Half of Zhu 2017, eq. 1 with least squares, for each domain, on fakes from the pools."""
        ends, terms = dict(zip(("given", "wanted"), domains(batch), strict=True)), {}
        for name, discriminator in self.discriminators.items():
            with torch.no_grad():
                fake = self.generators[f"to_{name}"](ends[other_end(name)])
            if name in self.pools:
                fake = self.pools[name](fake)
            # one call for both: its norms are each picture's own
            real, drawn = discriminator(torch.cat([ends[name], fake])).chunk(2)
            terms[f"adversarial_{name}"] = least_squares_d(real, drawn)
            if self.config.penalty:
                penalty = mean_score_penalty(discriminator, ends[name], fake, self.config.penalty)
                terms[f"penalty_{name}"] = penalty
        return terms

    def margin(self, sampling: CycleGANSampling) -> int:
        return self.generators["to_wanted"].margin

    def channels_taken(self, sampling: CycleGANSampling) -> int:
        return (self.spec if sampling.direction == "backward" else given_spec(self)).channels

    def translate(
        self, image: Tensor, condition: Condition, sampling: CycleGANSampling, draws: Draws
    ) -> Tensor:
        """[B, C, h, w] in [-1, 1] of the domain that ``sampling.direction`` begins with -> of the other, as large."""
        generator = self.generators["to_given" if sampling.direction == "backward" else "to_wanted"]
        return within(generator(with_channels(image, self.channels_taken(sampling))))

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: CycleGANSampling, draws: Draws) -> Iterator[Canvas]:
        assert condition.image is not None, "it draws from a given picture"
        picture = self.translate(condition.image, condition, sampling, draws)
        yield Canvas(1, 1, lambda: with_channels(picture, self.spec.channels))


def change(made: Tensor, given: Tensor, scale: float) -> Tensor:
    """Of pictures [B, C, H, W]: the mean absolute difference, or the share of pixels that differ by much more than
    ``scale`` (Geman 1985: d^2 / (d^2 + scale^2), d^2 being the mean over channels)."""
    if not scale:
        return (made - given).abs().mean()
    squared = at_least_float32(made - given).square().mean(1)  # [B, H, W]
    return (squared / (squared + scale**2)).mean()


def domains(batch: Batch) -> tuple[Tensor, Tensor]:
    """The pictures of the first and of the second domain."""
    assert batch.condition.image is not None, "the data gives a picture of the first domain"
    return batch.condition.image, batch.image


def other_end(name: str) -> str:
    return "given" if name == "wanted" else "wanted"


PLAYERS = "generators", "discriminators"
ADAM = Optimiser("adam", lr=2e-4, betas=(0.5, 0.999))
MUON, FASTER = Optimiser("muon", lr=2e-3, betas=(0.5, 0.99), matrix_lr=0.01), replace(ADAM, lr=5e-4)
TINY = CycleGANConfig(width=4, blocks=1, discriminator_width=4, discriminator_layers=1, pool=4)
CUT = CycleGANConfig("cut", antialias=True)
CycleGAN.presets = {
    "tiny": Preset(TINY, training(Optimiser("adam", lr=2e-3, betas=(0.5, 0.999)), *PLAYERS, batch=8, average=100.0)),
    # On 32x32 pixels: narrow, since thousands of steps count for more (docs/log.md).
    "small": Preset(
        CycleGANConfig(
            width=16, blocks=4, discriminator_width=16, discriminator_layers=2, discriminator_norm="none", penalty=1.0,
            identity=1.0, keep=1.0, keep_scale=0.5, first_norm=False,
        ),
        Training(
            batch=8, optimisers={"generators": MUON, "discriminators": FASTER}, samples=16, flat=0.5, average=2_000.0
        ),
    ),
    "base": Preset(CycleGANConfig(blocks=6), training(ADAM, *PLAYERS, batch=4, samples=16, flat=0.5)),
    "paper": Preset(
        CycleGANConfig(), training(ADAM, *PLAYERS, batch=1, samples=16, flat=0.5, average=0.0),
        size=(256, 256), channels=3,
        # junyanz/pytorch-CycleGAN-and-pix2pix: two ResNet-9 and two discriminators of 70x70
        parameters={"generators": 22_756_358, "discriminators": 5_529_474, "pools": 0},
    ),
    "cut": Preset(
        CUT, training(ADAM, *PLAYERS, batch=1, samples=16, flat=0.5, average=0.0), size=(256, 256), channels=3,
        parameters={"generators": 11_938_563, "discriminators": 2_764_737, "pools": 0},  # with heads of 560,384
    ),
}  # fmt: skip
