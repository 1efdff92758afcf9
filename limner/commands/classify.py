"""`limner classify`: what every image shows."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import print_json, say, table
from limner.commands.options import Flag, Repeated, RunFolder, Sources, parse
from limner.settings import LimnerError, ThreadCount

TABLE_ROWS = 20


@dataclass(frozen=True)
class Options:
    """Classify every image; if the images have labels, also measure the accuracy."""

    run: RunFolder  # folder of a run that classifies images, or with --labels of one that compares them with texts
    sources: Sources  # folders, archives, parquet files or built-in sets
    to: str = ""  # .csv or .json file to write, with a sheet beside it. Default: predictions.csv in RUN
    labels: str = ""  # classes by name, as in "a cat,a dog". Default: those that the run was trained on
    # with --labels: says a class in other words, with {} for its name; of several the mean counts. Default: the name
    template: Repeated = ()
    no_labels: Flag = False  # do not compare with the labels of the images
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON, with the three most probable classes


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "classify")
    from limner.inference.understand import classify

    if given.labels and given.no_labels:
        raise LimnerError("--labels names classes and --no-labels leaves them out: use one of the two.")
    labels = given.labels or not given.no_labels
    result = classify(
        given.run, given.sources, given.to, labels, given.device, given.json, given.template
    )  # fmt: skip
    if given.json:
        print_json(result)
        return
    accuracy = result.accuracy
    table(
        ["image", "predicted", "probability", *(["label"] if accuracy else [])],
        [
            [p.path, p.predicted, f"{p.probability:.1%}", *([p.label] if accuracy else [])]
            for p in result.predictions[:TABLE_ROWS]
        ],
    )
    if result.n > TABLE_ROWS:
        say(f"... and {result.n - TABLE_ROWS:,} more.")
    if accuracy:
        interval = f"95% interval {accuracy.low:.1%} to {accuracy.high:.1%}"
        say(f"Accuracy: {accuracy.value:.1%} of {accuracy.n:,} ({interval}).")
        if result.trained_on_these:
            say("It was trained on most of these: limner evaluate measures the accuracy on held-out images.")
    say(f"All predictions are in {result.to}; look at {result.sheet}.")
