"""The benchmarks run with tiny budgets, also where the libraries that they compare with are not installed."""

import ast
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limner
from tests.helpers import paint

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = ["--preset", "tiny", "--threads", "1"]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Without the libraries, whether they are installed or not."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(monkeypatch, script, *argv):
    monkeypatch.setattr(sys, "argv", [script, *map(str, argv)])
    return runpy.run_path(str(BENCHMARKS / script), run_name="__main__")


@pytest.mark.parametrize("script", ["train_speed.py", "sample_speed.py"])
def test_speed_says_what_to_install(script, monkeypatch, capsys):
    run(monkeypatch, script, *TINY, "--batch", 2, "--seconds", 0.01, "--json")
    said = capsys.readouterr()
    assert "pip install diffusers" in said.err and "denoising-diffusion-pytorch" in said.err
    told = json.loads(said.out)
    assert told["against"] == {} and told["limner_images_per_second"] > 0


def test_quality_keeps_samples_and_figures(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "quality"
    argv = ["--out", out, "--sets", "digits", "--seconds", 0.2, "--n", 3, "--classifier-steps", 2]
    run(monkeypatch, "quality_budget.py", *TINY, *argv, "--peers", "diffusers")
    assert "pip install diffusers" in capsys.readouterr().err
    told = json.loads((out / "results.json").read_text())["sets"]["digits"]
    assert set(told["contestants"]) == {"limner"}
    assert told["contestants"]["limner"]["n"] == 3 and all(
        map(math.isfinite, told["contestants"]["limner"]["frechet"].values())
    )
    assert (out / "digits-limner.png").is_file() and (out / "digits-real.png").is_file()
    with pytest.raises(SystemExit, match="is there already"):
        run(monkeypatch, "quality_budget.py", *TINY, *argv)


def test_batch_cost(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    run(monkeypatch, "batch_cost.py", "digits", *TINY, "--steps", 2, "--json")
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["share"] < 1 and told["share"] == pytest.approx(told["read_ms"] / told["step_ms"])


@pytest.mark.parametrize("side", [32, 64])
def test_dcgan_is_of_the_size_asked_for_and_learns(side):
    from peers import DCGAN

    torch.manual_seed(0)
    ones = torch.ones(8, 1, side, side)
    peer = DCGAN(ones, 500_000, batch=8)
    assert peer.parameters == pytest.approx(500_000, rel=0.03)
    with torch.no_grad():
        before = float(peer.discriminator_loss(ones, 1.0))
    for _ in range(5):
        peer.step(0.5)
    with torch.no_grad():
        assert float(peer.discriminator_loss(ones, 1.0)) < before
    drawn = peer.sample(3, calls=1)
    assert drawn.shape == (3, 1, side, side) and float(drawn.abs().max()) <= 1


def test_pairs_are_timed_in_turns():
    from pairs import alternate, summary

    turns = []
    measured = alternate(lambda: turns.append("a") or 2, lambda: turns.append("b") or 1, 0.0, 3)
    assert turns == list("ab" + "ab" + "ba" + "ab")
    assert len(measured) == 3
    assert summary([(8.0, 1.0), (9.0, 3.0), (10.0, 2.0)]) == {
        "limner_images_per_second": 9.0, "peer_images_per_second": 2.0,
        "ratio": 5.0, "ratio_least": 3.0, "ratio_most": 8.0, "pairs": 3,
    }  # fmt: skip


def test_frechet_of_known_gaussians():
    """For diagonal covariances it is |a - b|^2 + sum (sqrt A - sqrt B)^2 (Dowson and Landau 1982)."""
    from quality_budget import frechet

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200_000, 3))
    b = b * [1.0, 2.0, 0.5] + [3.0, 0.0, 0.0]
    assert frechet(a, b) == pytest.approx(9 + 1 + 0.25, rel=0.02)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    flat = np.repeat(a[:1], 10, axis=0)  # singular: no spread at all
    assert frechet(flat, flat) == pytest.approx(0, abs=1e-9)


