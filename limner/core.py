"""The vocabulary that everything above and below shares: what an image is, what a model must say.

Images are float tensors in [-1, 1], ``[B, C, H, W]`` (video ``[B, C, T, H, W]``); alpha, where there is
one, is the last channel and colours are premultiplied by it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.settings import DataOptions, LimnerError, NoSampling, Optimiser, Training, nearest  # noqa: F401

# How the picture that a row is given comes about: made from the wanted one by the family itself (``Degrades``), its
# partner in a second source, or any picture of a second source that nothing pairs with the first.
Way = Literal["degraded", "pairs", "domains"]


@dataclass(frozen=True)
class ImageSpec:
    """What the data is; carried end to end and saved in the checkpoint."""

    channels: int  # 1 grey, 3 RGB, 4 RGBA
    height: int
    width: int
    frames: int = 1  # >1: video
    classes: tuple[str, ...] = ()  # label names, in index order
    captions: bool = False
    given: ImageSpec | None = None  # the picture that each row is given (Condition.image); None: none
    bits: int = 8  # 8 or 16 a channel, of the files
    rate: float | None = None  # frames a second of video; None: unknown

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, T, H, W) for video."""
        return (self.channels, *([self.frames] if self.frames > 1 else []), self.height, self.width)

    @property
    def noun(self) -> str:
        """What one of the data is, in messages."""
        return "clip" if self.frames > 1 else "image"

    @property
    def size_in_words(self) -> str:
        """Such as 3x64x64, or 16 frames of 3x64x64."""
        image = f"{self.channels}x{self.height}x{self.width}"
        return f"{self.frames} frames of {image}" if self.frames > 1 else image


@dataclass(frozen=True)
class Condition:
    """What each of ``size`` images should show; fields not used stay None."""

    size: int
    label: Tensor | None = None  # [B] class index
    text: list[str] | None = None  # B prompts
    image: Tensor | None = None  # [B, C, h, w] in [-1, 1]: given (spec.given), or to start drawing from
    mask: Tensor | None = None  # [B, 1, h, w] in {0, 1}: 1 = repaint
    blend: Blend | None = None  # with another condition

    def to(self, device: torch.device | str) -> Condition:
        tensors: tuple[Any, ...] = (self.label, self.image, self.mask, self.blend)
        label, image, mask, blend = (x if x is None else x.to(device) for x in tensors)
        return Condition(self.size, label, self.text, image, mask, blend)

    def __getitem__(self, rows: slice) -> Condition:
        """The condition of a run of images."""
        return Condition(
            len(range(self.size)[rows]), *(None if x is None else x[rows] for x in self._fields())
        )

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """The images of all parts, in order. Raises ValueError unless all parts have the same fields."""
        columns = list(zip(*(part._fields() for part in parts), strict=True))
        if any(len({x is None for x in column}) > 1 for column in columns):
            raise ValueError("conditions of different kinds cannot be concatenated")
        joins: tuple[Callable[[Any], Any], ...] = (torch.cat, _joined, torch.cat, torch.cat, Blend.cat)
        fields = (
            None if column[0] is None else join(column) for join, column in zip(joins, columns, strict=True)
        )
        return Condition(sum(part.size for part in parts), *fields)

    def _fields(self) -> tuple[Any, ...]:
        return self.label, self.text, self.image, self.mask, self.blend


def _joined(lists: Sequence[list[str]]) -> list[str]:
    return [text for texts in lists for text in texts]


@dataclass(frozen=True)
class Blend:
    """How far each image moves from its condition to another."""

    other: Condition
    share: Tensor  # [B] in [0, 1]

    def to(self, device: torch.device | str) -> Blend:
        return Blend(self.other.to(device), self.share.to(device))

    def __getitem__(self, rows: slice) -> Blend:
        return Blend(self.other[rows], self.share[rows])

    @staticmethod
    def cat(parts: Sequence[Blend]) -> Blend:
        """Raises ValueError as ``Condition.cat``."""
        return Blend(Condition.cat([part.other for part in parts]), torch.cat([part.share for part in parts]))


