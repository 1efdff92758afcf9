"""The best of many images by a run that compares them with their prompts; seeds stay each image's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from limner import cli
from limner.core import LimnerError
from limner.inference.pipeline import Pipeline
from limner.inference.rank import shares_of
from limner.inference.texts import embed_images, embed_texts
from limner.metrics.matches import fit
from tests.helpers import train_beside
from tests.inference.test_texts import captioned

PROMPTS = ["a red picture", "a blue picture"]
ASKED = {"prompt": PROMPTS, "candidates": 6, "seed": 3, "steps": 1, "batch": 5}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return captioned(tmp_path_factory.mktemp("source") / "images")


@pytest.fixture(scope="module")
def clip(source) -> Path:
    return train_beside(source, "clip", "320img")


@pytest.fixture(scope="module")
def flow(source) -> Path:
    return train_beside(source, "flow", "32img")


def test_of_each_prompt_the_best_are_kept(flow, clip):
    pipeline, comparer = Pipeline(flow), Pipeline(clip)
    best = pipeline.best(3, rank=str(clip), **ASKED)
    every = pipeline.tensors(12, prompt=PROMPTS, seed=3, steps=1)
    scores = fit(embed_images(comparer, every), embed_texts(comparer, PROMPTS).repeat(6, 1))
    red, blue = (range(start, 12, 2) for start in (0, 1))
    first, third = sorted(red, key=lambda i: -scores[i])[:2]
    expected = [first, max(blue, key=lambda i: scores[i]), third]
    assert best.seeds == [3 + i for i in expected] and best.drawn == 12
    assert best.condition.text == [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    assert best.scores == pytest.approx(scores[expected].tolist(), abs=0.01)
    torch.testing.assert_close(best.images, every[expected])
    again = pipeline.tensors(1, prompt=PROMPTS[1], seed=best.seeds[1], steps=1)
    torch.testing.assert_close(again[0], best.images[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(pipeline.tensors(3, rank=str(clip), **ASKED), best.images)
    two = pipeline.best(2, rank=str(clip), **ASKED)
    more = pipeline.best(
        2, rank=str(clip), **ASKED | {"prompt": [*PROMPTS, "a third, which no image is left for"]}
    )
    assert more.seeds == two.seeds and torch.equal(more.images, two.images)
    assert len(pipeline.rankers) == 1


def test_images_are_shared_out_among_prompts():
    assert shares_of(5, 2) == [3, 2] and shares_of(1, 1) == [1] and shares_of(2, 2) == [1, 1]


def test_a_folder_holds_the_chosen_ones_by_their_seeds(flow, clip, tmp_path, capsys):
    command = [
        "sample",
        flow,
        "--prompt",
        PROMPTS[0],
        "--n",
        2,
        "--rank",
        clip,
        "--candidates",
        5,
        "--steps",
        1,
    ]
    assert cli.run([*map(str, command), "--to", str(tmp_path / "best")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "best" / "metadata.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"file_name", "seed", "text", "score"}] * 2
    assert lines[0]["score"] >= lines[1]["score"] and all(line["seed"] in range(5) for line in lines)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {
        "metadata.jsonl", *(line["file_name"] for line in lines)
    }  # fmt: skip
    assert cli.run([*map(str, command), "--to", str(tmp_path / "best.png")]) == 0
    assert f"seeds {lines[0]['seed']}, {lines[1]['seed']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 2}, "--candidates 2 is below the --n 3 to be chosen of them: raise it, or lower --n"),
        ({"prompt": ()}, "--rank chooses images by how they fit their prompts: name these with --prompt"),
        ({"between": (1, 2)}, "without --between and --blend"),
    ],
)
def test_what_leaves_no_choice_is_refused(flow, clip, options, message):
    asked = {"prompt": "a red picture", "rank": str(clip), "steps": 1, **options}
    with pytest.raises(LimnerError, match=message):
        Pipeline(flow).best(3, **asked)


def test_a_run_that_compares_nothing_is_refused(flow, tmp_path):
    with pytest.raises(
        LimnerError, match="is a run of flow, which does not compare images with texts: use a run of "
    ):
        Pipeline(flow).sample(1, prompt="a red picture", rank=str(flow))
    command = ["sample", flow, "--prompt", "a", "--n", 4, "--rank", flow, "--to", tmp_path / "new"]
    with pytest.raises(LimnerError, match="clip"):
        cli.run(list(map(str, command)))
    assert not (tmp_path / "new").exists()
