"""Our networks under the names and settings that diffusers has for them, and back.

What has no counterpart is a ValueError that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limner.networks import codec
from limner.networks.unets.diffusion import Attention, DiffusionUNet, Level

PARTS = {  # inside a block, and inside attention: our names and theirs
    "norm1": "norm1", "conv1": "conv1", "embedding_proj": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
    "shortcut": "conv_shortcut", "norm": "group_norm", "out": "to_out.0",
}  # fmt: skip
OLD = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}  # before 2023

# ---- weights


def theirs(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Their name for each of our weights; of queries, keys and values, which we have in one, the three."""
    places = _unet(network) if isinstance(network, DiffusionUNet) else _codec(network)
    found: dict[str, tuple[str, ...]] = {}
    for ours, their in places:
        for name, _ in network.get_submodule(ours).named_parameters():
            part, _, kind = name.rpartition(".")
            if part == "qkv":
                found[f"{ours}.{name}"] = tuple(f"{their}.to_{one}.{kind}" for one in "qkv")
            else:
                found[f"{ours}.{name}"] = (".".join(filter(None, (their, PARTS.get(part, part), kind))),)
    left = {name for name, _ in network.named_parameters()} - found.keys()
    if left:
        raise ValueError(f"it has no place for {', '.join(sorted(left)[:3])}")
    return found


