"""The textbook's derivatives against torch, and the chapter's example by its real process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "by_hand.py"
spec = importlib.util.spec_from_file_location("by_hand", EXAMPLE)
assert spec and spec.loader
by_hand = importlib.util.module_from_spec(spec)
spec.loader.exec_module(by_hand)

RNG = np.random.default_rng(0)


def agree(layer, reference, *shape: int) -> None:  # type: ignore[no-untyped-def]
    """Outputs and every gradient of ``layer`` are those of ``reference(x, *weights)`` in torch to 1e-9."""
    x = RNG.normal(size=shape)
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, *layer.weights)]
    expected = reference(*inputs)
    seed = RNG.normal(size=expected.shape)
    expected.backward(torch.tensor(seed))
    np.testing.assert_allclose(layer.forward(x), expected.detach(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(layer.backward(seed), inputs[0].grad, rtol=0, atol=1e-9)
    assert len(layer.gradients) == len(inputs) - 1
    for computed, weight in zip(layer.gradients, inputs[1:], strict=True):
        np.testing.assert_allclose(computed, weight.grad, rtol=0, atol=1e-9)


def test_dense() -> None:
    agree(by_hand.Dense(7, 5, RNG), lambda x, w, b: x @ w + b, 3, 7)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution(size: int) -> None:
    layer = by_hand.Convolution(3, 4, RNG, size)
    layer.weights[1] += RNG.normal(size=4)
    agree(layer, lambda x, w, b: F.conv2d(x, w, b, padding=size // 2), 2, 3, 6, 9)


@pytest.mark.parametrize("size", [2, 3])
def test_max_pooling(size: int) -> None:
    agree(by_hand.MaxPool(size), lambda x: F.max_pool2d(x, size), 2, 3, 6, 12)


def test_max_pooling_gives_a_draw_to_the_first() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    pool = by_hand.MaxPool(2)
    pool.forward(np.zeros((1, 1, 4, 4)))
    np.testing.assert_array_equal(pool.backward(np.ones((1, 1, 2, 2))), x.grad)


@pytest.mark.parametrize(
    ("name", "reference"), [("Sigmoid", torch.sigmoid), ("Tanh", torch.tanh), ("ReLU", F.relu)]
)
def test_activations(name: str, reference) -> None:  # type: ignore[no-untyped-def]
    agree(getattr(by_hand, name)(), reference, 4, 50)


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        np.testing.assert_allclose(by_hand.Sigmoid().forward(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])


def both(loss, reference, output: np.ndarray, target: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    leaf = torch.tensor(output, requires_grad=True)
    expected = reference(leaf, torch.tensor(target))
    expected.backward()
    value, gradient = loss(output, target)
    assert value == pytest.approx(expected.item(), abs=1e-9)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=0, atol=1e-9)


def test_mean_squared_error_has_its_half() -> None:
    assert by_hand.mean_squared_error(np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros((2, 2)))[0] == 30 / 4
    output, target = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6))
    both(by_hand.mean_squared_error, lambda y, t: F.mse_loss(y, t, reduction="sum") / (2 * 4), output, target)


def test_binary_cross_entropy() -> None:
    output, target = RNG.uniform(0.05, 0.95, (4, 6)), RNG.random((4, 6))
    reference = lambda y, t: F.binary_cross_entropy(y, t, reduction="sum") / 4  # noqa: E731
    both(by_hand.binary_cross_entropy, reference, output, target)


def test_cross_entropy() -> None:
    both(by_hand.cross_entropy, F.cross_entropy, RNG.normal(size=(4, 6)), np.array([0, 5, 2, 2]))
    value, gradient = by_hand.cross_entropy(np.array([[1e4, 0.0]]), np.array([0]))
    assert value == 0 and np.isfinite(gradient).all()


def test_the_whole_painter_and_a_step_of_gradient_descent() -> None:
    network = by_hand.painter(np.random.default_rng(1), size=20)
    x, target = RNG.random((2, 3, 20, 20)), RNG.random((3, 20, 20))
    w = [torch.tensor(a, requires_grad=True) for a in network.weights]
    h = F.max_pool2d(F.relu(F.conv2d(torch.tensor(x), w[0], w[1], padding=1)), 4)
    h = F.max_pool2d(F.relu(F.conv2d(h, w[2], w[3], padding=1)), 5)
    y = torch.sigmoid(torch.tanh(h.flatten(1) @ w[4] + w[5]) @ w[6] + w[7]).unflatten(1, (3, 20, 20))
    loss = (y - torch.tensor(target)).square().sum() / (2 * 2)
    loss.backward()
    value = by_hand.train(network, by_hand.mean_squared_error, x, target, rate=0.1, batch=2)
    assert value == pytest.approx(loss.item(), abs=1e-9)
    for computed, start in zip(network.gradients, w, strict=True):
        np.testing.assert_allclose(computed, start.grad, rtol=0, atol=1e-9)
    for moved, start in zip(network.weights, w, strict=True):
        np.testing.assert_allclose(moved, (start - 0.1 * start.grad).detach(), rtol=0, atol=1e-9)


def test_measured_derivatives_find_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_hand.largest_disagreement() < 1e-9
    monkeypatch.setattr(by_hand.Tanh, "backward", lambda self, gradient: gradient * (1 - self.y))
    assert by_hand.largest_disagreement() > 1e-4


def test_the_example_paints_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    command = [sys.executable, EXAMPLE, "--to", picture, "--noises", "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    off = [
        float(line.split("off by ")[1].split("%")[0]) for line in done.stdout.splitlines() if "off by" in line
    ]
    assert len(off) == 10
    for epochs in (off[:5], off[5:]):
        assert epochs == sorted(epochs, reverse=True), "better with every epoch"
        assert epochs[-1] < 0.5 * epochs[0]
    with Image.open(picture) as image:
        assert image.width > 1200 and image.height > 500
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 5000
