"""Our networks by the weight names and settings of diffusers, and back; what has no counterpart is an ExchangeError."""

from limner.networks.exchange.scheduler import scheduler_options, scheduler_settings
from limner.networks.exchange.settings import (
    DROPOUT,
    CodecOptions,
    ExchangeError,
    UNetOptions,
    codec_options,
    codec_settings,
    condition_dropout,
    unet_options,
    unet_settings,
)  # fmt: skip
from limner.networks.exchange.weights import build, export_weights, norm_groups

__all__ = [
    "DROPOUT", "CodecOptions", "ExchangeError", "UNetOptions", "build", "codec_options", "codec_settings",
    "condition_dropout", "export_weights", "norm_groups", "scheduler_options", "scheduler_settings", "unet_options",
    "unet_settings",
]  # fmt: skip