def give(network: nn.Module) -> dict[str, Tensor]:
    """The weights by their names."""
    given: dict[str, Tensor] = {}
    for ours, names in theirs(network).items():
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
def take(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill our network from weights by their names. Raises ValueError for what is missing, left over or misshapen."""
    weights = {_new(name): value for name, value in weights.items()}
    table = theirs(network)
    wanted = {name for names in table.values() for name in names}
    for what, odd in (("lacks", wanted - weights.keys()), ("has besides", weights.keys() - wanted)):
        if odd:
            raise ValueError(f"it {what} {len(odd)} weights, such as {min(odd)}")
    for ours, names in table.items():
        values = [weights[name].float() for name in names]
        parameter = network.get_parameter(ours)
        if sum(value.numel() for value in values) != parameter.numel():
            shape = "x".join(map(str, values[0].shape))
            raise ValueError(f"its {names[0]} of {shape} does not fit the settings")
        if len(names) == 3:
            heads, split = _heads(network, ours)
            stacked = torch.stack([value.unflatten(0, (heads, -1)) for value in values], 0 if split else 1)
            values = [stacked.flatten(0, 2)]
        parameter.copy_(values[0].reshape(parameter.shape))


def _heads(network: nn.Module, qkv: str) -> tuple[int, bool]:
    """How many heads a layer of queries, keys and values has; whether these three are what it is cut into first."""
    attention = network.get_submodule(qkv.rpartition(".qkv.")[0])
    if isinstance(attention, Attention):
        if attention.order == "mixed":
            raise ValueError("it mixes queries, keys and values")
        return attention.heads, attention.order == "split"
    return 1, True


def _new(name: str) -> str:
    for old, new in OLD.items():
        name = name.replace(old, new)
    return name


def _unet(unet: DiffusionUNet) -> Iterator[tuple[str, str]]:
    """(our submodule, their prefix)."""
    yield from (("time.0", "time_embedding.linear_1"), ("time.2", "time_embedding.linear_2"))
    yield from (("stem", "conv_in"), ("norm", "conv_norm_out"), ("head", "conv_out"))
    if unet.label is not None:
        yield "label", "class_embedding"
    for ours, their, resample in (("down", "down_blocks", "downsamplers"), ("up", "up_blocks", "upsamplers")):
        for i, level in enumerate(getattr(unet, ours).children()):
            assert isinstance(level, Level)
            for j in range(len(level.blocks)):
                yield f"{ours}.{i}.blocks.{j}", f"{their}.{i}.resnets.{j}"
            for j in range(len(level.attentions)):
                yield f"{ours}.{i}.attentions.{j}", f"{their}.{i}.attentions.{j}"
            if level.resample is not None:
                if not hasattr(level.resample, "conv"):
                    raise ValueError("its levels are joined by residual blocks")
                yield f"{ours}.{i}.resample.conv", f"{their}.{i}.{resample}.0.conv"
    yield from (("middle.0", "mid_block.resnets.0"), ("middle.2", "mid_block.resnets.1"))
    yield "middle.1", "mid_block.attentions.0"


def _codec(network: nn.Module) -> Iterator[tuple[str, str]]:
    """As `_unet`, of a network with an encoder, a decoder, ``quant_conv`` and ``post_quant_conv``."""
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for half, row, resample in (
        ("encoder", "down_blocks", "downsamplers"),
        ("decoder", "up_blocks", "upsamplers"),
    ):
        yield from ((f"{half}.norm", f"{half}.conv_norm_out"), (f"{half}.last", f"{half}.conv_out"))
        layers = list(network.get_submodule(f"{half}.layers").children())
        middle = 1 if half == "decoder" else len(layers) - 3
        level, counts = 0, {"resnets": 0, "attentions": 0}
        for i, layer in enumerate(layers):
            ours = f"{half}.layers.{i}"
            if i == 0:
                yield ours, f"{half}.conv_in"
            elif middle <= i < middle + 3:
                kinds = ("resnets.0", "attentions.0", "resnets.1")
                yield ours, f"{half}.mid_block.{kinds[i - middle]}"
            elif isinstance(layer, codec.Down | codec.Up):
                yield f"{ours}.conv", f"{half}.{row}.{level}.{resample}.0.conv"
                level, counts = level + 1, {"resnets": 0, "attentions": 0}
            else:
                kind = "attentions" if isinstance(layer, codec.Attention) else "resnets"
                yield ours, f"{half}.{row}.{level}.{kind}.{counts[kind]}"
                counts[kind] += 1


# ---- settings


def unet_settings(
    *, channels: int, out: int, size: tuple[int, int], width: int, multiples: Sequence[int], blocks: int,
    attention: Sequence[int], head: int, dropout: float, classes: int, original: bool, scale_shift: bool,
    groups: int,
) -> dict[str, Any]:  # fmt: skip
    """Of `DiffusionUNet`'s arguments their UNet2DModel's. ``head``: 0 is one head of all channels."""
    widths = [width * m for m in multiples]
    if any(side % 2 ** (len(widths) - 1) for side in size):
        raise ValueError(f"images of {size[0]}x{size[1]} do not halve {len(widths) - 1} times")
    for wide in {widths[-1], *(widths[level] for level in attention)} if head else ():
        if wide % head:
            raise ValueError(f"{wide} channels do not divide into heads of {head}")
    kinds = [level in attention for level in range(len(widths))]
    return {
        "_class_name": "UNet2DModel",
        "in_channels": channels,
        "out_channels": out,
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in kinds],
        "up_block_types": ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(kinds)],
        "attention_head_dim": head or None,
        "norm_num_groups": groups,
        "norm_eps": 1e-6 if original else 1e-5,
        "downsample_padding": 0 if original else 1,
        "flip_sin_to_cos": not original,
        "freq_shift": int(original),
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "attn_norm_num_groups": groups
        if scale_shift
        else None,  # of the middle, which would have no norm else
        "num_class_embeds": classes or None,
        "dropout": dropout,
        **PLAIN,
    }


PLAIN = {  # what every network of ours is, in the words of their U-Net
    "act_fn": "silu", "add_attention": True, "center_input_sample": False, "class_embed_type": None,
    "downsample_type": "conv", "mid_block_scale_factor": 1, "time_embedding_type": "positional",
    "upsample_type": "conv",
}  # fmt: skip


def unet_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unet_settings`."""
    their = {**UNET_DEFAULTS, **settings}
    have(their, "block_out_channels", "down_block_types", "up_block_types")
    need(their, **PLAIN)
    original = not their["flip_sin_to_cos"]
    need(
        their, freq_shift=int(original), norm_eps=1e-6 if original else 1e-5, downsample_padding=int(not original)
    )  # fmt: skip
    scale_shift = their["resnet_time_scale_shift"] == "scale_shift"
    if scale_shift:
        need(their, attn_norm_num_groups=their["norm_num_groups"])
    if original and scale_shift:
        raise ValueError("its resnet_time_scale_shift is scale_shift, but its times are those of Ho 2020")
    attention = attending(their["down_block_types"], "DownBlock2D", "AttnDownBlock2D")
    need(their, up_block_types=["AttnUpBlock2D" if i in attention else "UpBlock2D"
                                for i in reversed(range(len(their["down_block_types"])))])  # fmt: skip
    return {
        "channels": their["in_channels"],
        "out": their["out_channels"],
        "size": sides(their["sample_size"]),
        "width": their["block_out_channels"][0],
        "multiples": multiples(their["block_out_channels"]),
        "blocks": their["layers_per_block"],
        "attention": attention,
        "head": their["attention_head_dim"] or 0,
        "dropout": float(their["dropout"]),
        "classes": their["num_class_embeds"] or 0,
        "original": original,
        "scale_shift": scale_shift,
        "groups": their["norm_num_groups"],
    }


UNET_DEFAULTS = {  # of what a settings file may leave out
    "in_channels": 3, "out_channels": 3, "sample_size": None, "layers_per_block": 2, "attention_head_dim": 8,
    "norm_num_groups": 32, "norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0,
    "resnet_time_scale_shift": "default", "attn_norm_num_groups": None, "num_class_embeds": None, "dropout": 0.0,
}  # fmt: skip


SCHEDULES = {  # Schedule -> their beta_schedule, and where it starts and ends
    "linear": ("linear", 1e-4, 0.02), "cosine": ("squaredcos_cap_v2", None, None),
    "scaled_linear": ("scaled_linear", 0.0015, 0.0195),
}  # fmt: skip


PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}


