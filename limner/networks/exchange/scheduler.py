"""Noise schedules as schedulers of diffusers have them, and back."""

import warnings
from collections.abc import Mapping
from typing import Any

from limner.networks.exchange.settings import ExchangeError, known_settings, require_equal

SCHEDULES = {  # our schedule -> their beta_schedule, its start and end
    "linear": ("linear", 1e-4, 0.02), "cosine": ("squaredcos_cap_v2", None, None),
    "scaled_linear": ("scaled_linear", 0.0015, 0.0195),
}  # fmt: skip
PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}


def scheduler_settings(
    schedule: str, steps: int, predict: str, learned: bool, headroom: float = 0.0
) -> dict[str, Any]:
    """The settings of their DDPMScheduler; ``predict`` is a key of PREDICTIONS."""
    if steps != 1000:
        raise ExchangeError(f"it takes {steps} steps, not 1000")
    name, start, end = SCHEDULES[schedule]
    return {
        "_class_name": "DDPMScheduler", "num_train_timesteps": steps, "beta_schedule": name,
        "beta_start": start or 1e-4, "beta_end": end or 0.02, "prediction_type": PREDICTIONS[predict],
        "variance_type": "learned_range" if learned else "fixed_large", "clip_sample": True,
        "clip_sample_range": 1 + headroom, "trained_betas": None,
    }  # fmt: skip


# Those whose networks are drawn from as ours are; of the others too many settings would be lost.
CLASSES = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")
FIXED = {  # settings that all of ours have
    "num_train_timesteps": 1000, "trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False,
    "clip_sample": True,
    "timestep_values": None, "tensor_format": "pt",  # of the first versions
}  # fmt: skip
STEPS = {  # settings of how their solver steps; a run of ours is drawn with those that a person gives
    "timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True,
}  # fmt: skip
DEFAULTS = {
    "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon",
    "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0,  # of thresholding
    **FIXED, **STEPS,
}  # fmt: skip
LARGEST_RANGE = 1.5  # of guesses; wider is another scale of the data rather than headroom
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")


def scheduler_options(settings: Mapping[str, Any]) -> tuple[Any, int, Any, bool, float]:
    """The inverse: schedule, steps, what is predicted, whether the variance is learned, headroom.

    Warns of settings that only choose a solver's steps, which the person chooses when drawing.
    """
    kind = settings["_class_name"]
    if kind not in CLASSES:
        raise ExchangeError(f"its scheduler is {kind}, not {CLASSES[0]} or {CLASSES[2]}")
    varies = {"variance_type": "fixed_small"} if kind.startswith("DDPM") else {}
    their = known_settings(settings, {**DEFAULTS, **varies})
    require_equal(their, **FIXED)
    limit = their["clip_sample_range"]
    if not isinstance(limit, int | float) or not 1 <= limit <= LARGEST_RANGE:
        raise ExchangeError(f"its clip_sample_range is {limit!r}")
    found = [ours for ours, (name, _, _) in SCHEDULES.items() if name == their["beta_schedule"]]
    if not found:
        raise ExchangeError(f"its beta_schedule is {their['beta_schedule']!r}")
    _, start, end = SCHEDULES[found[0]]
    if start is not None:
        require_equal(their, beta_start=start, beta_end=end)
    predict = [ours for ours, theirs in PREDICTIONS.items() if theirs == their["prediction_type"]]
    if not predict:
        raise ExchangeError(f"its prediction_type is {their['prediction_type']!r}")
    if varies and their["variance_type"] not in VARIANCES:
        raise ExchangeError(f"its variance_type is {their['variance_type']!r}")
    _warn_of_steps(their)
    learned, headroom = their.get("variance_type") == "learned_range", limit - 1
    return found[0], 1000, predict[0], learned, headroom


def _warn_of_steps(their: Mapping[str, Any]) -> None:
    """Warn of what is not kept, since it is chosen when drawing."""
    others = [f"{name} {their[name]!r}" for name, usual in STEPS.items() if their[name] != usual]
    if others:
        warnings.warn(
            f"The scheduler's {', '.join(others)} are not kept: --solver, --steps and --spacing choose the steps of "
            "a run.",
            stacklevel=3,
        )
    if str(their.get("variance_type")).startswith("fixed_small"):
        warnings.warn(
            "The scheduler's ancestral steps have the smaller variance: draw with --solver ancestral --variance 0 "
            "for the same.",
            stacklevel=3,
        )