@dataclass(frozen=True)
class Batch:
    image: Tensor  # [B, C, H, W] in [-1, 1]; video [B, C, T, H, W]
    condition: Condition
    counts: Tensor | None = None  # [B, T] bool, of video: frames that count, of a still its first; None: all

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(
            self.image[rows], self.condition[rows], None if self.counts is None else self.counts[rows]
        )


@dataclass(frozen=True)
class Objective:
    """What one optimiser minimises in a step."""

    trains: str  # the submodule that is trained; also the name of its optimiser
    loss: Callable[[Batch], dict[str, Tensor]]  # named scalar terms; those not in ``shown`` are summed
    every: int = 1  # steps between updates; above 1 for lazy regularisers
    shown: tuple[str, ...] = ()  # terms that are logged and not minimised
    rate: Callable[[], float] | None = None  # a factor of the learning rate now, beside that of the schedule

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss that is minimised: the float32 sum of the terms that are not only shown."""
        return torch.stack([value.float() for name, value in terms.items() if name not in self.shown]).sum()


@dataclass(frozen=True)
class Preset:
    """A named starting point of a family: settings, and what they were published for."""

    model: Any  # the family's Config
    training: Training
    size: tuple[int, int] | None = None  # (height, width) in the paper; None: as the data has it
    channels: int | None = None  # in the paper; None: as the data has it
    classes: int = 0  # in the paper, where ``parameters`` depends on them
    captions: bool = False  # likewise
    parameters: Mapping[str, int] | None = None  # trainable, by submodule, in the public implementation


@dataclass(frozen=True)
class Parent:
    """Another run that a family builds on. A field of the family's config may name it; its weights are copied in.

    Before the first step, the settings of the parent's network go to ``config`` and its weights to ``weights``.
    """

    capability: type  # of the network that is taken: a Protocol below, or a class of network
    description: str  # of that network with its article, for messages: "an autoencoder"
    config: str  # field of the config that holds the network's settings, which the network has as ``config``
    weights: str  # submodule that holds the network's weights
    source: str = ""  # attribute of the parent's model that is the network; "": the whole model
    family: str = ""  # trained first if the field is empty; "": then there is no parent
    built_in: tuple[str, ...] = ()  # what the field may name that is no run, and that the family itself makes
    frozen: bool = True  # never trained, and shared with the average
    # (config, spec) -> (height, width) of its images; None: those of this run
    size: Callable[[Any, ImageSpec], tuple[int, int]] | None = None
    size_flag: str = ""  # what sets that size, if a setting does
    stills: bool = False  # trained on single pictures, also where this run is on clips
    share: float = 0.25  # of the budget, if it is trained first

    def is_run(self, name: str) -> bool:
        """Whether the field's value names a run."""
        return bool(name) and name not in self.built_in

    def find(self, model: Model) -> Any:
        """The network of ``model`` that is taken, or None if it has none with the capability."""
        network: Any = model
        for name in filter(None, self.source.split(".")):
            network = getattr(network, name, None)
        return network if isinstance(network, self.capability) else None


@dataclass(frozen=True)
class Canvas:
    """Where sampling is after ``done`` of ``total`` steps. Its images are computed only when they are called for."""

    done: int
    total: int
    picture: Callable[[], Tensor]  # -> [B, *spec.shape] in [-1, 1]; the last canvas holds the result
    denoised: Callable[[], Tensor] | None = None  # likewise, the clean image that the model expects from here

    def preview(self) -> Tensor:
        """[B, *spec.shape] in [-1, 1]: the denoised guess where there is one, else the picture."""
        return (self.denoised or self.picture)()


