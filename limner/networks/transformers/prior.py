"""unCLIP's prior: a causal transformer that guesses the clean embedding of an image from a text and a noisy one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.layers import at_least_float32
from limner.networks.transformers.dit import TimeEmbedder
from limner.networks.transformers.sequence import SequenceBlocks, Transformer

AFTER_TEXT = 4  # positions: the text's embedding, the time, the noisy embedding, and the one that is read


class PriorTransformer(nn.Module):
    """Noisy embedding [B, D] at times [B], in steps of a thousand, and an encoded text -> the clean one [B, D].

    The sequence (Ramesh 2022, 2.2): tokens of the text [B, L, context], at most ``length``; its embedding [B, D]; the
    time; the noisy embedding; a learnt token, whose output is the answer. Every position sees those before it, less the
    text's padding. The last four have positions of their own, so that a text may be padded to any length.
    """

    def __init__(self, blocks: SequenceBlocks, embedding: int, context: int, length: int):
        super().__init__()
        width = blocks.width
        self.time = TimeEmbedder(width, inputs=width)
        self.text_proj = nn.Linear(context, width)
        self.text_embedding_proj = nn.Linear(embedding, width)
        self.noisy_proj = nn.Linear(embedding, width)
        self.last = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(length + AFTER_TEXT, width))
        nn.init.normal_(self.position, std=0.1)
        self.transformer = Transformer(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, embedding)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """``text`` [B, D]; ``tokens`` [B, L, context] with ``mask`` [B, L], False at padding."""
        four = (
            self.text_embedding_proj(text),
            self.time(t),
            self.noisy_proj(x),
            self.last.expand(len(x), -1),
        )
        rest = torch.stack(four, dim=1) + self.position[-AFTER_TEXT:]  # [B, 4, W]
        first = self.text_proj(tokens) + self.position[: tokens.shape[1]]  # [B, L, W]
        h = torch.cat([first, rest], dim=1)  # [B, L + 4, W]
        length = h.shape[1]
        visible = F.pad(mask, (0, AFTER_TEXT), value=True)[:, None, None]  # [B, 1, 1, L + 4]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        h = self.transformer(h, visible & causal)  # [B, L + 4, W]
        return at_least_float32(self.head(self.norm(h[:, -1])))  # [B, D]
