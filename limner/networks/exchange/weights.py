"""Weights of our networks by the names of diffusers, and back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from limner.networks.codec import Attention as CodecAttention
from limner.networks.exchange.settings import ExchangeError, require_equal
from limner.networks.layers import Down, Up
from limner.networks.unets.diffusion import Attention, DiffusionUNet, Level

M = TypeVar("M", bound=nn.Module)
PARTS = {  # our names and theirs, in a block and in attention, where they differ
    "embedding_proj": "time_emb_proj", "shortcut": "conv_shortcut", "norm": "group_norm", "out": "to_out.0",
}  # fmt: skip
# Their names before 2023 -> now.
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


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


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def build(make: Callable[[], M], part: str, weights: Mapping[str, Tensor], groups: int) -> M:
    """The model of ``make``, with the weights by their names in its submodule ``part``.

    Raises ExchangeError for other ``groups`` of norms than ours, and for weights that do not fit: before memory is
    taken for the model, which settings may make as large as they like.
    """
    if not weights:
        raise ExchangeError("its file of weights is missing")
    for old, new in OLD.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    with torch.device("meta"):
        check_weights(make().get_submodule(part), weights, groups)
    model = make()
    import_weights(model.get_submodule(part), weights)
    return model


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], groups: int) -> None:
    """Raises ExchangeError for missing, unknown or misshapen weights, other types, and values that are not finite."""
    require_equal({"norm_num_groups": groups}, norm_num_groups=norm_groups(network))
    table = weight_names(network)
    wanted = {name for names in table.values() for name in names}
    for what, odd in (("lacks", wanted - weights.keys()), ("has besides", weights.keys() - wanted)):
        if odd:
            raise ExchangeError(f"it {what} {len(odd)} weights, such as {min(odd)}")
    for ours, names in table.items():
        rows, *others = network.get_parameter(ours).shape
        for name in names:
            value = weights[name]
            if _without_kernel(value.shape) != _without_kernel((rows // len(names), *others)):
                shape = "x".join(map(str, value.shape))
                raise ExchangeError(f"its {name} of {shape} does not fit the settings")
            if value.dtype not in FLOATS:
                raise ExchangeError(f"its {name} holds {str(value.dtype).removeprefix('torch.')} values")
            if not bool(value.isfinite().all()):
                raise ExchangeError(f"its {name} holds infinite values or NaN")


def _without_kernel(shape: Sequence[int]) -> tuple[int, ...]:
    """A 1x1 convolution counts as a matrix."""
    return tuple(shape[:2] if tuple(shape[2:]) == (1, 1) else shape)


@torch.no_grad()
def import_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill our network from weights that fit it, by their names."""
    for ours, names in weight_names(network).items():
        values = [weights[name].float() for name in names]
        parameter = network.get_parameter(ours)
        if len(names) == 3:
            heads, split = _heads(network, ours)
            stacked = torch.stack([value.unflatten(0, (heads, -1)) for value in values], 0 if split else 1)
            values = [stacked.flatten(0, 2)]
        parameter.copy_(values[0].reshape(parameter.shape))


def norm_groups(network: nn.Module) -> int:
    """The number of groups of all norms. Raises ExchangeError if they differ."""
    found = {part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm)}
    if len(found) != 1:
        raise ExchangeError(f"its norms have {min(found)} to {max(found)} groups")
    return found.pop()


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
