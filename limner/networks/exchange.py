"""Our networks by the weight names and settings of diffusers, and back; what has no counterpart is an ExchangeError."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.networks.codec import Attention as CodecAttention
from limner.networks.layers import Down, Up
from limner.networks.shape import FeatureShape, level_sizes
from limner.networks.unets.diffusion import Attention, DiffusionUNet, Level


class ExchangeError(ValueError):
    """What has no counterpart in the other library. The message says what, without a full stop."""


PARTS = {  # our names and theirs, in a block and in attention, where they differ
    "embedding_proj": "time_emb_proj", "shortcut": "conv_shortcut", "norm": "group_norm", "out": "to_out.0",
}  # fmt: skip
# Their names before 2023 -> now.
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}

# ---- weights


def weight_names(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Our weights' names -> theirs; three for our joint weight of queries, keys and values."""
    found: dict[str, tuple[str, ...]] = {}
    for ours, their in _unet(network) if isinstance(network, DiffusionUNet) else _codec(network):
        for name, _ in network.get_submodule(ours).named_parameters():
            part, _, kind = name.rpartition(".")
            if part == "qkv":
                found[f"{ours}.{name}"] = tuple(f"{their}.to_{one}.{kind}" for one in "qkv")
            else:
                found[f"{ours}.{name}"] = (".".join(filter(None, (their, PARTS.get(part, part), kind))),)
    if left := dict(network.named_parameters()).keys() - found.keys():
        raise ExchangeError(f"it has no counterpart of {', '.join(sorted(left)[:3])}")
    return found


def export_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights by diffusers' names."""
    given: dict[str, Tensor] = {}
    for ours, names in weight_names(network).items():
        value = network.get_parameter(ours).detach()
        if "attentions" in names[0] and value.ndim == 4:  # 1x1 convolutions are matrices there
            value = value.flatten(1)
        values = [value]
        if len(names) == 3:
            heads, split = _heads(network, ours)
            parts = value.unflatten(0, (3, heads, -1) if split else (heads, 3, -1)).unbind(0 if split else 1)
            values = [part.flatten(0, 1) for part in parts]
        given |= zip(names, values, strict=True)
    return given


@torch.no_grad()
def import_weights(network: nn.Module, weights: Mapping[str, Tensor], groups: int) -> None:
    """Fill our network from weights by their names; ``groups`` of their norms must be ours.

    Raises ExchangeError for other groups, and for missing, unknown or misshapen weights.
    """
    require_equal({"norm_num_groups": groups}, norm_num_groups=norm_groups(network))
    for old, new in OLD.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    table = weight_names(network)
    wanted = {name for names in table.values() for name in names}
    for what, odd in (("lacks", wanted - weights.keys()), ("has besides", weights.keys() - wanted)):
        if odd:
            raise ExchangeError(f"it {what} {len(odd)} weights, such as {min(odd)}")
    for ours, names in table.items():
        values = [weights[name].float() for name in names]
        parameter = network.get_parameter(ours)
        if sum(value.numel() for value in values) != parameter.numel():
            shape = "x".join(map(str, values[0].shape))
            raise ExchangeError(f"its {names[0]} of {shape} does not fit the settings")
        if len(names) == 3:
            heads, split = _heads(network, ours)
            stacked = torch.stack([value.unflatten(0, (heads, -1)) for value in values], 0 if split else 1)
            values = [stacked.flatten(0, 2)]
        parameter.copy_(values[0].reshape(parameter.shape))


def _heads(network: nn.Module, qkv: str) -> tuple[int, bool]:
    """The number of heads of a ``qkv`` layer, and whether its order is split (see `split_heads`)."""
    attention = network.get_submodule(qkv.rpartition(".qkv.")[0])
    if not isinstance(attention, Attention):
        return 1, True
    if attention.order == "mixed":
        raise ExchangeError("it mixes queries, keys and values")
    return attention.heads, attention.order == "split"