def scheduler_settings(schedule: str, steps: int, predict: str, learned: bool) -> dict[str, Any]:
    """Of their DDPMScheduler; ``predict`` is a key of PREDICTIONS."""
    if steps != 1000:
        raise ValueError(f"it takes {steps} steps, not 1000")
    name, start, end = SCHEDULES[schedule]
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        "beta_schedule": name,
        "beta_start": start or 1e-4,
        "beta_end": end or 0.02,
        "prediction_type": PREDICTIONS[predict],
        "variance_type": "learned_range" if learned else "fixed_large",
        "clip_sample": True,
        "trained_betas": None,
    }


def scheduler_options(settings: Mapping[str, Any]) -> tuple[Any, int, Any, bool]:
    """The inverse of `scheduler_settings`; what is left out is as they have it."""
    need(settings, num_train_timesteps=1000, trained_betas=None)
    their = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, **settings}
    found = [ours for ours, (name, _, _) in SCHEDULES.items() if name == their["beta_schedule"]]
    if not found:
        raise ValueError(f"its beta_schedule is {their['beta_schedule']!r}")
    _, start, end = SCHEDULES[found[0]]
    if start is not None:
        need(their, beta_start=start, beta_end=end)
    kind = their.get("prediction_type", "epsilon")
    predict = next((ours for ours, theirs in PREDICTIONS.items() if theirs == kind), None)
    if predict is None:
        raise ValueError(f"its prediction_type is {kind!r}")
    return found[0], 1000, predict, their.get("variance_type") == "learned_range"


def codec_settings(
    *, channels: int, size: tuple[int, int], width: int, multiples: Sequence[int], blocks: int,
    attention: Sequence[int], latent: int, groups: int, scaling: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """Of the arguments of `codec.Encoder` and `codec.Decoder` their AutoencoderKL's."""
    if any(side % 2 ** (len(multiples) - 1) for side in size):
        raise ValueError(f"images of {size[0]}x{size[1]} do not halve {len(multiples) - 1} times")
    kinds = [level in attention for level in range(len(multiples))]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": max(size),
        "block_out_channels": [width * m for m in multiples],
        "layers_per_block": blocks,
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in kinds],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(kinds)],
        "latent_channels": latent,
        "norm_num_groups": groups,
        "scaling_factor": scaling,
        "act_fn": "silu",
        **CODEC,
    }


CODEC = {
    "latents_mean": None, "latents_std": None, "mid_block_add_attention": True, "shift_factor": None,
    "use_post_quant_conv": True, "use_quant_conv": True,
}  # fmt: skip


def codec_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `codec_settings`."""
    their = {"layers_per_block": 1, "norm_num_groups": 32, "scaling_factor": 0.18215, **settings}
    have(their, "in_channels", "block_out_channels", "down_block_types", "up_block_types", "latent_channels")
    need(their, act_fn="silu", out_channels=their["in_channels"], **CODEC)
    attention = attending(their["down_block_types"], "DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    need(their, up_block_types=["AttnUpDecoderBlock2D" if i in attention else "UpDecoderBlock2D"
                                for i in reversed(range(len(their["down_block_types"])))])  # fmt: skip
    return {
        "channels": their["in_channels"],
        "size": sides(their["sample_size"]),
        "width": their["block_out_channels"][0],
        "multiples": multiples(their["block_out_channels"]),
        "blocks": their["layers_per_block"],
        "attention": attention,
        "latent": their["latent_channels"],
        "groups": their["norm_num_groups"],
        "scaling": float(their["scaling_factor"]),
    }


def have(settings: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for what is left out."""
    for name in names:
        if name not in settings:
            raise ValueError(f"its {name} is missing")


def sides(size: int | Sequence[int] | None) -> tuple[int, int]:
    """(height, width) of their sample_size."""
    if size is None:
        raise ValueError("its sample_size is missing")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def attending(kinds: Sequence[str], plain: str, attends: str) -> tuple[int, ...]:
    """The levels whose blocks attend."""
    for kind in kinds:
        if kind not in (plain, attends):
            raise ValueError(f"its blocks are {kind}")
    return tuple(level for level, kind in enumerate(kinds) if kind == attends)


def multiples(widths: Sequence[int]) -> tuple[int, ...]:
    """The levels' widths in units of the first."""
    if any(width % widths[0] for width in widths):
        raise ValueError(f"its widths {', '.join(map(str, widths))} are no multiples of the first")
    return tuple(width // widths[0] for width in widths)


def groups(network: nn.Module) -> int:
    """How many groups its norms have. Raises ValueError where they differ."""
    found = {part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm)}
    if len(found) != 1:
        raise ValueError(f"its norms have {min(found)} to {max(found)} groups")
    return found.pop()


def need(settings: Mapping[str, Any], **wanted: Any) -> None:
    """Raise ValueError where a setting is another; one left out is as wanted."""
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ValueError(f"its {name} is {settings[name]!r}, not {value!r}")
