"""The advice of a comparison names its choice, the figures that say so, and what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limner.evaluation.advice import advice
from limner.evaluation.results import Cost, FeatureFigures, Fidelity, Figure, Row

NAMES = "kid", "frechet", "precision", "recall", "density", "coverage"
BEST = "Take flow: kernel distance 4 (3 to 5), real images 1"


def row(family: str, kid: float, other: float | None = None, recall: float = 0.5, **changes: Any) -> Row:
    """A family whose kernel distance is known within 1, in the features imagenet within 0.1."""

    def figures(value: float, spread: float) -> dict[str, Any]:
        found = dict.fromkeys(NAMES, Figure(value, value - spread, value + spread, 1.0, 50))
        found["recall"] = Figure(recall, recall, recall, 0.8, 50)
        return {"n": 50, "real": 50, "features_hash": "", "resize": "", **found}

    main = {"features": "random", "size": [8, 8], "sliced_wasserstein": {}, **figures(kid, 1.0), **changes}
    beside = {} if other is None else {"imagenet": FeatureFigures(features="imagenet", **figures(other, 0.1))}
    return Row(
        family=family, cost=Cost(1000, 100, 1.0, 100.0, 1.0), fidelity=Fidelity(**main, other_features=beside)
    )


def test_the_choice_comes_with_its_figures() -> None:
    assert advice([row("flow", 4)]) == f"{BEST}."
    assert advice([row("vae", 9), row("flow", 4)]) == f"{BEST}; vae comes next with 9 (8 to 10)."
    tied = f"{BEST}; or dit (4.5, 3.5 to 5.5), which 50 images cannot tell apart from it."
    assert advice([row("vae", 9), row("dit", 4.5), row("flow", 4)]) == tied


def test_other_features_are_named_where_they_disagree() -> None:
    said = advice([row("vae", 9, 2), row("flow", 4, 3)])
    assert said == (
        f"{BEST}; vae comes next with 9 (8 to 10); in the features imagenet, vae is closest to your images with 2 (1.9 "
        "to 2.1), where flow has 3."
    )
    assert "imagenet" not in advice([row("vae", 9, 3), row("flow", 4, 2)])


def test_families_that_draw_nothing_are_named_and_never_the_choice() -> None:
    empty = row("vae", 2, collapsed="80% are wholly transparent")
    alike = row("dcgan", 3, collapsed="all are alike")
    unusable = "vae (of its images 80% are wholly transparent) and dcgan (of its images all are alike)"
    assert advice([empty, row("flow", 4), alike]) == f"{BEST}. Not usable yet: {unusable}."
    assert advice([empty, alike]) == f"No family is usable yet: {unusable}. Train longer."


def test_what_is_wrong_with_the_choice_is_said() -> None:
    assert advice([row("flow", 4, recall=0.2)]) == (
        f"{BEST}, but it shows only a part of what your images show (recall 20%, real images 80%): train it longer."
    )
    near = row("flow", 1.5, memorised_absent="it takes 20 of them")
    assert advice([near]).endswith(
        "by the kernel distance, 50 images do not tell its own from yours. Whether it copies yours was not measured: "
        "it takes 20 of them."
    )


def test_without_a_measured_family_there_is_no_choice() -> None:
    failed = Row(family="vae", failed="it takes too much memory")
    assert advice([failed]).startswith("No family could be trained")
    unfinished = replace(failed, unfinished=True)
    assert advice([unfinished, row("flow", 4)]).startswith("There is no advice yet, as vae did not finish")