@dataclass(frozen=True)
class ConditionEmbedding:
    """What B images should show, as a network reads it. Raises ValueError for tokens without a mask."""

    embedding: Tensor | None = None  # [B, E], added to that of the time
    tokens: Tensor | None = None  # [B, L, D], for cross-attention
    mask: Tensor | None = None  # [B, L], True except at padding
    label: Tensor | None = None  # [B] class index, -1: none; for networks that embed it themselves

    def __post_init__(self) -> None:
        if (self.tokens is None) != (self.mask is None):
            raise ValueError("tokens need a mask, and a mask needs tokens")

    def __getitem__(self, rows: slice | Tensor) -> ConditionEmbedding:
        """Some of the rows, by a slice or by an index tensor."""
        return ConditionEmbedding(*(None if x is None else x[rows] for x in self._fields()))

    @staticmethod
    def cat(parts: Sequence[ConditionEmbedding]) -> ConditionEmbedding:
        """The rows of all parts, in order, so that one call can take them together.

        Tokens are padded to the longest with a False mask, which changes no result. Raises ValueError unless all
        parts have the same fields.
        """
        longest = max(0 if part.tokens is None else part.tokens.shape[1] for part in parts)
        if len(parts) == 1:
            return parts[0]
        columns = list(zip(*(part._padded(longest)._fields() for part in parts), strict=True))
        if any(len({x is None for x in column}) > 1 for column in columns):
            raise ValueError("condition embeddings of different kinds cannot be concatenated")
        return ConditionEmbedding(*(None if c[0] is None else torch.cat(c) for c in columns))

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.embedding, self.tokens, self.mask, self.label

    def _padded(self, length: int) -> ConditionEmbedding:
        if self.tokens is None or self.mask is None:
            return self
        more = length - self.tokens.shape[1]
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(self.mask, (0, more)))


class Denoised(NamedTuple):
    """A network's guess of the clean data of noisy x, both [B, ...]."""

    data: Tensor
    variance: Tensor | None = None  # shaped like data, in [0, 1], where it is learned: see solvers.ancestral


def mix(*numbers: int | str) -> int:
    """A 63-bit seed from any numbers and names; unrelated for related inputs."""
    text = ",".join(str(n) for n in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


# Of an image; or of two images, and how far from the first to the second, 0 to 1.
Seed = int | tuple[int, int, float]


class Draws:
    """One independent random stream per image, so no image depends on the others of its batch.

    Drawn on the CPU, so that a seed gives the same noise on every device. For a seed between two, normal numbers are
    interpolated on a quarter circle, which keeps them normal; all other numbers are those of the first seed.
    """

    def __init__(self, seeds: Sequence[Seed], device: torch.device | str = "cpu"):
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        ends = [seed[:2] if isinstance(seed, tuple) else (seed,) for seed in self.seeds]
        self.streams = [[torch.Generator().manual_seed(mix(int(s))) for s in both] for both in ends]

    @classmethod
    def of_step(cls, n: int, device: torch.device | str = "cpu") -> Draws:
        """The streams of ``n`` images of a training step, from torch's global generator, which the loop seeds."""
        return cls(torch.randint(2**62, (n,)).tolist(), device)

    @classmethod
    def cat(cls, parts: Sequence[Draws]) -> Draws:
        """The images of all parts, in order. Their streams go on from where they are, and stay those of the parts."""
        together = cls((), parts[0].device)
        together.seeds = tuple(seed for part in parts for seed in part.seeds)
        together.streams = [streams for part in parts for streams in part.streams]
        return together

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape], standard normal."""
        drawn = []
        for seed, streams in zip(self.seeds, self.streams, strict=True):
            one, *other = (torch.randn(shape, generator=g) for g in streams)
            if isinstance(seed, tuple):
                angle = seed[2] * math.pi / 2
                one = math.cos(angle) * one + math.sin(angle) * other[0]
            drawn.append(one)
        return torch.stack(drawn).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape], uniform in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=g) for g, *_ in self.streams]).to(self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """[B, *shape], uniform in {0, ..., high - 1}."""
        return torch.stack([torch.randint(high, shape, generator=g) for g, *_ in self.streams]).to(
            self.device
        )

    def choose(self, probabilities: Tensor) -> Tensor:
        """[B, ..., K] weights, not all 0 in a row -> [B, ...] indices of {0, ..., K - 1}, drawn by each row's weights.

        By one uniform number a row and a cumulative sum in float64, so an image gets the same indices alone and in
        a batch; an entry of weight 0 is never drawn.
        """
        weights = probabilities.detach().double().cpu()  # [B, ..., K]
        edges, rows = weights.cumsum(-1), weights.shape[1:-1]
        uniform = torch.stack([torch.rand(rows, generator=g, dtype=torch.float64) for g, *_ in self.streams])
        thresholds = (uniform * edges[..., -1])[..., None]  # [B, ..., 1]
        index = torch.searchsorted(edges, thresholds, right=True)[..., 0]  # [B, ...]
        last = (
            weights.shape[-1] - 1 - weights.flip(-1).gt(0).byte().argmax(-1)
        )  # where rounding reaches the end
        return torch.minimum(index, last).to(self.device)


class Frozen(nn.Module):
    """A network that is never trained nor averaged, wherever it stands in a model (``Model.frozen``)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)  # no dropout, no moving statistics

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.network(*inputs, **named)


