"""How families that draw tokens choose them: the options, and what must be refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

from limner.core import Model
from limner.diffusion.sampling import guidance_scale
from limner.fields import Bounds, Checked, PositiveShare
from limner.settings import LimnerError

Temperature = Annotated[float, Bounds(0, 1000)]
Guidance = Annotated[float, Bounds(0, 1000)]


@dataclass(frozen=True)
class TokenSampling(Checked):
    one_call: ClassVar[bool] = False  # a network call for each token, or several
    interpolates: ClassVar[bool] = False  # nothing lies between the tokens of two seeds
    usual_guidance: ClassVar[float] = 2.0  # where training blanked some captions

    # tokens are drawn with their logits divided by it; below 1: more probable ones, 0: always the most probable
    temperature: Temperature = 1.0
    # draw among the so many most probable tokens, and all that equal the last of them. Default: all
    top_k: Annotated[int, Bounds(1, 2**20)] | None = None
    top_p: PositiveShare = 1.0  # draw among the most probable tokens whose probabilities reach this sum
    # guidance scale; 1: no guidance. Default: 2, or 1 if training blanked no captions (--model.condition-dropout 0)
    guidance: Guidance | None = None

    def guidance_for(self, model: Model) -> float:
        """The guidance scale to draw with. Raises LimnerError, as ``guidance_scale``."""
        return guidance_scale(model, self.guidance, self.usual_guidance)

    def fit(self, model: Any) -> Self:
        """These settings as one model uses them. Raises LimnerError for what does not fit it."""
        self.check_top_k(model.tokenizer.codes)
        return replace(self, guidance=self.guidance_for(model))

    def check_top_k(self, codes: int) -> None:
        """Raises LimnerError for a top-k above the tokens that there are."""
        if self.top_k is not None and self.top_k > codes:
            raise LimnerError(
                f"--top-k {self.top_k} is above the {codes:,} tokens of this run: choose 1 to {codes}, or leave it out."
            )