def test_the_checks_of_a_gpu_run_on_a_cpu_too(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    run(monkeypatch, "gpu.py", "check", "--device", "cpu", "--families", "vae")
    assert "vae\tfloat32\t0.0\tyes" in capsys.readouterr().out
    argv = ["--preset", "tiny", "--seconds", 0.01, "--batch", 2, "--families", "r3gan", "--compile", "no"]
    run(monkeypatch, "gpu.py", "speed", "--device", "cpu", *argv)
    assert "r3gan tiny, 3x32x32\t2\t" in capsys.readouterr().out


def test_restore(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn")
    paint(tmp_path / "in", 40, (32, 32))
    Image.new("RGB", (34, 29), "red").save(tmp_path / "red.png")
    argv = [tmp_path / "runs", "--source", tmp_path / "in", "--size", 32, "--scale", 2, "--budget", "8img"]
    run(
        monkeypatch,
        "restore.py",
        *argv,
        *TINY,
        "--networks",
        "SPAN",
        "SRGAN",
        "--pictures",
        tmp_path / "red.png",
    )
    told = capsys.readouterr().out
    assert told.count("'network': ") == 7 and "'network': 'SRGAN, red'" in told
    assert (tmp_path / "runs/restored.png").is_file()
    assert (
        f"'parameters': {sum(p.numel() for p in limner.load(tmp_path / 'runs/SPAN').model.parameters()):}"
        in told
    )


def test_translations_are_measured_where_the_truth_is_known(monkeypatch, capsys, tmp_path):
    """Each row says which way and in how many calls; a perfect picture is all right."""
    given, wanted = (paint(tmp_path / name, 24, (32, 32), seed=i) for i, name in enumerate("ab"))
    quiet = {"preset": "tiny", "budget": "16img", "quiet": True, "training": {"samples": 0}}
    for family, sources in (("bridge", [given, wanted]), ("cyclegan", [given, wanted])):
        limner.train(family, sources, tmp_path / family, **quiet)
    limner.train("bridge", wanted, tmp_path / "colour", model={"degrade": "grey"}, size=32, **quiet)
    runs = [tmp_path / "bridge", tmp_path / "cyclegan"]
    measured = run(monkeypatch, "translate.py", "shapes", *runs, "--n", 8, "--steps", 1, 2)
    said = capsys.readouterr().out
    for setting in ("1 call", "2 calls", "forward", "backward"):
        assert setting in said
    run(monkeypatch, "translate.py", "colour", tmp_path / "colour", "--n", 2, "--sheets", tmp_path / "sheets")
    off = [float(part.split(",")[0]) for part in capsys.readouterr().out.split("'off': ")[1:]]
    assert len(off) == 2 and max(off) <= 1
    assert len(list((tmp_path / "sheets").iterdir())) == 2
    run(monkeypatch, "translate.py", "pairs", tmp_path / "bridge", "--n", 2, "--steps", 1)
    assert "psnr_given" in capsys.readouterr().out
    scenes = measured["shapes"].scenes(4, 0)
    truth = measured["shapes"].draw(scenes, 32, 32, 0, "outlined")
    assert measured["shapes"].compare(truth, truth)["exact"] == 1


def test_style(monkeypatch, capsys, tmp_path):
    for name in ("photos", "paintings"):
        paint(tmp_path / name, 40, (32, 32))
    argv = [tmp_path / "runs", tmp_path / "photos", "--paintings", tmp_path / "paintings", "--size", 32]
    run(monkeypatch, "style.py", *argv, "--budget", "8img", *TINY, "--gatys", 1, "--steps", 3, "--no-speed")
    told = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    rows = {row["painter"]: row for row in told}
    assert {*rows} == {
        "the given picture", "style tiny", "microast tiny", "Gatys, from noise", "Gatys, from the picture",
    }  # fmt: skip
    assert rows["the given picture"]["nearer"] == 1 and rows["the given picture"]["content"] == 0
    assert rows["Gatys, from the picture"]["content"] < rows["Gatys, from noise"]["content"]
    assert (tmp_path / "runs/painted.png").is_file()


def test_moving_measures_the_oracle_and_runs_of_clips(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("limner.data.sources.moving.source.CLIPS", 24)
    out, data = tmp_path / "video", {"frames": 4, "rate": 8.0, "cache": str(tmp_path / "cache")}
    limner.train("video", "moving", out, preset="tiny", size=24, budget="16img", quiet=True, data=data)
    common = ["--n", "2", "--threads", "1", "--sheets", str(tmp_path / "sheets")]
    run(monkeypatch, "moving.py", "followed", out, *common)
    run(monkeypatch, "moving.py", "given", out, *common)
    run(monkeypatch, "moving.py", "longer", out, *common, "--frames", 7, "--to", tmp_path / "longer.svg")
    assert "'unchanged': True" in capsys.readouterr().out
    run(monkeypatch, "moving.py", "speed", out, *common)
    assert {"one clip", "8 clips"} <= set(capsys.readouterr().out.split("'"))
    assert (tmp_path / "longer.svg").read_text("utf-8").startswith("<svg")
    assert Image.open(tmp_path / "sheets" / "longer-video.png").width > 7 * 24
