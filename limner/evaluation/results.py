"""What measuring finds. Each result's ``to_json`` is what evaluation.json, report.json and --json hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from limner.evaluation.options import CompareOptions
from limner.fields import INLINE, JsonResult
from limner.inference.understand import Accuracy
from limner.metrics.memorised import Memorised


@dataclass(frozen=True)
class Figure(JsonResult):
    """A figure of drawn images against real ones."""

    value: float
    low: float  # 95% interval of the figure's expectation at this number of images
    high: float
    floor: float  # the mean figure of as many real images, in place of the drawn ones, against the same real ones
    floor_n: int  # images that value and floor compare with ``real`` others
    k: int | None = None  # neighbours


@dataclass(frozen=True)
class Ratio(JsonResult):
    """A mean over drawn clips, relative to that over real ones."""

    value: float
    low: float  # 95% interval
    high: float
    drawn: float  # the means themselves
    real: float


@dataclass(frozen=True, kw_only=True)
class FeatureFigures(JsonResult):
    """How close a set of images is to the real ones in one space of features."""

    n: int
    compared: int = 0  # of them that each figure compares, as many as its floor; 0: by an earlier version
    real: int  # real images that both are compared with
    features: str
    features_hash: str
    resize: str  # what happens to an image's size before its features are computed
    kid: Figure
    frechet: Figure
    precision: Figure
    recall: Figure
    density: Figure
    coverage: Figure


@dataclass(frozen=True, kw_only=True)
class Fidelity(FeatureFigures):
    """How close a set of images is to the real ones, and whether it copies them."""

    size: list[int]  # [H, W] that both sides were compared at
    channels: int | None = None  # that both sides were compared in
    frames: int | None = (
        None  # of clips; the main figures are those of whole clips, sliced Wasserstein of frames
    )
    rate: float | None = None  # frames a second, where it is known
    motion: Ratio | None = None  # mean difference of neighbouring frames
    jitter: Ratio | None = None  # mean second difference
    other_features: dict[str, FeatureFigures] = field(default_factory=dict)  # by name
    memorised: float | None = None  # fraction nearer to a training image than held-out images usually are
    copies: Memorised | None = None  # the same with its interval, and beside that of a perfect generator
    memorised_absent: str | None = None  # why it was not measured
    collapsed: str | None = (
        None  # what is wrong with most images: "80% are wholly transparent", "all are alike"
    )
    identical: int = 0  # images that equal a real one, byte for byte
    duplicates: int = 0  # images that equal an earlier one of them
    real_duplicates: int = 0  # real images that equal an earlier real one
    sliced_wasserstein: dict[str, float]  # pixels a side -> distance, times 1000
    prompts_exact: float | None = None  # fraction drawn as prompted, where the truth of images is known
    prompts_low: float | None = None  # its 95% interval
    prompts_high: float | None = None
    prompts_floor: float | None = None  # the same fraction of real images
    prompts_n: int | None = None
    prompts_unseen: bool | None = None  # whether no training image showed what they describe; None: not known
    notes: list[str] = field(default_factory=list)  # sentences on what was compared, and how


@dataclass(frozen=True)
class FewLabels(JsonResult):
    """Accuracy of linear probes that are trained on few labels."""

    value: float  # mean over the draws
    spread: float  # standard deviation over the draws
    n: int
    labels_per_class: int
    draws: int  # random choices of the labelled images


@dataclass(frozen=True)
class Understanding(JsonResult):
    """What the labels of held-out images say of a run's features and classes."""

    knn_accuracy: Accuracy | None = None
    probe_accuracy: Accuracy | None = None
    few_probe_accuracy: FewLabels | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True)
class Mean(JsonResult):
    """A mean over images, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class MatchScore(JsonResult):
    """How well drawn images follow their prompts: 100 times the cosine of both by a run that compares them."""

    run: str  # digest of that run
    n: int
    score: Mean  # of drawn images with their prompts
    floor: Mean  # of the same images with each other's prompts
    ceiling: Mean  # of the real images that the prompts are the captions of


@dataclass(frozen=True)
class Reconstruction(JsonResult):
    """How well an autoencoder reconstructs held-out images: means over ``n`` of them."""

    psnr: float  # dB
    ssim: float | None = None  # None below 11 pixels a side
    ms_ssim: float | None = None
    n: int = 0


@dataclass(frozen=True, kw_only=True)
class Closeness(JsonResult):
    """How near pictures are to the true ones: means over pictures, those on Y without a border of ``scale`` pixels."""

    psnr: Mean  # dB; of RGBA over white
    psnr_alpha: Mean | None = None  # dB; None without alpha
    psnr_y: Mean | None = None  # dB, on Y of BT.601; None for grey
    ssim: Mean | None = None  # None below 11 pixels a side
    ssim_y: Mean | None = None
    perceptual: Mean  # distance in the features of ``Translation.network``


@dataclass(frozen=True, kw_only=True)
class Translation(JsonResult):
    """What a run makes of given pictures, against the true ones, beside the given pictures themselves."""

    n: int
    scale: int
    beside: str  # what the given pictures are compared as: themselves, or enlarged by bicubic
    result: Closeness | None = None  # None where the true pictures are not known
    given: Closeness | None = None
    network: str | None = None  # in whose features the perceptual distance is
    kid: Figure | None = None  # kernel distance to other wanted pictures; None below 20 on a side
    kid_given: Figure | None = None
    features: str  # of the kernel distance
    notes: list[str] = field(default_factory=list)  # sentences for the person


@dataclass(frozen=True)
class HeldOut(JsonResult):
    """The images that figures of held-out images stand on."""

    n: int
    reliable: bool  # whether the run was kept from them
    why: str | None = None  # where it is not known to have been, or there are too few

    def __str__(self) -> str:
        if self.why:
            return f"Figures of held-out images are not reliable: {self.why}."
        return f"{self.n:,} real images are held out: the run was not trained on them."


@dataclass(frozen=True, kw_only=True)
class Evaluation(JsonResult):
    """All that ``evaluate`` found."""

    of: str
    against: list[str]
    run: str | None = None  # digest
    sampling: Any = None  # the family's Sampling
    held_out: HeldOut | None = None
    fidelity: Fidelity | None = field(default=None, metadata=INLINE)
    matches: MatchScore | None = None
    reconstruction: Reconstruction | None = None
    translation: Translation | None = None
    understanding: Understanding | None = field(default=None, metadata=INLINE)
    to: str | None = None  # folder of evaluation.json and the pictures
    training_data: JsonResult | None = None


@dataclass(frozen=True)
class Cost(JsonResult):
    """What a family took."""

    parameters: int
    seen: int  # images
    seconds: float  # of training
    images_per_second: float  # of training
    sampling_ms: float  # an image


@dataclass(frozen=True, kw_only=True)
class Row(JsonResult):
    """One family of a comparison."""

    family: str
    peak_memory: int | None = None  # bytes
    failed: str | None = None  # why; then there is neither cost nor fidelity
    unfinished: bool | None = None  # failed by a signal that ended its training, which can be resumed
    cost: Cost | None = field(default=None, metadata=INLINE)
    fidelity: Fidelity | None = field(default=None, metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class Comparison(JsonResult):
    """Several families, each trained for the same time on the same images."""

    sources: list[str]
    options: CompareOptions = field(metadata=INLINE)
    extra: list[str]  # more arguments of every training
    rows: list[Row]  # in the order of the names; without those of families that were not reached
    ranking: list[str]  # families, the best first
    advice: str
    stopped: int | None = None  # the signal that ended it early