class Model(nn.Module):
    """The base class of every family: ``Model(config, spec)`` has objectives, and the capabilities of its methods.

    Subclasses set the class attributes below and implement ``objectives``. ``__init__`` raises LimnerError, one
    sentence, for a config or a spec that the family cannot take, or SettingsError (networks/checks.py) for settings
    that make no network; it must also work on the meta device.
    """

    Config: ClassVar[type]  # plain frozen dataclass, above the class that reads it
    Sampling: ClassVar[type] = NoSampling  # dataclass of the settings at sampling time
    family: ClassVar[str]  # the name of its file
    # Condition fields that the class can use; "given" in place of "image" where it trains on given pictures
    reads: ClassVar[frozenset[str]] = frozenset()
    # Of a family that makes pictures from given ones: the ways in which it can be given them, the default first
    given_by: ClassVar[tuple[Way, ...]] = ()
    follows: frozenset[str]  # those of them that this model uses, by its settings and its data
    video: ClassVar[bool] = False  # whether it takes more than one frame
    # of one that Translates: whether the result shows the given picture itself, larger or repaired; then grey stays
    # grey, and alpha takes the same way as grey (a property, where the settings say)
    restores: bool = False
    # of one that Translates: multiples of its factor that a side has at least; 2 where edges are mirrored inside
    least: int = 2
    progress: float = 1.0  # share of its budget that training has spent, in [0, 1]; set before each step
    averaged: ClassVar[tuple[str, ...]] = ()  # submodules that the moving average follows
    parents: ClassVar[dict[str, Parent]] = {}  # runs that it builds on, by the config field that names one
    presets: ClassVar[dict[str, Preset]] = {}
    paper: ClassVar[str] = ""  # author, year, title
    about: ClassVar[str] = ""  # a phrase for `limner families`

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.family = cls.__module__.rpartition(".")[2]
        if cls.given_by:
            cls.reads |= {"given"}

    def __init__(self, config: Any, spec: ImageSpec):
        super().__init__()
        self.config, self.spec = config, spec
        has = {
            "label": bool(spec.classes),
            "text": spec.captions,
            "given": spec.given or "degraded" in self.given_by,
        }
        self.follows = frozenset(field for field in self.reads if has.get(field, True))
        if spec.frames > 1 and not self.video:
            raise LimnerError(f"{self.family} takes still images, not video: set --data.frames to 1.")

    def objectives(self) -> list[Objective]:
        raise NotImplementedError

    def channels_taken(self, sampling: Any) -> int:
        """Of one that Translates: the channels of its input; those of given pictures, unless a direction has others."""
        return (self.spec.given or self.spec).channels

    @property
    def drops_condition(self) -> bool:
        """Whether training leaves out the condition of some images; else guidance has nothing to lead away from."""
        return getattr(self.config, "condition_dropout", 0.0) > 0

    def with_labels(self, condition: Condition, draws: Draws) -> Condition:
        """The condition; where the model follows labels and is given none, each image's own stream draws one."""
        if condition.label is not None or "label" not in self.follows:
            return condition
        return replace(condition, label=draws.integers(len(self.spec.classes)))

    def learn_texts(self, captions: Sequence[str]) -> None:
        """Called once, before the first step of a new run, with the captions of its training images.

        Each module that learns from them does (``LearnsTexts``), but those that a parent's weights were copied into.
        """
        learnt = tuple(f"{parent.weights}." for parent in self.parents.values())
        for name, module in self.named_modules():
            if isinstance(module, LearnsTexts) and not f"{name}.".startswith(learnt):
                module.learn(captions)

    def advance(self, seen: int) -> None:
        """Set what depends on the images seen so far (growth, ramps); called before each step.

        What the losses of the last step left in buffers may be taken in here: processes have the same mean of them.
        """

    def remarks(self) -> list[str]:
        """Sentences on what a person should know of how training went; said at its end and in its report."""
        return []

    @property
    def frozen(self) -> tuple[str, ...]:
        """The submodules that are neither trained nor averaged: the weights of frozen parents, and ``Frozen`` ones."""
        parents = tuple(
            parent.weights
            for name, parent in self.parents.items()
            if parent.frozen and (parent.family or parent.is_run(getattr(self.config, name)))
        )
        modules = [name for name, module in self.named_modules() if isinstance(module, Frozen)]
        return (
            *parents,
            *(name for name in modules if not f"{name}.".startswith(tuple(f"{p}." for p in parents))),
        )

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        for name in self.frozen:  # no dropout, no moving statistics
            self.get_submodule(name).train(False)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


