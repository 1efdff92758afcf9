"""How families that draw tokens choose them: the options, and what must be refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from limner.core import Model
from limner.fields import Bounds, Checked, PositiveShare
from limner.settings import LimnerError

Temperature = Annotated[float, Bounds(0, 1000)]
Guidance = Annotated[float, Bounds(0, 1000)]


@dataclass(frozen=True)
class TokenSampling(Checked):
    usual_guidance: ClassVar[float] = 2.0  # where training blanked some captions

    # tokens are drawn with their logits divided by it; below 1: more probable ones, 0: always the most probable
    temperature: Temperature = 1.0
    # draw among the so many most probable tokens, and all that equal the last of them. Default: all
    top_k: Annotated[int, Bounds(1, 2**20)] | None = None
    top_p: PositiveShare = 1.0  # draw among the most probable tokens whose probabilities reach this sum
    # guidance scale; 1: no guidance. Default: 2, or 1 if training blanked no captions (--model.condition-dropout 0)
    guidance: Guidance | None = None

    def guidance_for(self, model: Model) -> float:
        """The guidance scale to draw with. Raises LimnerError where the model never learned what to guide away from."""
        can_guide = model.drops_condition and bool(model.follows & {"text", "label"})
        scale = self.guidance if self.guidance is not None else self.usual_guidance if can_guide else 1.0
        if scale != 1 and not can_guide:
            raise LimnerError(
                f"This run of {model.family} never left its condition out in training, so it cannot draw with "
                f"--guidance {scale:g}: leave --guidance out, or train with --model.condition-dropout above 0."
            )
        return scale

    def check_top_k(self, codes: int) -> None:
        """Raises LimnerError for a top-k above the tokens that there are."""
        if self.top_k is not None and self.top_k > codes:
            raise LimnerError(
                f"--top-k {self.top_k} is above the {codes:,} tokens of this run: choose 1 to {codes}, or leave it out."
            )
