"""A pool of images that a generator drew earlier, which a discriminator is shown again (Shrivastava 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limner.distributed import gather_rows, own_rows

PIECES = 255  # steps from -1 to 1 of a byte


class ImagePool(nn.Module):
    """The last images of a generator, as bytes, so that a checkpoint holds them and processes do not average them.

    All processes hold the same pool: each asks it for the images of all, in order.
    """

    images: Tensor  # [N, C, H, W] uint8
    held: Tensor  # how many of them there are

    def __init__(self, size: int, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape, dtype=torch.uint8))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> as many, some of them earlier ones. Out of training: the images themselves."""
        if not self.training or not len(self.images):
            return image
        chance = torch.rand(len(image), device=image.device)
        place = torch.randint(len(self.images), (len(image),), device=image.device)
        return own_rows(self.exchange(*map(gather_rows, (image, chance, place))))

    @torch.no_grad()
    def exchange(self, image: Tensor, chance: Tensor, place: Tensor) -> Tensor:
        """Each image in turn: kept while the pool is not full; then with a ``chance`` above 0.5 it takes a ``place``.

        It returns what was in that place, and else the image itself.
        """
        returned = image.clone()
        draws = zip(chance.tolist(), place.tolist(), strict=True)
        for i, (chosen, at) in enumerate(draws):
            new = ((image[i] + 1) * (PIECES / 2)).round().clamp(0, PIECES).to(torch.uint8)
            if self.held < len(self.images):
                self.images[self.held] = new
                self.held += 1
            elif chosen > 0.5:
                returned[i] = self.images[at].to(image.dtype) * (2 / PIECES) - 1
                self.images[at] = new
        return returned
