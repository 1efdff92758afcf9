"""Checkpoints of an earlier Limner open and give the same outputs; ``frozen/make.py`` wrote them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from limner import checkpoint
from limner.config import read_run
from tests.frozen.outcome import outcome

FOLDER = Path(__file__).parent / "frozen"
MODELS = sorted(p.stem for p in FOLDER.glob("*.zip") if not p.stem.startswith("run-"))
RUNS = sorted(p.stem for p in FOLDER.glob("run-*.zip"))


# Sampling settings of that time, and their names now.
RENAMED = {"guide_from": "guidance_low", "guide_to": "guidance_high", "guided": "guided_channels"}
# Defaults of that time that are others now, by family.
DEFAULTS = {"flow": {"solver": "unipc"}}


def unpack(name: str, to: Path) -> Path:
    with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
        archive.extractall(to)
    return to


@pytest.mark.parametrize("name", MODELS)
def test_opens_and_gives_what_it_gave(name, tmp_path):
    run = unpack(name, tmp_path)
    loaded = checkpoint.load(run)
    assert read_run(run) == loaded.run
    sampling = json.loads((run / "sampling.json").read_text())
    sampling = {RENAMED.get(name, name): value for name, value in sampling.items()}
    sampling = DEFAULTS.get(loaded.run.family, {}) | sampling
    with np.load(run / "outcome.npz", allow_pickle=False) as wanted:
        found = outcome(loaded.model, sampling)
        assert found.keys() == set(wanted.files) and found
        for key, value in found.items():
            if value.dtype == np.uint8:  # within one level: processors round differently
                assert np.abs(value.astype(int) - wanted[key].astype(int)).max() <= 1, key
            else:
                np.testing.assert_allclose(value, wanted[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes(name, tmp_path, limner):
    run = unpack(name, tmp_path)
    before = checkpoint.load(run)
    family = before.run.family
    limner("train", family, "digits", "--out", run, "--resume", "--budget", "64img")
    after = checkpoint.load(run)
    assert after.header["seen"] == 64
    assert after.header["parents"] == before.header["parents"]
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True)
    ]
    assert any(changed)
