"""What files of format 1 call the settings and weights of each family, and what they are called now; it is complete."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

Settings = dict[str, Any]

_TEXT = {"text_width": "text.width", "text_layers": "text.layers", "text_length": "text.length"}
_DROPOUT = {"drop_condition": "condition_dropout"}
_FLOW = {**_DROPOUT, "nearest": "sigma_floor"}
_BODY = {"body.ratio": "body.mlp_ratio"}
_HEAD = {"head": "head_width"}
_DIT = {**_BODY, "body.rotary": "body.rope", "body.gated": "body.swiglu"}
_DECODER = ("latent", "patch", "widths", "blocks", "attention_resolutions", "embedding")

# Dotted paths in the family's config: from -> to. A whole table may move too.
SETTINGS: dict[str, dict[str, str]] = {
    "ddpm": {**_HEAD, **_DROPOUT, "bound": "bound_weight"},
    "dino": {**_BODY, "locals": "local_views", "spread": "centering"},
    "dit": {**_TEXT, **_DIT, **_FLOW},
    "drifting": {
        **_TEXT, **_DIT, **_DROPOUT, "seer.ratio": "seer.mlp_ratio", "seer": "feature_encoder",
        **{name: f"decoder.{name}" for name in _DECODER},
        "head": "decoder.head_width", "fine": "decoder.full_size_width", "styles": "style_tokens",
        "codes": "style_codes", "features": "feature_widths", "edges": "edge_gain", "places": "feature_positions",
        "draws": "samples_per_step", "together": "classes_per_step", "each": "samples_per_text",
        "alike": "text_temperature",
    },
    "edm": {**_HEAD, **_DROPOUT, "spread": "sigma_data"},
    "flow": {**_HEAD, **_TEXT, **_FLOW},
    "latent": {**_HEAD, **_TEXT, **_DIT, **_FLOW},
    "mae": {
        **_BODY, "hidden": "mask_ratio", "normalise": "normalise_patches", "surroundings": "augment",
        "crop": "crop_area",
    },
    "meanflow": {
        **_HEAD, **_TEXT, **_DIT, **_FLOW, "predicts": "predict", "learn": "objective",
        "still": "flow_matching_share", "emphasis": "average_weight", "adaptive": "adaptive_power",
        "guided": "guided_share",
    },
    "r3gan": {"augment": "augment_probability"},
    "stylegan2": {
        "chance": "augment_probability", "most": "augment_limit", "target": "ada_target", "period": "ada_images",
    },
    "vit": {**_BODY, "smoothing": "label_smoothing"},
}  # fmt: skip

_AROUND = {r"\.around\.": ".shortcut."}
_SHORTCUT = {r"\.skip\.": ".shortcut."}
_EMBEDDER = {
    r"^(network|generator)\.(label|text)\.": r"\1.embedder.\2.",
    r"^(network|generator)\.pooled\.": r"\1.embedder.pooled_projection.", r"\.text\.slots$": ".text.queries",
}  # fmt: skip
_CODEC = {
    r"^autoencoder\.into\.": "autoencoder.quant_conv.", r"^autoencoder\.out_of\.": "autoencoder.post_quant_conv.",
    r"^autoencoder\.even\.": "autoencoder.code_norm.", **_AROUND,
}  # fmt: skip
_PATCH_EMBED = {r"\bbody\.embed\.": "body.patch_embed."}
_VIT = {**_PATCH_EMBED, r"\bbody\.token$": "body.class_token"}
_UNET = {  # networks.unets.unet and networks.decoder
    r"\.look\.(\w+)\.place\.": r".attention.\1.key_value.", r"\.look\.": ".attention.",
    r"\.place\.": ".position.", r"\.shrink\.": ".downsample.", r"\.grow\.": ".upsample.",
}  # fmt: skip
_PAPER_UNETS = {  # networks.unets.diffusion and song
    **_SHORTCUT,
    r"(\.blocks\.\d+|\.middle\.\d+|\.resample|\.(?:down|up)\.\d+\.\d+)\.embed\.": r"\1.embedding_proj.",
    r"\.looks\.": ".attentions.", r"\.enter\.": ".proj_in.", r"\.leave\.": ".proj_out.",
    r"\.places\.": ".self_attention.", r"\.tokens\.": ".cross_attention.",
    r"\.feed\.widen\.": ".feed_forward.up.", r"\.feed\.out\.": ".feed_forward.down.",
}  # fmt: skip

# Regular expressions for names of weights: pattern -> replacement, in this order.
WEIGHTS: dict[str, dict[str, str]] = {
    "autoencoder": _CODEC, "biggan": _SHORTCUT, "ddpm": {**_UNET, **_PAPER_UNETS}, "dino": _VIT,
    "dit": {**_EMBEDDER, **_PATCH_EMBED},
    "drifting": {
        **_EMBEDDER, **_PATCH_EMBED, **_UNET,
        r"^generator\.start\.": "generator.body.stem.", r"^generator\.narrow\.": "generator.body.head.",
        r"^generator\.draw\.": "generator.body.refine.",
        r"^generator\.(position|blocks|upsample|attention|norm)\.": r"generator.body.\1.",
        r"^encoder\.": "random_features.", r"^seer\.embed\.": "seer.patch_embed.",
        r"^seer\.token$": "seer.class_token", r"^seer\.": "feature_encoder.",
    },
    "edm": {**_UNET, **_PAPER_UNETS}, "flow": {**_EMBEDDER, **_UNET},
    "latent": {
        r"^centre$": "latent_mean", r"^rate$": "latent_scale",
        **_EMBEDDER, **_PATCH_EMBED, **_CODEC, **_UNET, **_PAPER_UNETS,
    },
    "mae": {
        **_VIT, r"^network\.enter\.": "network.decoder_embed.", r"^network\.missing$": "network.mask_token",
        r"^network\.leave\.": "network.decoder_pred.",
    },
    "meanflow": {**_EMBEDDER, **_PATCH_EMBED, **_UNET}, "stylegan2": _AROUND, "vit": _VIT,
}  # fmt: skip


def _resolutions(model: Settings, spec: Mapping[str, Any], levels: str, patch: int = 1) -> None:
    """The levels that attend, by number -> by the shorter side of their feature maps; ``levels`` has an entry each."""
    count = len(model.get(levels) or [1])
    multiple = max(1, patch) * 2 ** (count - 1)
    side = min(-(-spec[name] // multiple) * multiple // max(1, patch) for name in ("height", "width"))
    for old, new in ("attention", "attention_resolutions"), ("reading", "cross_attention_resolutions"):
        if old in model:
            model[new] = [side >> level for level in model.pop(old) if 0 <= level < count]


def _widths(model: Settings, spec: Mapping[str, Any]) -> None:
    _resolutions(model, spec, "widths", model.get("patch", 1))


def _multiples(model: Settings, spec: Mapping[str, Any]) -> None:
    patched = model.get("network", "quick") == "quick"  # the papers' U-Nets are not
    _resolutions(model, spec, "multiples", model.get("patch", 1) if patched else 1)


def _latent(model: Settings, spec: Mapping[str, Any]) -> None:
    codec = model.get("codec", {})
    factor = codec.get("patch", 2) * 2 ** (len(codec.get("multiples", (1, 2))) - 1)
    _multiples(codec, spec)
    _resolutions(model, {name: -(-spec[name] // factor) for name in ("height", "width")}, "multiples")


def _biggan(model: Settings, spec: Mapping[str, Any]) -> None:
    """Resolutions that no feature maps have did nothing."""
    from limner.networks.convnets import base_size  # imports torch

    if "attention" in model:
        (height, width), levels = base_size((spec["height"], spec["width"]))
        sides = [min(height, width) << level for level in range(levels + 1)]
        model["attention_resolutions"] = [r for r in model.pop("attention") if r in sides]


def _meanflow(model: Settings, spec: Mapping[str, Any]) -> None:
    """Other names of choices."""
    _widths(model, spec)
    choices = {
        "predicts": {"image": "data"}, "learn": {"derivative": "jvp"},
        "tangent": {"own": "predicted", "data": "conditional"},
    }  # fmt: skip
    for name in choices.keys() & model.keys():
        model[name] = choices[name].get(model[name], model[name])


# More than another name, in place, before SETTINGS: (the config, {"height": ..., "width": ..., ...} of the images).
CHANGED: dict[str, Callable[[Settings, Mapping[str, Any]], None]] = {
    "autoencoder": _multiples, "biggan": _biggan, "ddpm": _multiples, "drifting": _widths, "edm": _multiples,
    "flow": _widths, "latent": _latent, "meanflow": _meanflow,
}  # fmt: skip


def settings(run: Mapping[str, Any], spec: Mapping[str, Any]) -> Settings:
    """A run's JSON of format 1 -> of format 2; what is unknown stays, for the reader to refuse by name."""
    changed: Settings = copy.deepcopy(dict(run))
    family, model = changed.get("family"), changed.get("model")
    if isinstance(model, dict):
        try:
            CHANGED.get(str(family), lambda *_: None)(model, spec)
        except (TypeError, ValueError, ArithmeticError, AttributeError):  # values of another kind
            changed["model"] = model = copy.deepcopy(run["model"])
        for old, new in SETTINGS.get(str(family), {}).items():
            _move(model, old, new)
    return changed


def weight(family: str, name: str) -> str:
    """The name now of a weight that format 1 called ``name``."""
    for pattern, new in WEIGHTS.get(family, {}).items():
        name = re.sub(pattern, new, name)
    return name


def _move(table: Settings, old: str, new: str) -> None:
    """Rename the entry at a dotted path, if there is one."""
    *way, last = old.split(".")
    place: Any = table
    for key in way:
        place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        return
    value = place.pop(last)
    *way, last = new.split(".")
    for key in way:
        table = table.setdefault(key, {})
    table[last] = value