@runtime_checkable
class Resizes(Protocol):
    """A network that also takes the weights of one that was trained on images of another size."""

    def load_resized(self, other: Any) -> None:
        """Raises SettingsError for weights that do not fit."""


@runtime_checkable
class Merges(Protocol):
    """A network that trains with more weights than it amounts to. Its average, and what is saved, are ``merged``."""

    def merged(self) -> nn.Module:
        """The same function in as few weights, which are copies; itself where there is nothing to merge."""


def merge(model: Model) -> Model:
    """The model, whose submodules that ``Merges`` are replaced by what they amount to: as it is kept and used."""
    for name, part in model.named_children():
        setattr(model, name, merged(part))
    return model


def merged(part: nn.Module) -> nn.Module:
    """What a submodule amounts to."""
    return part.merged() if isinstance(part, Merges) else part


@runtime_checkable
class LearnsTexts(Protocol):
    """A network that takes what it reads texts with before a new run begins, into weights of fixed shapes."""

    def learn(self, captions: Sequence[str]) -> None:
        """Raises LimnerError where what it needs is not here."""


@runtime_checkable
class LearnsPictures(Protocol):
    """A model whose settings name pictures, which it takes before a new run begins, into buffers of fixed shapes."""

    picture_files: Mapping[str, ImageSpec]  # and as what each is read, cropped to its size

    def learn_pictures(self, pictures: Mapping[str, Tensor]) -> None:
        """[1, C, H, W] in [-1, 1], by file; on the meta device too."""


@runtime_checkable
class FitsModel(Protocol):
    """Settings of sampling some of whose values depend on the model."""

    def fit(self, model: Any) -> Any:
        """These settings as one model uses them. Raises LimnerError for what does not fit it."""


# Capabilities are Protocols, never base classes: a model can do what it has methods for.


@runtime_checkable
class Generates(Protocol):
    def sample(self, condition: Condition, sampling: Any, draws: Draws) -> Iterator[Canvas]: ...


@runtime_checkable
class Denoises(Protocol):
    """Guesses clean data at any noise level. Each row has a level and a condition of its own."""

    def embed(self, condition: Condition) -> ConditionEmbedding: ...

    def denoise(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
    ) -> Denoised:
        """x = alpha data + sigma noise [B, ...], its time [B], alpha and sigma [B, 1, ...], B rows."""


@runtime_checkable
class Autoencodes(Protocol):
    def encode(self, image: Tensor) -> Tensor: ...

    def decode(self, code: Tensor) -> Tensor: ...


@runtime_checkable
class Describes(Protocol):
    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D]."""


@runtime_checkable
class Classifies(Protocol):
    def classify(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, K] logits."""


