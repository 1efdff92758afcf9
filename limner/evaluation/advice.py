"""Which family suits a person's images, by a comparison, with the figures that say so."""

from __future__ import annotations

from collections.abc import Sequence

from limner.evaluation.report import number
from limner.evaluation.results import Fidelity, Figure, Row
from limner.evaluation.tables import ranked
from limner.settings import join_words

FEW = 0.3  # recall below which a family shows only a part of what the images show

Measured = tuple[str, Fidelity]  # of a family by its name


def advice(rows: Sequence[Row]) -> str:
    """Which family to take, the figures that say so, and what to watch out for, in one to four sentences."""
    unfinished = [row.family for row in rows if row.unfinished]
    if unfinished:
        missing = join_words(unfinished, "and")
        return f"There is no advice yet, as {missing} did not finish: the same command continues."
    measured = [(row.family, row.fidelity) for row in ranked(rows) if row.fidelity]
    if not measured:
        return "No family could be trained and measured on these images: the table says why."
    good = [each for each in measured if not each[1].collapsed]
    bad = [
        f"{family} (of its images {figures.collapsed})" for family, figures in measured if figures.collapsed
    ]
    if not good:
        return f"No family is usable yet: {join_words(bad, 'and')}. Train longer."
    sentence = _choice(good) + _reservation(good[0][1])
    if absent := good[0][1].memorised_absent:
        sentence += f". Whether it copies yours was not measured: {absent}"
    return f"{sentence}. Not usable yet: {join_words(bad, 'and')}." if bad else f"{sentence}."


def _choice(good: Sequence[Measured]) -> str:
    """The best family, those that cannot be told from it and the next one, each with its kernel distance."""
    (best, figures), others = good[0], good[1:]
    rivals = [(family, other) for family, other in others if other.kid.low <= figures.kid.high]
    said = f"Take {best}: kernel distance {_spell(figures.kid)}, real images {number(figures.kid.floor)}"
    if rivals:
        named = join_words([f"{family} ({_spell(other.kid, ', ')})" for family, other in rivals], "or")
        said += f"; or {named}, which {figures.n:,} images cannot tell apart from it"
    elif others:
        family, other = others[0]
        said += f"; {family} comes next with {_spell(other.kid)}"
    said += "".join(_other_choice(best, good, name) for name in figures.other_features)
    if figures.kid.low <= figures.kid.floor:
        said += f"; by the kernel distance, {figures.n:,} images do not tell its own from yours"
    return said


def _reservation(figures: Fidelity) -> str:
    """What is wrong with the images of the best family; "" for nothing."""
    if (copies := figures.copies) and copies.low > 2 * copies.expected:
        return (
            f", but {copies.value:.0%} of its images are nearer to a training image than {copies.expected:.0%} of "
            "new images are"
        )
    if figures.recall.value < FEW:
        recall = f"recall {figures.recall.value:.0%}, real images {figures.recall.floor:.0%}"
        return f", but it shows only a part of what your images show ({recall}): train it longer"
    return ""


def _other_choice(best: str, good: Sequence[Measured], features: str) -> str:
    """Which family is nearest in other features, where that is not the best one."""
    distances = {
        family: figures.other_features[features].kid
        for family, figures in good
        if features in figures.other_features
    }
    nearest = min(distances, key=lambda family: distances[family].value)
    if nearest == best:
        return ""
    return (
        f"; in the features {features}, {nearest} is closest to your images with {_spell(distances[nearest])}, where "
        f"{best} has {number(distances[best].value)}"
    )


def _spell(figure: Figure, comma: str = " (") -> str:
    """A figure with its interval."""
    end = ")" if comma == " (" else ""
    return f"{number(figure.value)}{comma}{number(figure.low)} to {number(figure.high)}{end}"
