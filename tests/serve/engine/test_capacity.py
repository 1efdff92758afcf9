"""How many rows a call may have: found by timing and by bits, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner import files
from limner.serve.engine import capacity, row_classes
from limner.serve.engine.capacity import Bench, Trial, best_class, classes, complete, seconds_for, survey
from limner.serve.engine.other_load import OtherLoad
from limner.serve.engine.row_classes import Class, Measured, sort_long
from limner.serve.engine.rows import Rows
from tests.serve.engine.runs import serve

RunOf = Callable[..., Path]


class Machine(Bench):
    """A network whose calls take ``cost(rows)`` seconds, and whose bits are ``kernel(rows)``."""

    def __init__(self, cost: Callable[[int], float], kernel: Callable[[int], int], memory: int = 1000):
        super().__init__(self.call, 96, torch.device("cpu"))
        self.cost, self.kernel, self.memory, self.now = cost, kernel, memory, 0.0
        self.called: list[int] = []  # rows of each call

    def clock(self) -> float:
        return self.now

    def call(self, numbers: Sequence[int]) -> list[tuple[Tensor | None, ...]]:
        if len(numbers) > self.memory:
            raise RuntimeError("can't allocate memory")
        self.called.append(len(numbers))
        self.now += self.cost(len(numbers))
        return [(torch.tensor([float(number + self.kernel(len(numbers)))]), None) for number in numbers]


def counts(group: Sequence[Trial]) -> list[int]:
    return [trial.count for trial in group]


def test_the_cap_is_where_a_row_gains_little() -> None:
    machine = Machine(lambda rows: 0.001 + 0.0001 * rows if rows <= 16 else 0.00019 * rows, lambda rows: 0)
    assert counts(survey(machine, 64))[-1] == 16
    assert counts(survey(Machine(lambda rows: 0.001, lambda rows: 0), 64))[-1] == 64
    assert counts(survey(Machine(lambda rows: 0.001 * rows, lambda rows: 0), 64)) == [1]


def test_memory_ends_the_survey() -> None:
    assert counts(survey(Machine(lambda rows: 0.001, lambda rows: 0, memory=10), 64))[-1] == 8
    with pytest.raises(RuntimeError):
        survey(Machine(lambda rows: 0.001, lambda rows: 0, memory=0), 64)


def test_a_time_that_other_work_made_long_does_not_decide() -> None:
    """Whatever is slow in the first pass, since another process has the processor for a while."""
    machine = Machine(lambda rows: 0.01 + 0.001 * rows + (machine.now < 0.5 and rows > 1), lambda rows: 0)
    assert counts(survey(machine, 64, 1000))[-1] == 64
    assert machine.now > 0.5


def test_a_slow_network_is_not_tried_for_ever() -> None:
    machine = Machine(lambda rows: 1.0, lambda rows: 0)
    survey(machine, 64)
    assert machine.now < 20


def test_a_steady_machine_is_timed_once_more() -> None:
    """Each company that shows bits is tried, and then each number once, or twice where that was shorter."""
    machine = Machine(lambda rows: 0.06, lambda rows: 0)
    trials = survey(machine, 64, 1000)
    assert [machine.called.count(count) for count in (1, 3, 4, 64)] == [6, 5, 3, 3] and len(trials) == 12
    noisy = Machine(lambda rows: 0.06 + (noisy.now < 5.5), lambda rows: 0)
    survey(noisy, 64, 1000)
    assert [noisy.called.count(count) for count in (1, 64)] == [7, 3]


def test_the_cap_of_an_earlier_start_does_not_fall() -> None:
    dull = Machine(lambda rows: 0.001 * rows, lambda rows: 0)
    assert counts(survey(dull, 64, least=8))[-1] == 8
    slow = Machine(lambda rows: 1.0 * rows, lambda rows: 0)
    assert counts(survey(slow, 64, least=8))[-1] == 8
    assert counts(survey(Machine(lambda rows: 0.001, lambda rows: 0, memory=4), 64, least=8))[-1] == 4


KERNELS = [1, 2, 3, 6, 16]


def kernel(rows: int) -> int:
    return max(first for first in KERNELS if first <= rows)


def test_classes_are_numbers_of_equal_bits() -> None:
    trials = survey(machine := Machine(lambda rows: 0.1 + 0.001 * rows, kernel), 64, 1000)
    found = classes(trials)
    assert list(map(counts, found)) == [[1], [2], [3, 4], [6, 8, 12], [16, 24, 32, 48, 64]]
    group = complete(machine, found[3], 64, 1000)
    assert counts(group) == [6, 7, 8, 9, 10, 11, 12]
    assert complete(machine, found[3], 64, 0.0) == found[3], "without time, what is known stays"


def test_a_row_that_depends_on_its_place_has_no_class() -> None:
    class Uneven(Machine):
        def call(self, numbers: Sequence[int]) -> list[tuple[Tensor | None, ...]]:
            found = super().call(numbers)
            if len(numbers) < 4:
                return found
            return [(one[0] + place if one[0] is not None else None, None) for place, one in enumerate(found)]

    trials = survey(Uneven(lambda rows: 0.001, lambda rows: 0), 64)
    assert list(map(counts, classes(trials))) == [[1, 2, 3]]


def test_the_class_is_good_at_few_rows_and_at_many() -> None:
    def trials(*pairs: tuple[int, float]) -> list[Trial]:
        return [Trial(count, seconds, {}) for count, seconds in pairs]

    one, few, many = trials((1, 5)), trials((6, 14), (12, 24)), trials((16, 31), (64, 116))
    assert best_class([one, few, many]) is few or best_class([one, few, many]) is many
    assert seconds_for(20, few) == 48 and seconds_for(14, few) == 38 and seconds_for(3, many) == 31
    slow = trials((32, 500))
    assert best_class([one, slow]) is one and best_class([one, slow], slow) is one
    near = trials((2, 13))
    assert best_class([one, near]) is one and best_class([one, near], near) is near, (
        "for the sake of its bits"
    )


def test_rows_are_padded_to_a_number_that_is_known() -> None:
    rows = Rows((3, 4, 8))
    assert [rows.padded(n) for n in (1, 3, 4, 5, 8)] == [3, 3, 4, 8, 8]
    assert rows.limited(7) == Rows((3, 4)) and rows.limited(2) is None
    found = Measured(False, 64, Class((16, 32), "a"), (Class((1,), "b"), Class((2, 4, 8), "c")))
    assert found.within(20) == (found.chosen, Rows((16,)))
    assert found.within(6) == (found.others[1], Rows((2, 4)))
    assert found.rows("quick").counts == tuple(range(1, 65))


@pytest.mark.parametrize(
    ("long", "wanted"),
    [(kernel, (6, 8, 12)), (lambda rows: rows // 12, (1, 2, 3)), (lambda rows: 0, (6, 8, 12))],
)
def test_long_texts_take_the_numbers_of_short_ones(
    long: Callable[[int], int], wanted: tuple[int, ...]
) -> None:
    """As far as their bits agree; only else are all numbers tried."""
    machine = Machine(lambda rows: 0.001 + 0.0001 * rows, long)
    found = Measured(False, 16, Class((6, 7, 8, 9, 12), "short"))
    assert sort_long(machine, found).counts[: len(wanted)] == wanted
    assert set(machine.called) == {6, 8, 12} or wanted == (1, 2, 3)


def test_what_a_busy_machine_was_found_to_take_is_measured_again(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is calm: the cap may rise, and images keep their bytes."""
    path = run_of("flow")
    one = serve(path)
    assert one.measured and not one.measured.busy
    low = replace(
        one.measured, cap=2, chosen=Class(one.rows.counts[:1], one.measured.chosen.bits), others=(), busy=True
    )
    row_classes.write(one._key, low)
    monkeypatch.setattr(OtherLoad, "is_busy", lambda self, threads: True)
    still = serve(path)
    assert still.measured == low, "as long as it is busy, nothing new can be learned"
    monkeypatch.setattr(OtherLoad, "is_busy", lambda self, threads: False)
    again = serve(path)
    assert again.measured and not again.measured.busy and again.measured.cap > 2
    assert again.rows.most > still.rows.most and again.fingerprint == still.fingerprint == one.fingerprint
    assert row_classes.read(one._key) == again.measured
    monkeypatch.setattr("limner.serve.engine.models.find", None)  # and never again
    assert serve(path).measured == again.measured