@runtime_checkable
class Latent(Protocol):
    """Draws an image from one latent vector. ``sample`` applies both methods, and its settings in between.

    If the model follows labels, the condition has one for each image.
    """

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, D], one latent an image: noise, or the output of a mapping network; never truncated."""

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, D] -> [B, *spec.shape] in [-1, 1], differentiable and deterministic."""


@runtime_checkable
class Layered(Latent, Protocol):
    """Each layer of the generator can take a latent of its own, so that images mix: coarse of one, fine of another.

    Such latents need not have mean 0, unlike noise.
    """

    layers: int  # L, the coarsest first; ``paint`` also takes [B, L, D]


@runtime_checkable
class Directed(Protocol):
    """Has directions in its latent space, found from its weights, along which images change most."""

    def directions(self) -> Tensor:
        """[K, D] of length 1, the strongest first."""


@runtime_checkable
class Tokenises(Protocol):
    """Turns an image into a grid of integers and back."""

    codes: int  # entries of the codebook

    def tokenise(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, h, w] integers in {0, ..., codes - 1}."""

    def detokenise(self, tokens: Tensor) -> Tensor:
        """[B, h, w] integers -> [B, C, H, W] in [-1, 1]."""

    def codebook(self) -> Tensor:
        """[codes, D], the vector of each integer."""


@runtime_checkable
class Translates(Protocol):
    """Turns a picture of any size into another, ``scale`` times as large.

    ``limner apply`` pads sides to multiples of ``factor`` (networks/images/padding.py) and cuts the result. Norms that
    see the whole picture are those of networks/instance.py: they can be given its statistics in a tile.
    """

    scale: int  # output pixels a side for each input pixel
    factor: int  # input sides are multiples of it: 2 to the number of halvings
    least: int  # of them, at least

    def margin(self, sampling: Any) -> int | None:
        """Input pixels of surroundings that an output pixel depends on, given the statistics of those norms.

        None: on the whole picture. Several calls of a network reach several times as far.
        """

    def channels_taken(self, sampling: Any) -> int:
        """C of ``translate``."""

    def translate(self, image: Tensor, condition: Condition, sampling: Any, draws: Draws) -> Tensor:
        """[B, C, h, w] in [-1, 1] -> [B, C', scale h, scale w] in [-1, 1].

        ``sampling`` is the family's Sampling: a direction, a style, steps. A field of it with the metadata
        ``picture=True`` names a file, and holds [1, C, h', w'] when it comes here.
        """


@runtime_checkable
class Degrades(Protocol):
    """Makes the picture that it is given from the wanted one: in training, for sheets and for evaluation alike."""

    def degrade(self, image: Tensor, draws: Draws) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, C', h, w] in [-1, 1]."""


def given_pictures(model: Model, batch: Batch, draws: Draws | None = None) -> Tensor:
    """The pictures [B, C', h, w] that the images of a batch are made from: the data's, else those that it degrades.

    In training without ``draws``. Raises LimnerError for a model that is given none.
    """
    if batch.condition.image is not None:
        return batch.condition.image
    if not isinstance(model, Degrades):
        raise LimnerError(
            f"{model.family} makes its images from given pictures, and the data gives none: name two sources, the "
            "given pictures first."
        )
    return model.degrade(batch.image, draws or Draws.of_step(len(batch.image), batch.image.device))


@runtime_checkable
class Compares(Protocol):
    """Puts images and texts into one space, where a larger cosine says that they fit better.

    For classes by name, for search by text, for ranking and for measuring.
    """

    scale: float  # times the cosine: the logit of a text among others

    def embed_images(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D] of length 1."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, D] of length 1."""


@dataclass(frozen=True)
class Part:
    """One component of a folder of diffusers; ``_class_name`` among its settings says what it is."""

    folder: str  # "": the top
    settings: dict[str, Any]
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # by their names there


@runtime_checkable
class Exchanges(Protocol):
    """Its weights and settings can be written as diffusers has them, and read."""

    def to_diffusers(self) -> list[Part]:
        """Raises LimnerError for what has no counterpart there."""

    @classmethod
    def from_diffusers(cls, parts: Sequence[Part]) -> Model | None:
        """The model that these are; None where they are something else. Raises LimnerError as above."""
