"""A picture out of noise, by hand: the first chapter, in NumPy alone.

    python examples/by_hand.py --to picture.png

Everything that a neural network does is here, forwards and backwards, in a few hundred lines: layers,
losses, gradient descent, and at the end a network that turns noise into a picture. Nothing is hidden in
a library, so read it from top to bottom. Then read `limner/families/dcgan.py`: the same ideas, with a
library that finds the derivatives by itself.

Arrays of images are [N, C, H, W]: N images with C colours, H rows and W columns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray

# 1. Layers
#
# A layer is a function y = f(x; w) with weights w. Training needs one thing more: told how much the loss E
# would change with each number that came out, dE/dy, the layer must say how much E changes with each number
# that went in, dE/dx, and with each of its own weights, dE/dw. That is the chain rule, and it is all that
# "backpropagation" means:
#
#     dE/dx = dE/dy · dy/dx          dE/dw = dE/dy · dy/dw
#
# So each layer below has a `forward` that remembers what its derivative will need, and a `backward`.


class Layer:
    """A step of a network; `weights` and `gradients` are lists that match one to one."""

    def __init__(self) -> None:
        self.weights: list[Array] = []
        self.gradients: list[Array] = []

    def forward(self, x: Array) -> Array:
        raise NotImplementedError

    def backward(self, gradient: Array) -> Array:
        raise NotImplementedError


class Dense(Layer):
    """y = x W + b: every output looks at every input.

    The first weights are random, and small enough that the sum of `inputs` terms has a size of about 1.
    """

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator):
        super().__init__()
        self.weights = [rng.normal(0, inputs**-0.5, (inputs, outputs)), np.zeros(outputs)]

    def forward(self, x: Array) -> Array:
        self.x = x  # [N, inputs]
        weight, bias = self.weights
        return x @ weight + bias  # [N, outputs]

    def backward(self, gradient: Array) -> Array:
        # y_j = sum_i x_i W_ij + b_j, so dy_j/dW_ij = x_i, dy_j/db_j = 1 and dy_j/dx_i = W_ij.
        self.gradients = [self.x.T @ gradient, gradient.sum(0)]
        return gradient @ self.weights[0].T  # [N, inputs]


class Convolution(Layer):
    """A small dense layer that looks at a window of the image, the same one wherever the window is.

    The border is padded with zeros, so the image keeps its size.
    """

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, size: int = 3):
        super().__init__()
        scale = (inputs * size * size) ** -0.5
        self.weights = [rng.normal(0, scale, (outputs, inputs, size, size)), np.zeros(outputs)]

    def forward(self, x: Array) -> Array:
        weight, bias = self.weights
        self.windows = windows(x, weight.shape[-1])  # [N, C, H, W, k, k]
        # Multiply every window by every filter and add up: over the colours and the window's two sides.
        y = np.tensordot(self.windows, weight, axes=([1, 4, 5], [1, 2, 3]))  # [N, H, W, outputs]
        return np.moveaxis(y + bias, 3, 1)  # [N, outputs, H, W]

    def backward(self, gradient: Array) -> Array:
        # A filter met every window of every image: add up what each of these meetings says.
        weight = np.tensordot(gradient, self.windows, axes=([0, 2, 3], [0, 2, 3]))  # [outputs, C, k, k]
        self.gradients = [weight, gradient.sum((0, 2, 3))]
        # A pixel that sits left of a window's centre sees that centre on its right. So the way back is a
        # convolution as well, with the filters turned by 180 degrees.
        turned = self.weights[0][:, :, ::-1, ::-1]
        back = np.tensordot(windows(gradient, turned.shape[-1]), turned, axes=([1, 4, 5], [0, 2, 3]))
        return np.moveaxis(back, 3, 1)  # [N, C, H, W]


def windows(x: Array, size: int) -> Array:
    """The size x size neighbourhood of every pixel: [N, C, H, W] -> [N, C, H, W, size, size].

    Nothing is copied. A NumPy array is a block of memory and the number of steps from one element to the
    next along each axis; `sliding_window_view` only adds two axes that walk over the same memory again.
    """
    margin = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    return sliding_window_view(padded, (size, size), axis=(2, 3))


class MaxPool(Layer):
    """Of each size x size block of pixels only the largest goes on."""

    def __init__(self, size: int = 2):
        super().__init__()
        self.size = size

    def forward(self, x: Array) -> Array:
        n, c, h, w = self.shape = x.shape
        s = self.size
        blocks = x.reshape(n, c, h // s, s, w // s, s).swapaxes(3, 4).reshape(n, c, h // s, w // s, s * s)
        self.winner = blocks.argmax(-1)[..., None]  # [N, C, H/s, W/s, 1]: which pixel of the block it was
        return np.take_along_axis(blocks, self.winner, -1)[..., 0]  # [N, C, H/s, W/s]

    def backward(self, gradient: Array) -> Array:
        # Only the winner had a say in the output, so it gets all of the gradient.
        n, c, h, w = self.shape
        s = self.size
        blocks = np.zeros((n, c, h // s, w // s, s * s), gradient.dtype)
        np.put_along_axis(blocks, self.winner, gradient[..., None], -1)
        return blocks.reshape(n, c, h // s, w // s, s, s).swapaxes(3, 4).reshape(self.shape)


class Reshape(Layer):
    """The same numbers in another arrangement: between images and the rows that a dense layer takes."""

    def __init__(self, *shape: int):
        super().__init__()
        self.to = shape

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), *self.to)

    def backward(self, gradient: Array) -> Array:
        return gradient.reshape(self.shape)


# Without something curved between them, two dense layers in a row would be no more than one. Any of these
# three will do; each is applied to every number by itself.


class Sigmoid(Layer):
    """1 / (1 + e^-x): squeezes into (0, 1), which suits the brightness of a pixel."""

    def forward(self, x: Array) -> Array:
        self.y = 0.5 * (1 + np.tanh(0.5 * x))  # the same function, but e^-x cannot overflow
        return self.y

    def backward(self, gradient: Array) -> Array:
        return gradient * self.y * (1 - self.y)


class Tanh(Layer):
    """Squeezes into (-1, 1)."""

    def forward(self, x: Array) -> Array:
        self.y = np.tanh(x)
        return self.y

    def backward(self, gradient: Array) -> Array:
        return gradient * (1 - self.y**2)


class ReLU(Layer):
    """max(0, x): lets through what is positive."""

    def forward(self, x: Array) -> Array:
        self.positive = x > 0
        return x * self.positive

    def backward(self, gradient: Array) -> Array:
        return gradient * self.positive


class Network(Layer):
    """Layers one after another. Forwards from the first to the last, backwards from the last to the first."""

    def __init__(self, *layers: Layer):
        super().__init__()
        self.layers = layers
        self.weights = [weight for layer in layers for weight in layer.weights]

    def forward(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, gradient: Array) -> Array:
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        self.gradients = [g for layer in self.layers for g in layer.gradients]
        return gradient


# 2. Losses
#
# One number that says how wrong the output is, and its derivative with respect to the output: with that,
# `backward` begins. N is the number of images (or whatever the rows are).

Loss = Callable[[Array, Array], tuple[float, Array]]


def mean_squared_error(output: Array, target: Array) -> tuple[float, Array]:
    """E = 1/(2N) sum (y - t)^2. The 2 is there to be cancelled: dE/dy = (y - t)/N."""
    n, error = len(output), output - target
    return float((error**2).sum() / (2 * n)), error / n


def binary_cross_entropy(output: Array, target: Array) -> tuple[float, Array]:
    """E = -1/N sum [t ln y + (1 - t) ln(1 - y)], for outputs in (0, 1): the surprise at seeing t.

    Its derivative is (y - t)/(y (1 - y))/N. The sigmoid's is y (1 - y): behind each other they give
    (y - t)/N, so a pixel that is utterly wrong learns fast. With the squared error the factor y (1 - y)
    stays, and a pixel that is wrong but sure of itself hardly learns at all.
    """
    n, y = len(output), np.clip(output, 1e-12, 1 - 1e-12)
    loss = -(target * np.log(y) + (1 - target) * np.log(1 - y)).sum() / n
    return float(loss), (y - target) / (y * (1 - y)) / n


def cross_entropy(scores: Array, label: Array) -> tuple[float, Array]:
    """E = -1/N sum ln p[label], with p = softmax(scores): for telling K classes apart, not for painting.

    scores [N, K], label [N] in {0, ..., K-1}. Here too the derivative is the plain difference (p - t)/N,
    t being 1 at the label and 0 elsewhere.
    """
    n = len(scores)
    p = np.exp(scores - scores.max(1, keepdims=True))  # the largest becomes e^0, so nothing overflows
    p /= p.sum(1, keepdims=True)
    right = np.arange(n), label
    loss = -np.log(p[right]).mean()
    p[right] -= 1
    return float(loss), p / n


# 3. Gradient descent
#
# The gradient points to where the loss grows fastest. So take a small step the other way, again and again.


def gradient_descent(network: Layer, rate: float) -> None:
    """w <- w - rate · dE/dw, for all weights at once."""
    for weight, gradient in zip(network.weights, network.gradients, strict=True):
        weight -= rate * gradient  # in place: the layer's own array changes


def train(network: Layer, loss: Loss, x: Array, target: Array, rate: float, batch: int) -> float:
    """One epoch: every row of x is looked at once, `batch` rows a step. Returns the mean loss."""
    losses = []
    for i in range(0, len(x), batch):
        output = network.forward(x[i : i + batch])
        value, gradient = loss(output, np.broadcast_to(target, output.shape))
        network.backward(gradient)
        gradient_descent(network, rate)
        losses.append(value)
    return float(np.mean(losses))


# 4. Did we get the derivatives right?
#
# A wrong derivative does not crash; it only learns badly. So measure it: move one weight a little to both
# sides, look at how the loss changes, and compare with what `backward` says.


def measured_gradient(loss: Callable[[], float], weight: Array, index: tuple[int, ...]) -> float:
    """dE/dw by the slope between two points near w: (E(w + h) - E(w - h)) / 2h."""
    h, kept = 1e-5, weight[index]
    weight[index] = kept + h
    above = loss()
    weight[index] = kept - h
    below = loss()
    weight[index] = kept
    return (above - below) / (2 * h)


def largest_disagreement(seed: int = 0) -> float:
    """Between measured and computed derivatives, over a few weights of each array of a little network."""
    rng = np.random.default_rng(seed)
    network = Network(
        Convolution(3, 4, rng),
        Tanh(),
        MaxPool(2),
        Reshape(64),
        Dense(64, 5, rng),
        ReLU(),
        Dense(5, 3, rng),
        Sigmoid(),
    )
    x, target = rng.random((2, 3, 8, 8)), rng.random((2, 3))
    _, gradient = mean_squared_error(network.forward(x), target)
    network.backward(gradient)
    worst = 0.0
    for weight, computed in zip(network.weights, network.gradients, strict=True):
        for _ in range(5):
            index = tuple(int(rng.integers(n)) for n in weight.shape)
            measured = measured_gradient(
                lambda: mean_squared_error(network.forward(x), target)[0], weight, index
            )
            worst = max(worst, abs(measured - computed[index]))
    return worst


# 5. A picture to paint


def landscape(size: int = 100, sharpness: int = 4) -> Array:
    """The sun going down behind mountains, a lake, a boat: [3, size, size] in [0, 1].

    Drawn `sharpness` times as large and averaged, so that edges are smooth.
    """
    fine = size * sharpness
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine  # each in (0, 1), from the upper left
    picture = np.empty((fine, fine, 3))

    def colour(code: str) -> Array:
        return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255

    def blend(upper: str, lower: str, share: Array) -> Array:
        return colour(upper) + (colour(lower) - colour(upper)) * np.clip(share, 0, 1)[..., None]

    def ridge(*peaks: tuple[float, float]) -> Array:
        """A mountain range through the given points (x, height above the shore)."""
        return shore - np.interp(x, *zip(*peaks, strict=True))

    def fill(where: Array, paint: Array) -> None:
        picture[where] = np.broadcast_to(paint, picture.shape)[where]

    shore, sun = 0.62, (0.63, 0.40)
    distance = np.hypot(x - sun[0], y - sun[1])
    picture[:] = np.where(
        (y < 0.35)[..., None],
        blend("2b2d6e", "c8577a", y / 0.35),
        blend("c8577a", "ffc46b", (y - 0.35) / 0.3),
    )
    glow = np.exp(-((distance / 0.22) ** 2))[..., None]
    picture[:] = picture + (colour("ffe9a8") - picture) * 0.75 * glow
    fill(distance < 0.105, colour("fff6d5"))
    far = ridge(
        (0, 0.14),
        (0.12, 0.27),
        (0.22, 0.19),
        (0.35, 0.34),
        (0.52, 0.12),
        (0.7, 0.17),
        (0.86, 0.25),
        (1, 0.12),
    )
    fill(y > far, blend("7a4a86", "b0668a", (y - far) / 0.25))
    snow = 0.325 + 0.03 * np.abs((x * 34) % 2 - 1)
    fill((y > far) & (y < snow) & (np.abs(x - 0.35) < 0.1), colour("ffe9e4"))
    near = ridge((0, 0.05), (0.18, 0.13), (0.34, 0.04), (0.5, 0.05), (0.74, 0.10), (0.9, 0.05), (1, 0.14))
    fill(y > near, blend("3b2a5c", "4d3468", (y - near) / 0.1))
    # The lake holds the sky upside down, darker, with a road of light under the sun.
    lake = y > shore
    fill(lake, blend("d9828b", "2a2a62", (y - shore) / 0.36))
    ripples = np.sin(y * 210 + 2 * np.sin(x * 14)) > 0.15
    road = np.abs(x - sun[0]) < 0.03 + 0.16 * (y - shore) + 0.02 * np.sin(y * 90)
    fill(lake & road & ripples, colour("ffdf9e"))
    # A boat: a hull, a mast and two sails.
    hull = (np.abs(x - 0.29) < 0.125 - 0.9 * (y - 0.76)) & (y > 0.76) & (y < 0.81)
    fill(hull, colour("1d1638"))
    fill((np.abs(x - 0.30) < 0.006) & (y > 0.44) & (y < 0.77), colour("1d1638"))
    fill((x > 0.315) & (x < 0.315 + 0.42 * (y - 0.46)) & (y < 0.74), colour("fdf3e3"))
    fill((x < 0.288) & (x > 0.288 - 0.36 * (y - 0.51)) & (y < 0.74), colour("ef6f5e"))
    picture = picture.reshape(size, sharpness, size, sharpness, 3).mean((1, 3))
    return np.moveaxis(picture, 2, 0)  # [3, size, size]


# 6. Noise in, picture out
#
# The network looks at uniform noise of 100 x 100 pixels in three colours. Convolution and pooling boil it
# down to a few numbers, dense layers paint all pixels from those. The noise is new for every image, so
# nothing can be learnt by heart but the picture itself: shown noise that it has never seen, the network
# must still paint it.


def painter(rng: np.random.Generator, size: int = 100) -> Network:
    return Network(
        Convolution(3, 8, rng),  # [N, 8, 100, 100]
        ReLU(),
        MaxPool(4),  # [N, 8, 25, 25]
        Convolution(8, 8, rng),  # [N, 8, 25, 25]
        ReLU(),
        MaxPool(5),  # [N, 8, 5, 5]
        Reshape(8 * (size // 20) ** 2),  # [N, 200]
        Dense(8 * (size // 20) ** 2, 32, rng),  # [N, 32]
        Tanh(),
        Dense(32, 3 * size * size, rng),  # [N, 30000]
        Sigmoid(),
        Reshape(3, size, size),  # [N, 3, 100, 100]
    )


def paint_and_show(
    to: Path, noises: int = 80, epochs: int = 5, batch: int = 4, seed: int = 0
) -> dict[str, float]:
    """Train one painter by each loss and save what they paint after every epoch.

    Returns for each loss how far off the last picture is: the mean difference of a pixel in [0, 1].
    """
    target = landscape()
    never_seen = np.random.default_rng(seed + 1).random((1, *target.shape))
    rows, off = [], {}
    for title, loss, rate in (
        ("mean squared error", mean_squared_error, 0.02),
        ("cross-entropy", binary_cross_entropy, 0.005),  # at y = 1/2 its gradient is 4 times as large
    ):
        rng = np.random.default_rng(seed)  # both begin with the same weights and see the same noise
        noise = rng.random((noises, *target.shape))  # uniform in (0, 1)
        network, row = painter(rng), []
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            mean_loss = train(network, loss, noise, target, rate, batch)
            picture = network.forward(never_seen)[0]
            off[title] = float(np.abs(picture - target).mean())
            row.append((picture, f"epoch {epoch}: off by {off[title]:.1%}"))
            seconds = time.perf_counter() - start
            print(f"{title}, epoch {epoch}: loss {mean_loss:.1f}, off by {off[title]:.1%}, {seconds:.1f} s")
        rows.append((f"Trained by {title}", row))
    figure(never_seen[0], rows, target).save(to)
    return off


def figure(noise: Array, rows: list[tuple[str, list[tuple[Array, str]]]], target: Array) -> Image.Image:
    """The noise on the left, a row of pictures for each loss, what was to be painted on the right."""
    side, gap, header, title_height, caption_height = 200, 16, 106, 30, 40
    row_height = title_height + side + caption_height
    columns = 2 + len(rows[0][1])
    width, height = columns * (side + gap) + 3 * gap, header + len(rows) * row_height + 34
    sheet = Image.new("RGB", (width, height), "#faf7f2")
    draw = ImageDraw.Draw(sheet)
    ink, soft = "#2b2d6e", "#5b5470"

    def text(x: float, y: float, words: str, size: int, fill: str = soft, anchor: str = "lt") -> None:
        draw.text((x, y), words, fill, ImageFont.load_default(size), anchor)

    def left(column: int) -> int:
        return gap + column * (side + gap) + gap * ((column > 0) + (column == columns - 1))

    def panel(column: int, y: int, image: Array, caption: str) -> None:
        pixels = np.moveaxis((image.clip(0, 1) * 255).round().astype(np.uint8), 0, 2)
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left(column), y))
        text(left(column) + side / 2, y + side + 8, caption, 16, anchor="mt")

    text(gap, 18, "A picture out of noise", 34, ink)
    text(
        gap,
        64,
        "painted by dense, convolution and pooling layers in NumPy, from noise that they had never seen",
        18,
    )
    middle = header + title_height + (len(rows) * row_height - title_height - caption_height - side) // 2
    panel(0, middle, noise, "noise goes in")
    panel(columns - 1, middle, target, "what was to be painted")
    for i, (title, row) in enumerate(rows):
        y = header + i * row_height
        text(left(1), y + 6, title, 18, ink)
        for column, (picture, caption) in enumerate(row, 1):
            panel(column, y + title_height, picture, caption)
    lesson = (
        "The specks that the squared error leaves were wrong but sure of themselves, so they hardly learn."
    )
    text(left(1), height - 34, lesson, 16)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a painter by hand and show what it learns.")
    parser.add_argument("--to", type=Path, default=Path("picture.png"), help="where the picture goes (PNG)")
    parser.add_argument("--noises", type=int, default=80, help="images of noise in an epoch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"Computed and measured derivatives differ by at most {largest_disagreement():.0e}.")
    paint_and_show(options.to, options.noises, seed=options.seed)
    print(f"Look at {options.to}.")


if __name__ == "__main__":
    main()