def test_one_number_of_rows_stays_where_rows_were_found_to_differ(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherLoad, "is_busy", lambda self, threads: True)
    one = serve(run_of("flow", seed=9))
    assert one.measured and one.measured.busy and one.fix()
    monkeypatch.setattr(OtherLoad, "is_busy", lambda self, threads: False)
    assert serve(run_of("flow", seed=9)).fingerprint == one.fingerprint


def test_what_was_found_is_kept(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run_of("flow")
    one = serve(path)

    def never(*arguments: object) -> Measured:
        raise AssertionError("measured again")

    monkeypatch.setattr("limner.serve.engine.models.find", never)
    again = serve(path)
    assert (again.rows, again.fingerprint, again.measured) == (one.rows, one.fingerprint, one.measured)
    with pytest.raises(AssertionError, match="measured again"):
        serve(path, precision="auto")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"chosen"', '"chozen"'),
        lambda text: text.replace('"cap": ', '"cap": -'),
        lambda text: "[]",
    ],
)
def test_a_damaged_file_is_made_again(damage: Callable[[str], str], run_of: RunOf) -> None:
    path = run_of("dcgan")
    one = serve(path)
    file = row_classes.place(one._key)
    whole = file.read_text()
    files.write_text(file, damage(whole))
    again = serve(path)
    assert again.fingerprint == one.fingerprint, "the same bits are found again"
    assert files.read_json(file)["found"]["cap"] >= 1


def test_the_fingerprint_names_what_bytes_depend_on(run_of: RunOf) -> None:
    path = run_of("flow")
    one = serve(path)
    assert one.fingerprint == serve(path).fingerprint == one.card.fingerprint
    assert one.card.id == one.id and one.card.digest == one.pipeline.digest
    others = [serve(path, "quick"), serve(run_of("flow", seed=3))]
    names = {one.fingerprint, *(other.fingerprint for other in others)}
    torch.set_num_threads(2)
    names.add(one.fingerprint)
    assert len(names) == 4


def test_a_tiny_model_is_ready_soon(run_of: RunOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = run_of("flow")
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    start = capacity.time.process_time()
    serve(path)
    assert capacity.time.process_time() - start < 3
