"""Super-resolution by the mean error of pixels: SPAN, and FSRCNN and SRResNet beside it.

Wan 2024, "Swift Parameter-free Attention Network for Efficient Super-Resolution"; Dong 2016, "Accelerating the
Super-Resolution Convolutional Neural Network"; the first stage of Ledig 2017, "Photo-Realistic Single Image
Super-Resolution Using a Generative Adversarial Network". It trains on large pictures alone, which it makes small.
"""

from __future__ import annotations

from torch import Tensor

from limner.core import Batch, ImageSpec, Objective, Preset
from limner.families._presets import training
from limner.families._upscaling import Upscaler, UpscalerConfig, Upscaling
from limner.settings import Optimiser


class Span(Upscaling):
    Config = UpscalerConfig
    averaged = ("network",)
    paper = "Wan 2024, Swift Parameter-free Attention Network for Efficient Super-Resolution"
    about = "enlarges pictures 2 to 8 times; trained on large pictures alone"

    def __init__(self, config: UpscalerConfig, spec: ImageSpec):
        super().__init__(config, spec, config)
        self.network = self.make_upscaler()

    @property
    def upscaler(self) -> Upscaler:
        return self.network

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean error of pixels (Wan 2024, section 4.1; Ledig 2017, eq. 4)."""
        given, wanted = self.training_pair(batch)
        error = self.network(given) - wanted  # [B, C, H, W]
        return {"pixels": error.abs().mean() if self.config.error == "absolute" else error.square().mean()}


# Each branch is a product of three matrices: without decay their norms, and with them the step of the product, grow
# until training diverges (docs/log.md).
OPTIMISER = Optimiser("muon", lr=1e-3, matrix_lr=0.01, decay=0.2)
MUON = training(OPTIMISER, "network", batch=16, samples=16, average=2_000.0)
ADAM = Optimiser("adam", lr=5e-4, betas=(0.9, 0.999))

Span.presets = {
    "tiny": Preset(UpscalerConfig(scale=2, width=8, blocks=1, base="bicubic", crop=16), MUON),
    "small": Preset(UpscalerConfig(base="bicubic"), MUON),
    "base": Preset(
        UpscalerConfig(width=48, base="bicubic", crop=128),
        training(OPTIMISER, "network", batch=32, average=100_000.0),
    ),
    # Crops of 256 and batches of 64 for a million steps, the rate halved every 200,000.
    "paper": Preset(
        UpscalerConfig(width=48, crop=256),
        training(ADAM, "network", batch=64, schedule="cosine", average=44_000.0),
        size=(256, 256), channels=3, parameters={"network": 1_840_488},  # 426,288 once merged
    ),
    "span-28": Preset(
        UpscalerConfig(crop=256),
        training(ADAM, "network", batch=64, schedule="cosine", average=44_000.0),
        size=(256, 256), channels=3, parameters={"network": 634_048},  # 150,688 once merged
    ),
    "srresnet": Preset(
        UpscalerConfig(network="srresnet", error="squared"),
        training(Optimiser("adam", lr=1e-4, betas=(0.9, 0.999)), "network", batch=16, schedule="constant", average=0.0),
        size=(96, 96), channels=3, parameters={"network": 1_549_462},
    ),
}  # fmt: skip