def _unet(unet: DiffusionUNet) -> Iterator[tuple[str, str]]:
    """(Our submodule, their prefix) for all of its weights."""
    yield from {
        "time.0": "time_embedding.linear_1", "time.2": "time_embedding.linear_2", "stem": "conv_in",
        "norm": "conv_norm_out", "head": "conv_out", "middle.0": "mid_block.resnets.0",
        "middle.1": "mid_block.attentions.0", "middle.2": "mid_block.resnets.1",
    }.items()  # fmt: skip
    if unet.label is not None:
        yield "label", "class_embedding"
    for way in ("down", "up"):
        for i, level in enumerate(getattr(unet, way).children()):
            assert isinstance(level, Level)
            ours, their = f"{way}.{i}", f"{way}_blocks.{i}"
            for j in range(len(level.blocks)):
                yield f"{ours}.blocks.{j}", f"{their}.resnets.{j}"
                if level.attentions:
                    yield f"{ours}.attentions.{j}", f"{their}.attentions.{j}"
            if level.resample is not None:
                if not hasattr(level.resample, "conv"):
                    raise ExchangeError("its levels are joined by residual blocks")
                yield f"{ours}.resample.conv", f"{their}.{way}samplers.0.conv"


def _codec(network: nn.Module) -> Iterator[tuple[str, str]]:
    """As `_unet`, of a `Codec`."""
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for half, way in (("encoder", "down"), ("decoder", "up")):
        yield from ((f"{half}.norm", f"{half}.conv_norm_out"), (f"{half}.last", f"{half}.conv_out"))
        layers = list(network.get_submodule(f"{half}.layers").children())
        middle = 1 if half == "decoder" else len(layers) - 3
        level, counts = 0, {"resnets": 0, "attentions": 0}
        for i, layer in enumerate(layers):
            ours = f"{half}.layers.{i}"
            if i == 0:
                yield ours, f"{half}.conv_in"
            elif middle <= i < middle + 3:
                yield ours, f"{half}.mid_block.{('resnets.0', 'attentions.0', 'resnets.1')[i - middle]}"
            elif isinstance(layer, Down | Up):
                yield f"{ours}.conv", f"{half}.{way}_blocks.{level}.{way}samplers.0.conv"
                level, counts = level + 1, {"resnets": 0, "attentions": 0}
            else:
                kind = "attentions" if isinstance(layer, CodecAttention) else "resnets"
                yield ours, f"{half}.{way}_blocks.{level}.{kind}.{counts[kind]}"
                counts[kind] += 1


# ---- settings


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
    "upsample_type": "conv",
}  # fmt: skip
UNET_DEFAULTS = {  # of settings that a file may leave out
    "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "attention_head_dim": 8, "norm_num_groups": 32,
    "norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "dropout": 0.0,
    "resnet_time_scale_shift": "default", "attn_norm_num_groups": None, "num_class_embeds": None,
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


def unet_options(settings: Mapping[str, Any]) -> UNetOptions:
    """The inverse of `unet_settings`."""
    their = {**UNET_DEFAULTS, **settings}
    require(their, *SHAPE)
    require_equal(their, **UNET_FIXED)
    original = not their["flip_sin_to_cos"]
    require_equal(
        their, freq_shift=int(original), norm_eps=1e-6 if original else 1e-5, downsample_padding=int(not original)
    )  # fmt: skip
    scale_shift = their["resnet_time_scale_shift"] == "scale_shift"
    if scale_shift:
        require_equal(their, attn_norm_num_groups=their["norm_num_groups"])
    if original and scale_shift:
        raise ExchangeError("its resnet_time_scale_shift is scale_shift, but its times are those of Ho 2020")
    shape = _shape(their, UNET, classes=their["num_class_embeds"] or 0, dropout=float(their["dropout"]))
    head_width, groups = their["attention_head_dim"] or 0, their["norm_num_groups"]
    return UNetOptions(shape, head_width, original, scale_shift, groups)


SCHEDULES = {  # our schedule -> their beta_schedule, its start and end
    "linear": ("linear", 1e-4, 0.02), "cosine": ("squaredcos_cap_v2", None, None),
    "scaled_linear": ("scaled_linear", 0.0015, 0.0195),
}  # fmt: skip
PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}


