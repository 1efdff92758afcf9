"""Settings of our networks as diffusers has them, and back; what has no counterpart is an ExchangeError."""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from limner.networks.shape import FeatureShape, level_sizes


class ExchangeError(ValueError):
    """What has no counterpart in the other library. The message says what, without a full stop."""


# What every file may hold ---------------------------------------------------------------------------------


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 2**16


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) <= 16 and all(map(of, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


KINDS: dict[str, Callable[[Any], bool]] = {  # of settings that are not compared with one value
    **dict.fromkeys(("in_channels", "out_channels", "norm_num_groups", "latent_channels"), _is_count),
    **dict.fromkeys(
        ("attention_head_dim", "num_class_embeds"), lambda value: value is None or _is_count(value)
    ),
    **dict.fromkeys(("down_block_types", "up_block_types"), lambda value: _is_list(value, _is_text)),
    **dict.fromkeys(("scaling_factor", "dynamic_thresholding_ratio", "sample_max_value"), _is_number),
    **dict.fromkeys(
        ("flip_sin_to_cos", "force_upcast", "set_alpha_to_one"), lambda value: type(value) is bool
    ),
    "block_out_channels": lambda value: _is_list(value, _is_count),
    "layers_per_block": lambda value: _is_count(value) and value <= 64,
    "dropout": lambda value: _is_number(value) and 0 <= value < 1,
    "_condition_dropout": lambda value: _is_number(value) and 0 <= value <= 1,
    "sample_size": lambda value: (
        value is None or _is_count(value) or (_is_list(value, _is_count) and len(value) == 2)
    ),
    "steps_offset": lambda value: type(value) is int and value >= 0,
}


def known_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, with the defaults of those that are left out; names that begin with _ are not settings.

    Raises ExchangeError for one that is not among the defaults, and for one of another type: what is not known may
    change what is drawn.
    """
    for name, value in settings.items():
        if name not in defaults and not name.startswith("_"):
            raise ExchangeError(f"its setting {name}, {reprlib.repr(value)}, is not known")
        if name in KINDS and not KINDS[name](value):
            raise ExchangeError(f"its {name} is {reprlib.repr(value)}")
    return {**defaults, **settings}


def require(settings: Mapping[str, Any], *names: str) -> None:
    """Raises ExchangeError for a missing setting."""
    for name in names:
        if settings.get(name) is None:
            raise ExchangeError(
                f"its {name} is missing{' (--size gives it)' if name == 'sample_size' else ''}"
            )


def require_equal(settings: Mapping[str, Any], **wanted: Any) -> None:
    """Raises ExchangeError for a setting with another value; a missing one passes."""
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ExchangeError(f"its {name} is {reprlib.repr(settings[name])}, not {reprlib.repr(value)}")


# Networks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UNetOptions:
    """The options of a `DiffusionUNet` that has a counterpart."""

    shape: FeatureShape
    head_width: int  # channels of an attention head; 0: one head of all channels
    original: bool
    scale_shift: bool
    groups: int  # of the norms


# What every file must say.
SHAPE = ("sample_size", "block_out_channels", "down_block_types", "up_block_types")
UNET = ("DownBlock2D", "UpBlock2D")  # their blocks without attention
UNET_FIXED = {  # settings of their U-Net that all of ours have
    "act_fn": "silu", "add_attention": True, "center_input_sample": False, "class_embed_type": None,
    "downsample_type": "conv", "mid_block_scale_factor": 1, "time_embedding_type": "positional",
    "upsample_type": "conv", "mid_block_type": "UNetMidBlock2D", "time_embedding_dim": None,
}  # fmt: skip
UNET_DEFAULTS = {  # of settings that a file may leave out
    "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "attention_head_dim": 8, "norm_num_groups": 32,
    "norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "dropout": 0.0,
    "resnet_time_scale_shift": "default", "attn_norm_num_groups": None, "num_class_embeds": None,
    "num_train_timesteps": None,  # of time embeddings that are learned
    **dict.fromkeys(SHAPE), **UNET_FIXED,
}  # fmt: skip


def unet_settings(options: UNetOptions) -> dict[str, Any]:
    """The settings of their UNet2DModel. Raises ExchangeError without a counterpart."""
    s, head_width, original = options.shape, options.head_width, options.original
    shape = _shape_settings(s, UNET)
    for wide in {s.widths[-1], *(s.widths[level] for level in s.attention)} if head_width else ():
        if wide % head_width:
            raise ExchangeError(f"{wide} channels do not divide into heads of {head_width}")
    return {
        "_class_name": "UNet2DModel", **shape,
        "sample_size": s.size[0] if s.size[0] == s.size[1] else list(s.size),
        "attention_head_dim": head_width or None, "norm_num_groups": options.groups,
        "norm_eps": 1e-6 if original else 1e-5, "downsample_padding": 0 if original else 1,
        "flip_sin_to_cos": not original, "freq_shift": int(original),
        "resnet_time_scale_shift": "scale_shift" if options.scale_shift else "default",
        # of the middle, which would have no norm otherwise
        "attn_norm_num_groups": options.groups if options.scale_shift else None,
        "num_class_embeds": s.classes or None, "dropout": s.dropout, **UNET_FIXED,
    }  # fmt: skip


DROPOUT = "_condition_dropout"  # setting of ours, which diffusers passes over


def condition_dropout(settings: Mapping[str, Any]) -> float:
    """The share of images trained without their label; 0 where it is not said: their U-Nets have no null label."""
    return float(settings.get(DROPOUT, 0.0))


def unet_options(settings: Mapping[str, Any]) -> UNetOptions:
    """The inverse of `unet_settings`."""
    their = known_settings(settings, UNET_DEFAULTS)
    require(their, *SHAPE)
    require_equal(their, **UNET_FIXED)
    original = not their["flip_sin_to_cos"]
    require_equal(
        their, freq_shift=int(original), norm_eps=1e-6 if original else 1e-5, downsample_padding=int(not original)
    )  # fmt: skip
    scale_shift = their["resnet_time_scale_shift"] == "scale_shift"
    if not scale_shift:
        require_equal(their, resnet_time_scale_shift="default")
    if scale_shift or their["attn_norm_num_groups"] is not None:
        require_equal(their, attn_norm_num_groups=their["norm_num_groups"])
    if original and scale_shift:
        raise ExchangeError("its resnet_time_scale_shift is scale_shift, but its times are those of Ho 2020")
    shape = _shape(their, UNET, classes=their["num_class_embeds"] or 0, dropout=float(their["dropout"]))
    head_width, groups = their["attention_head_dim"] or 0, their["norm_num_groups"]
    return UNetOptions(shape, head_width, original, scale_shift, groups)


@dataclass(frozen=True)
class CodecOptions:
    """The options of a `Codec` that has a counterpart."""

    shape: FeatureShape
    latent: int
    groups: int  # of the norms
    scaling: float = 1.0


CODEC = ("DownEncoderBlock2D", "UpDecoderBlock2D")  # their blocks without attention
CODEC_FIXED = {  # settings of their codec that all of ours have
    "act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
    "shift_factor": None, "use_post_quant_conv": True, "use_quant_conv": True,
}  # fmt: skip


CODEC_DEFAULTS = {
    "in_channels": None, "out_channels": None, "latent_channels": None, "layers_per_block": 1, "norm_num_groups": 32,
    "scaling_factor": 0.18215,  # of latents, for the network that draws them
    "force_upcast": True,  # a matter of precision
    **dict.fromkeys(SHAPE), **CODEC_FIXED,
}  # fmt: skip


def codec_settings(options: CodecOptions) -> dict[str, Any]:
    """The settings of their AutoencoderKL. Raises ExchangeError without a counterpart."""
    return {
        "_class_name": "AutoencoderKL", **_shape_settings(options.shape, CODEC),
        "sample_size": max(options.shape.size), "latent_channels": options.latent,
        "norm_num_groups": options.groups, "scaling_factor": options.scaling, **CODEC_FIXED,
    }  # fmt: skip


def codec_options(settings: Mapping[str, Any]) -> CodecOptions:
    """The inverse of `codec_settings`."""
    their = known_settings(settings, CODEC_DEFAULTS)
    require(their, "in_channels", "latent_channels", *SHAPE)
    their["out_channels"] = their["out_channels"] or their["in_channels"]
    require_equal(their, out_channels=their["in_channels"], **CODEC_FIXED)
    scaling = float(their["scaling_factor"])
    return CodecOptions(_shape(their, CODEC), their["latent_channels"], their["norm_num_groups"], scaling)


def _shape_settings(shape: FeatureShape, plain: tuple[str, str]) -> dict[str, Any]:
    """The settings of channels and levels; ``plain`` are their blocks without attention, going down and up."""
    s, (down, up) = shape, plain
    if any(side % s.factor for side in s.size):
        raise ExchangeError(f"images of {s.size[0]}x{s.size[1]} do not halve {len(s.widths) - 1} times")
    attends = ["Attn" if level in s.attention else "" for level in range(len(s.widths))]
    return {
        "in_channels": s.channels, "out_channels": s.out, "block_out_channels": s.widths, "layers_per_block": s.blocks,
        "down_block_types": [f"{kind}{down}" for kind in attends],
        "up_block_types": [f"{kind}{up}" for kind in reversed(attends)],
    }  # fmt: skip


def _shape(their: Mapping[str, Any], plain: tuple[str, str], **others: Any) -> FeatureShape:
    """The inverse of `_shape_settings`; ``others`` are fields of the shape."""
    size, widths, kinds = their["sample_size"], their["block_out_channels"], their["down_block_types"]
    size, (down, up) = (size, size) if isinstance(size, int) else (size[0], size[1]), plain
    if len(kinds) != len(widths):
        raise ExchangeError(f"it has {len(widths)} block_out_channels and {len(kinds)} down_block_types")
    for kind in kinds:
        if kind not in (down, f"Attn{down}"):
            raise ExchangeError(f"its blocks are {kind}")
    ups = [up if kind == down else f"Attn{up}" for kind in reversed(kinds)]
    require_equal({"up_block_types": list(their["up_block_types"])}, up_block_types=ups)
    if any(width % widths[0] for width in widths):
        raise ExchangeError(f"its widths {', '.join(map(str, widths))} are not multiples of the first")
    sizes = level_sizes(size, len(kinds))
    attention = tuple(min(side) for side, kind in zip(sizes, kinds, strict=True) if kind != down)
    return FeatureShape(
        their["in_channels"], their["out_channels"], size, widths[0], tuple(width // widths[0] for width in widths),
        their["layers_per_block"], attention, **others,
    )  # fmt: skip
