"""Trigram similarity."""

import os
import subprocess
import sys

import torch

from limner.text.similarity import trigram_similarity


def test_texts_are_alike_by_the_letters_they_share():
    found = trigram_similarity(["Black cat", "black CAT", "black dog", "fern", "", ""])
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found.diagonal(), torch.ones(6))
    torch.testing.assert_close(found[[0, 4], [1, 5]], torch.ones(2))  # not by their case; two of no letters
    assert 0.3 < found[0, 2] < 0.8, "a word of two"
    assert found[0, 3] == found[0, 4] == 0


def test_likeness_is_the_same_to_the_bit_in_every_process():
    """Python orders a set of words anew in each, and a sum in another order is another one."""
    code = (
        "from limner.text.similarity import trigram_similarity\n"
        "words = [' '.join(f'{a * b}x{a + b}' for a in range(12)) for b in range(40)]\n"
        "print(trigram_similarity(words).numpy().tobytes().hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": str(seed)}, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(found) == 1