def scheduler_settings(schedule: str, steps: int, predict: str, learned: bool) -> dict[str, Any]:
    """The settings of their DDPMScheduler; ``predict`` is a key of PREDICTIONS."""
    if steps != 1000:
        raise ExchangeError(f"it takes {steps} steps, not 1000")
    name, start, end = SCHEDULES[schedule]
    return {
        "_class_name": "DDPMScheduler", "num_train_timesteps": steps, "beta_schedule": name,
        "beta_start": start or 1e-4, "beta_end": end or 0.02, "prediction_type": PREDICTIONS[predict],
        "variance_type": "learned_range" if learned else "fixed_large", "clip_sample": True, "trained_betas": None,
    }  # fmt: skip


def scheduler_options(settings: Mapping[str, Any]) -> tuple[Any, int, Any, bool]:
    """The inverse of `scheduler_settings`: schedule, steps, what is predicted, whether the variance is learned."""
    require_equal(settings, num_train_timesteps=1000, trained_betas=None)
    their = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, **settings}
    found = [ours for ours, (name, _, _) in SCHEDULES.items() if name == their["beta_schedule"]]
    if not found:
        raise ExchangeError(f"its beta_schedule is {their['beta_schedule']!r}")
    _, start, end = SCHEDULES[found[0]]
    if start is not None:
        require_equal(their, beta_start=start, beta_end=end)
    kind = their.get("prediction_type", "epsilon")
    predict = next((ours for ours, theirs in PREDICTIONS.items() if theirs == kind), None)
    if predict is None:
        raise ExchangeError(f"its prediction_type is {kind!r}")
    return found[0], 1000, predict, their.get("variance_type") == "learned_range"


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


def codec_settings(options: CodecOptions) -> dict[str, Any]:
    """The settings of their AutoencoderKL. Raises ExchangeError without a counterpart."""
    return {
        "_class_name": "AutoencoderKL", **_shape_settings(options.shape, CODEC),
        "sample_size": max(options.shape.size), "latent_channels": options.latent,
        "norm_num_groups": options.groups, "scaling_factor": options.scaling, **CODEC_FIXED,
    }  # fmt: skip


def codec_options(settings: Mapping[str, Any]) -> CodecOptions:
    """The inverse of `codec_settings`."""
    their = {"layers_per_block": 1, "norm_num_groups": 32, "scaling_factor": 0.18215, **settings}
    require(their, "in_channels", "latent_channels", *SHAPE)
    their.setdefault("out_channels", their["in_channels"])
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
    for kind in kinds:
        if kind not in (down, f"Attn{down}"):
            raise ExchangeError(f"its blocks are {kind}")
    require_equal(their, up_block_types=[up if kind == down else f"Attn{up}" for kind in reversed(kinds)])
    if any(width % widths[0] for width in widths):
        raise ExchangeError(f"its widths {', '.join(map(str, widths))} are not multiples of the first")
    sizes = level_sizes(size, len(kinds))
    attention = tuple(min(side) for side, kind in zip(sizes, kinds, strict=True) if kind != down)
    return FeatureShape(
        their["in_channels"], their["out_channels"], size, widths[0], tuple(width // widths[0] for width in widths),
        their["layers_per_block"], attention, **others,
    )  # fmt: skip


def require(settings: Mapping[str, Any], *names: str) -> None:
    """Raises ExchangeError for a missing setting."""
    for name in names:
        if settings.get(name) is None:
            raise ExchangeError(f"its {name} is missing")


def norm_groups(network: nn.Module) -> int:
    """The number of groups of all norms. Raises ExchangeError if they differ."""
    found = {part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm)}
    if len(found) != 1:
        raise ExchangeError(f"its norms have {min(found)} to {max(found)} groups")
    return found.pop()


def require_equal(settings: Mapping[str, Any], **wanted: Any) -> None:
    """Raises ExchangeError for a setting with another value; a missing one passes."""
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ExchangeError(f"its {name} is {settings[name]!r}, not {value!r}")
