"""Results as rows of text, for a terminal or a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from limner.evaluation.report import number
from limner.evaluation.results import Evaluation, FeatureFigures, Fidelity, Figure, Mean, Row, Translation

FIGURES = {
    "kid": "kernel distance (KID), lower is better",
    "frechet": "Frechet distance, lower is better",
    "precision": "precision: share that looks real",
    "recall": "recall: share of the real that it covers",
    "density": "density",
    "coverage": "coverage",
}
ACCURACIES = {
    "accuracy": "accuracy of its classes",
    "knn_accuracy": "accuracy of its features' 20 nearest",
    "probe_accuracy": "accuracy of a linear probe",
}
EVALUATION = ("", "value", "95% interval", "real against real")  # headings of ``evaluation_rows``
COMPARISON = (  # headings of ``comparison_row``
    "family", "kernel distance", "95% interval", "in other features", "Frechet", "precision", "recall", "memorised",
    "parameters", "trained images/s", "ms to draw", "peak memory", "motion", "jitter",
)  # fmt: skip
# For a page, which is too narrow for all of them: heading -> column of ``comparison_row``.
QUALITY = {head: COMPARISON.index(head) for head in (*COMPARISON[:8], "motion", "jitter")}
COST = {head: COMPARISON.index(head) for head in ("family", *COMPARISON[8:12])}
COMPARISON_SHORT = {  # for a terminal: heading -> column of ``comparison_row``
    "family": 0, "KID": 1, "other KID": 3, "Frechet": 4, "precision": 5, "recall": 6, "memorised": 7, "trained/s": 9,
    "ms to draw": 10,
}  # fmt: skip

NOT_MEASURED = "not measured"  # the notes say why
CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}

Cells = tuple[str, str, str, str]


def evaluation_rows(result: Evaluation) -> list[Cells]:
    """All figures of an evaluation, under ``EVALUATION``."""
    rows: list[Cells] = []
    if fidelity := result.fidelity:
        rows += _figure_rows(fidelity)
        for other in fidelity.other_features.values():
            rows += _figure_rows(other, f" ({other.features})")
        rows += _movement_rows(fidelity)
        rows += _memorised_rows(fidelity)
        of = " of frames" if fidelity.frames else ""
        for side, distance in fidelity.sliced_wasserstein.items():
            rows.append((f"sliced Wasserstein{of} at {side} pixels, x1000", number(distance, 4), "", ""))
        rows += _prompt_rows(fidelity)
        colours = CHANNELS.get(fidelity.channels or 0, "")
        rows.append(
            ("measured at, in pixels", f"{'x'.join(map(str, fidelity.size))} {colours}".strip(), "", "")
        )
        if fidelity.frames:
            rate = f"{fidelity.rate:g} a second" if fidelity.rate else "rate unknown"
            rows.append(("measured at, in frames", f"{fidelity.frames}, {rate}", "", ""))
    rows += _match_rows(result)
    for name, unit in (("psnr", " dB"), ("ssim", ""), ("ms_ssim", "")):
        score = getattr(result.reconstruction, name, None)
        if score is not None:
            label = f"{name.replace('_', '-').upper()} of reconstructed held-out images"
            rows.append((label, number(score, 4) + unit, "", ""))
    for name, label in ACCURACIES.items():
        if accuracy := getattr(result.understanding, name, None):
            interval = f"{accuracy.low:.1%} to {accuracy.high:.1%}"
            rows.append((f"{label}, {accuracy.n:,} held out", f"{accuracy.value:.1%}", interval, ""))
    if few := getattr(result.understanding, "few_probe_accuracy", None):
        label = f"the same from {few.labels_per_class} labels a class, {few.draws} draws"
        rows.append((label, f"{few.value:.1%} ± {few.spread:.1%}", "", ""))
    return rows


def translation_heads(result: Translation) -> tuple[str, ...]:
    """Headings of ``translation_rows``."""
    pictures = f"{result.n:,} {'picture' if result.n == 1 else 'pictures'}"
    return pictures, "result", "95% interval", result.beside, "95% interval"


def translation_rows(result: Translation) -> list[tuple[str, ...]]:
    """Figures of the results beside the same of the given pictures, under ``translation_heads``."""
    rows: list[tuple[str, ...]] = []
    border = f"Y, without a border of {result.scale}"
    labels = {
        "psnr": "PSNR of colours, dB", "psnr_alpha": "PSNR of alpha, dB", "ssim": "SSIM of colours",
        "psnr_y": f"PSNR on {border}, dB", "ssim_y": f"SSIM on {border}",
        "perceptual": f"perceptual distance in {result.network} features, lower is better",
    }  # fmt: skip
    for name, label in labels.items():
        means: list[Mean | None] = [getattr(each, name, None) for each in (result.result, result.given)]
        if means[0] is not None:
            rows.append((label, *(cell for mean in means if mean for cell in _mean_cells(mean))))
    if result.kid and result.kid_given:
        label = f"kernel distance in {result.features} features, lower is better"
        rows.append((label, *_mean_cells(result.kid), *_mean_cells(result.kid_given)))
        rows.append(("  of true pictures to others", number(result.kid.floor, 4), "", "", ""))
    return rows


def _mean_cells(mean: Mean | Figure) -> tuple[str, str]:
    interval = f"{number(mean.low, 4)} to {number(mean.high, 4)}" if mean.low < mean.high else ""
    return number(mean.value, 4), interval


def _figure_rows(figures: FeatureFigures, of: str = "") -> list[Cells]:
    """The figures in one space of features; ``of`` follows each label."""
    rows: list[Cells] = []
    for name, label in FIGURES.items():
        figure: Figure = getattr(figures, name)
        value, low, high, floor = (
            number(getattr(figure, part), 4) for part in ("value", "low", "high", "floor")
        )
        at = f", k = {figure.k}" if figure.k else ""
        rows.append((label + at + of, value, f"{low} to {high}", floor))
    return rows


def _movement_rows(fidelity: Fidelity) -> list[Cells]:
    """How much clips move, relative to real ones; a clip that stands still has no jitter, so both are shown."""
    rows = []
    for label, ratio in (("motion", fidelity.motion), ("jitter", fidelity.jitter)):
        if ratio:
            interval = f"{number(ratio.low)} to {number(ratio.high)}"
            rows.append((f"{label} of real clips'", f"{number(ratio.value)} times", interval, "1"))
        elif fidelity.frames:
            rows.append((f"{label} of real clips'", NOT_MEASURED, "", ""))
    return rows


def _prompt_rows(fidelity: Fidelity) -> list[Cells]:
    if fidelity.prompts_exact is None:
        return []
    kind = {True: "unseen prompts", False: "prompts trained on", None: "prompts"}[fidelity.prompts_unseen]
    label = f"{kind} drawn with every attribute right, {fidelity.prompts_n:,} drawn"
    interval = f"{fidelity.prompts_low:.1%} to {fidelity.prompts_high:.1%}"
    floor = "" if fidelity.prompts_floor is None else f"{fidelity.prompts_floor:.1%}"
    return [(label, f"{fidelity.prompts_exact:.1%}", interval, floor)]


def _match_rows(result: Evaluation) -> list[Cells]:
    if not (found := result.matches):
        return []

    def cells(label: str, mean: Mean, real: str = "") -> Cells:
        return (label, f"{mean.value:.1f}", f"{mean.low:.1f} to {mean.high:.1f}", real)

    label = f"CLIP score: 100 x cosine of image and prompt, {found.n:,} drawn"
    return [cells(label, found.score, f"{found.ceiling.value:.1f}"),
            cells("  the same images with each other's prompts", found.floor),
            cells("  real images with their captions", found.ceiling)]  # fmt: skip


def compared(figures: FeatureFigures) -> str:
    """Two sentences: how many images each figure compares, and what real against real means."""
    images = "clips" if isinstance(figures, Fidelity) and figures.frames else "images"
    if not figures.compared:
        return f"{figures.n:,} {images} against {figures.real:,} real ones, measured by an earlier version."
    some = f"{figures.compared:,}"
    if figures.compared < figures.n:
        some += f" of the {figures.n:,}"
    return (
        f"Each figure compares {some} {images} with {figures.real:,} real ones. Real against real puts "
        f"{figures.compared:,} other real {images} in their place: {images} as good as real ones score that on average."
    )


def measured_in(figures: Sequence[FeatureFigures]) -> str:
    """What identifies the features of figures."""
    return "; ".join(f"{each.features} {each.features_hash} ({each.resize})" for each in figures)


def _memorised_rows(fidelity: Fidelity) -> list[Cells]:
    found = fidelity.copies
    if found is None:
        return [("memorised: copies of training images", NOT_MEASURED, "", "")]
    label = f"memorised: within {found.threshold:.1f} grey levels of a training image"
    interval = f"{found.low:.1%} to {found.high:.1%}"
    usual = f"{found.expected:.1%} ({found.expected_low:.1%} to {found.expected_high:.1%})"
    rows = [(label, f"{found.value:.1%}", interval, usual)]
    if found.excess:
        changes = ", ".join(f"{count:,} {change}" for change, count in found.changes.items())
        rows.append(("  these are", changes, "", ""))
    return rows


def comparison_row(row: Row) -> list[str]:
    """One family under ``COMPARISON``."""
    figures, cost = row.fidelity, row.cost
    if not figures or not cost:
        return [
            row.family,
            f"{'unfinished' if row.unfinished else 'failed'}: {row.failed}",
            *[""] * (len(COMPARISON) - 2),
        ]
    return [
        row.family,
        number(figures.kid.value),
        f"{number(figures.kid.low)}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{number(figures.kid.high)}",
        ", ".join(f"{name} {number(other.kid.value)}" for name, other in figures.other_features.items()),
        number(figures.frechet.value),
        f"{figures.precision.value:.0%}",
        f"{figures.recall.value:.0%}",
        _memorised_cell(figures),
        f"{cost.parameters / 1e6:.2f}M",
        f"{cost.images_per_second:,.0f}",
        f"{cost.sampling_ms:.1f}",
        f"{row.peak_memory / 1e6:,.0f} MB" if row.peak_memory else "",
        *(number(ratio.value) if ratio else "" for ratio in (figures.motion, figures.jitter)),
    ]


def comparison_table(
    rows: Sequence[Row], columns: Mapping[str, int] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a comparison; without columns in which no family has anything."""
    cells = [comparison_row(row) for row in rows]
    columns = columns or {head: at for at, head in enumerate(COMPARISON)}
    shown = {head: at for head, at in columns.items() if any(row[at] for row in cells)}
    return [*shown], [[row[at] for at in shown.values()] for row in cells]


def _memorised_cell(figures: Fidelity) -> str:
    if figures.memorised is None:
        return NOT_MEASURED
    found = figures.copies  # absent in rows of earlier versions
    interval = f" ({found.low:.0%} to {found.high:.0%})".replace(" ", "\N{NO-BREAK SPACE}") if found else ""
    return f"{figures.memorised:.0%}{interval}"


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The lowest kernel distance first; after them what draws nothing, or all alike, and what failed."""

    def key(row: Row) -> tuple[bool, bool, float]:
        figures = row.fidelity
        return (not figures, bool(figures and figures.collapsed), figures.kid.value if figures else 0.0)

    return sorted(rows, key=key)
