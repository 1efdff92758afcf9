"""Prompts whose combinations were never trained on, and what is said where all were."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

from limner import api
from limner.core import DataOptions
from limner.data import open_data
from limner.data.sources import scenes, shapes
from limner.data.sources.moving import source
from limner.evaluation import evaluate as evaluating
from limner.evaluation import prompts
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.real import Real
from limner.evaluation.results import Evaluation, Fidelity, Figure
from limner.evaluation.tables import FIGURES, evaluation_rows
from limner.inference.pipeline import Pipeline
from limner.pictures.grid import to_pil


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prompts") / "run"
    api.train(
        "flow", "shapes", out, preset="tiny", budget="16img", size=32, quiet=True, training={"samples": 0}
    )
    return out


def nothing() -> Fidelity:
    """Figures of no images."""
    figure = Figure(0.0, 0.0, 0.0, 0.0, 0)
    names = [f.name for f in fields(Fidelity) if f.default is f.default_factory is MISSING]
    return Fidelity(**{name: figure if name in FIGURES else {} for name in names})


def opened(run: Path) -> tuple[Pipeline, Real]:
    return Pipeline(run), Real(*open_data(["shapes"], size=(32, 32), progress=False).split(0.1))


def write(folder: Path, scenes: list[shapes.Scene]) -> Path:
    folder.mkdir()
    pictures = shapes.draw(scenes, 32, 32, seed=0)
    lines = []
    for i, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        to_pil(torch.from_numpy(picture).movedim(-1, 0) / 127.5 - 1).save(folder / f"{i:04d}.png")
        lines.append(json.dumps({"file_name": f"{i:04d}.png", "text": scene.caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_unseen_captions_are_the_demos_and_leave_out_what_was_shown():
    demo = [scene.caption for scene in shapes.scenes(50, seed=3, held_out=True)]
    assert shapes.unseen(50, 3) == demo
    assert all(shapes.parse(caption).held_out for caption in demo)
    mirrored = shapes.parse(demo[0])
    mirrored = shapes.Scene(mirrored.second, scenes.OPPOSITE[mirrored.relation], mirrored.first)
    left = shapes.unseen(50, 3, ["a red sunset", mirrored.caption])
    assert demo[0] not in left and len(left) == 50 and len(set(left)) == 50
    everything = [scene.caption for scene in scenes._every(True)]
    assert shapes.unseen(50, 3, everything) == []


def test_prompts_are_held_out_combinations_and_the_figure_says_so(run, tmp_path, monkeypatch):
    drawn: list[str] = []

    def perfect(model, condition, seeds, *_, **__):
        drawn.extend(condition.text)
        pictures = shapes.draw([shapes.parse(text) for text in condition.text], 32, 32, seed=5)
        return torch.from_numpy(pictures).movedim(-1, 1) / 127.5 - 1

    monkeypatch.setattr(prompts, "generate", perfect)
    monkeypatch.setattr(evaluating, "measure_samples", lambda *_, **__: nothing())
    result = evaluating.evaluate(
        run, ["shapes"], EvaluateOptions(n=20, features="random"), to=tmp_path / "out", quiet=True, steps=1
    )
    trained = {shapes.parse(text).combination for text in open_data(["shapes"], size=(32, 32)).captions}
    assert len(drawn) == 256 and not trained & {shapes.parse(text).combination for text in drawn}
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (found["prompts_exact"], found["prompts_n"], found["prompts_unseen"]) == (1.0, 256, True)
    assert 0.98 < found["prompts_low"] < found["prompts_high"] == 1 and found["prompts_floor"] == 1
    row = next(row for row in evaluation_rows(result) if "attribute" in row[0])
    assert row == (
        "unseen prompts drawn with every attribute right, 256 drawn",
        "100.0%",
        "98.5% to 100.0%",
        "100.0%",
    )


def test_a_run_trained_on_every_combination_has_no_unseen_prompts(run, tmp_path):
    pipeline, real = opened(run)
    everything = write(tmp_path / "all", list(scenes._every(True)))
    pipeline.loaded.run.__dict__["sources"] = (str(everything),)  # as if it had been trained on these
    pipeline.loaded.run.__dict__["data"] = DataOptions(holdout=0.0)
    score = prompts.measure_prompts(
        pipeline, ["shapes"], real, quiet=True, sampling=pipeline.sampling({"steps": 1})
    )
    assert score.unseen is False and score.exact.n == 256
    fidelity = score.add_to(nothing())
    assert "The prompts were trained on" in fidelity.notes[0]
    assert evaluation_rows(Evaluation(of="", against=[], fidelity=fidelity))[-2][0].startswith(
        "prompts trained on drawn"
    )


def test_it_is_not_known_where_the_runs_images_are_gone(run, tmp_path):
    pipeline, real = opened(run)
    pipeline.loaded.run.__dict__["sources"] = (str(tmp_path / "gone"),)
    chosen = prompts.choose_prompts(pipeline, ["shapes"], real, real.training.oracle, 0)
    assert chosen.unseen is None and len(chosen.texts) == 256


def test_a_run_without_text_has_no_prompts(run):
    pipeline, real = opened(run)
    pipeline.model.follows = frozenset({"label"})
    assert prompts.measure_prompts(pipeline, ["shapes"], real) is None


def test_clips_are_read_as_they_are(monkeypatch):
    monkeypatch.setattr(source, "CLIPS", 12)
    data = open_data("moving", size=(32, 32), options=DataOptions(frames=8), progress=False)
    assert prompts._exact(data.oracle, data.array, data.captions) == 1
    assert prompts._exact(data.oracle, data.array, data.captions[::-1]) < 0.3
