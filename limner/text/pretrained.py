"""Frozen text encoders of transformers: CLIP's text tower, T5's encoder, BERT, sentence models."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner import files
from limner.core import Frozen
from limner.settings import LimnerError, need
from limner.text.encoder import ByteEncoder, EncodedText, TextConfig, TextEncoder, attention_pool

REMOTE = "hf:"  # before owner/name: may be fetched
T = TypeVar("T")


def text_encoder(config: TextConfig) -> TextEncoder:
    """The text encoder that a config describes."""
    encoder: Any = PretrainedEncoder(config) if config.pretrained else ByteEncoder(config)
    return encoder  # type: ignore[no-any-return]


def settle(config: T) -> T:
    """A dataclass with the settings of the encoders that its TextConfigs name, at any depth.

    Weights are not read yet. Raises LimnerError for a name that is none of a text encoder's.
    """
    if isinstance(config, TextConfig):
        if not config.pretrained or config.pretrained_settings:
            return config
        return dataclasses.replace(config, pretrained_settings=_read_settings(config.pretrained))  # type: ignore[return-value]
    inner = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    settled = {name: settle(value) for name, value in inner.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(config, **settled)  # type: ignore[type-var]


class PretrainedEncoder(nn.Module):
    """A frozen encoder of transformers, and a layer and attention pooling that are trained with the generator.

    Its settings are in the run's config, its weights and the files of its tokenizer in the run's weights: a run needs
    the package transformers, and nothing else.
    """

    def __init__(self, config: TextConfig, queries: int = 8):
        super().__init__()
        self.name, width = config.pretrained, config.width
        settings = json.loads(config.pretrained_settings)
        self.files: list[tuple[str, int]] = settings["files"]  # name and bytes
        self.length = min(config.length, settings["length"])
        self.width, self.pooled_width = width, queries * width
        network = _network(settings["config"])
        self.frozen: Any = Frozen(network)
        self.frozen.register_buffer("files", torch.zeros(sum(n for _, n in self.files), dtype=torch.uint8))
        self.project, self.norm = nn.Linear(_width(network.config), width), nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self._tokenizer: Any = None  # made from the files at the first text

    @property
    def limit(self) -> str:
        return f"{self.length} tokens of {self.name}"

    def learn(self, captions: Sequence[str]) -> None:
        """Take the pretrained weights; captions teach it nothing. Raises LimnerError where they cannot be read."""
        with _quietly() as transformers:
            kind = _kind(transformers, self.frozen.network.config)
            network, info = _load(
                kind, self.name, config=self.frozen.network.config, use_safetensors=True, output_loading_info=True,
                dtype=torch.float32,
            )  # fmt: skip
        lost = [key for key in info["missing_keys"] if "position_ids" not in key and "pooler" not in key]
        if lost or info["mismatched_keys"]:
            names = ", ".join(map(str, [*lost, *info["mismatched_keys"]][:3]))
            raise LimnerError(
                f"{self.name} lacks weights of its text encoder, such as {names}: name another."
            )
        if self.frozen.files.is_meta:  # a rehearsal, of what would be refused
            return
        self.frozen.network.load_state_dict(network.state_dict())
        content = b"".join(_tokenizer_files(self.name).values())
        self.frozen.files.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def read(self, text: str) -> str:
        ends = [end for _, end in self._tokenize([text], return_offsets_mapping=True)["offset_mapping"][0]]
        whole = len(self.tokenizer(_clean(text))["input_ids"]) <= self.length
        return text if whole else text[: max(ends, default=0)]

    def pieces(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, L, 2]: the token, and 1 except at padding."""
        tokens = self._tokenize(list(texts), padding=True)
        ids, mask = (torch.tensor(tokens[name]) for name in ("input_ids", "attention_mask"))
        return torch.stack([ids, mask], 2)

    def forward(self, pieces: Tensor) -> EncodedText:
        ids, mask = pieces.unbind(2)  # [B, L]
        with torch.no_grad():
            hidden = self.frozen(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, L, D]
        mask = mask.bool()  # [B, L]
        x = self.norm(self.project(hidden)) * mask[..., None]  # [B, L, W]
        return EncodedText(x, mask, attention_pool(x, mask, self.queries, self.key, self.value))

    @property
    def tokenizer(self) -> Any:
        """The encoder's tokenizer, from the files that lie in the weights."""
        if self._tokenizer is None:
            content, at = self.frozen.files.cpu().numpy().tobytes(), 0
            with _quietly() as transformers, tempfile.TemporaryDirectory() as folder:
                for name, size in self.files:
                    files.write_bytes(Path(folder) / Path(name).name, content[at : at + size])
                    at += size
                self._tokenizer = _load(transformers.AutoTokenizer, folder)
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
        return self._tokenizer

    def _tokenize(self, texts: list[str], **options: Any) -> Any:
        return self.tokenizer(list(map(_clean, texts)), truncation=True, max_length=self.length, **options)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._tokenizer = None


def _clean(text: str) -> str:
    """With ? for each lone surrogate, which tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _read_settings(name: str) -> str:
    """What the network and the tokenizer are made from, as JSON: of CLIP and the like, the text tower alone."""
    with _quietly() as transformers:
        config = _load(transformers.AutoConfig, name)
        config = getattr(config, "text_config", None) or config
        _width(config, name)
        positions = getattr(config, "max_position_embeddings", None) or 2**20
        length = min(_load(transformers.AutoTokenizer, name).model_max_length, positions)
    files = [(file, len(content)) for file, content in _tokenizer_files(name).items()]
    return json.dumps({"config": config.to_dict(), "files": files, "length": length})


def _tokenizer_files(name: str) -> dict[str, bytes]:
    with _quietly() as transformers, tempfile.TemporaryDirectory() as folder:
        _load(transformers.AutoTokenizer, name).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _network(config: dict[str, Any]) -> Any:
    """The network without its weights."""
    with _quietly() as transformers:
        made = transformers.AutoConfig.for_model(**config)
        return _kind(transformers, made).from_config(made)


def _kind(transformers: Any, config: Any) -> Any:
    """The class that makes text encoders of a config: of an encoder and decoder, the encoder alone."""
    encoders = transformers.AutoModelForTextEncoding
    return encoders if type(config) in encoders._model_mapping else transformers.AutoModel


def _width(config: Any, name: str = "it") -> int:
    """Channels of a token."""
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    if not isinstance(width, int):
        raise LimnerError(f"{name} is no text encoder of transformers: name one, such as CLIP's or T5's.")
    return width


def _load(kind: Any, name: str, **options: Any) -> Any:
    """What ``kind`` reads of a folder, or of hf:owner/name, which alone may be fetched. Raises LimnerError."""
    remote, path = name.startswith(REMOTE), name.removeprefix(REMOTE)
    if not remote and not Path(path).expanduser().is_dir():
        raise LimnerError(
            f"There is no folder {name} with a text encoder: name another, or {REMOTE}owner/name to fetch one."
        )
    place = path if remote else str(Path(path).expanduser())
    try:
        return kind.from_pretrained(place, local_files_only=not remote, trust_remote_code=False, **options)
    except Exception as error:  # it raises nearly anything for what is missing or damaged
        why = " ".join(str(error).split())[:200]
        raise LimnerError(
            f"{name} cannot be read as a text encoder of transformers, with weights as safetensors ({why}): name "
            "another."
        ) from None


@contextmanager
def _quietly() -> Iterator[Any]:
    """The package transformers, without its reports of what it loads."""
    transformers = need("transformers", "A pretrained text encoder needs transformers", "hf")
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
