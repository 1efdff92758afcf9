"""The vocabulary: one categorical draw for all, and what an objective minimises."""

from __future__ import annotations

import pytest
import torch

from limner.core import Blend, Condition, Draws, Objective


def test_an_index_is_drawn_by_its_weight() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    drawn = Draws(range(4000)).choose(weights.expand(4000, -1))
    share = torch.bincount(drawn, minlength=4) / 4000
    assert share[1] == 0
    torch.testing.assert_close(share, weights / 8, atol=0.03, rtol=0)


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    weights = torch.rand(6, 50, generator=torch.Generator().manual_seed(0))
    together, apart = Draws(range(6)), [Draws([seed]) for seed in range(6)]
    for _ in range(20):  # the streams stay in step
        alone = torch.cat([one.choose(weights[i : i + 1]) for i, one in enumerate(apart)])
        assert torch.equal(together.choose(weights), alone)


def test_weights_need_no_sum_of_one_and_rounding_never_leaves_them() -> None:
    tiny = torch.tensor([[1e-30, 3e-30, 0.0]], dtype=torch.float64)
    drawn = torch.cat([Draws([seed]).choose(tiny) for seed in range(200)])
    assert set(drawn.tolist()) == {0, 1}
    many = torch.full((1, 100_000), 1.0)
    assert all(0 <= int(Draws([seed]).choose(many)) < 100_000 for seed in range(50))
    assert int(Draws([3]).choose(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))) == 2


def test_what_is_only_shown_is_not_minimised() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    objective = Objective("network", lambda batch: {}, shown=("distance",))
    total = objective.total({"loss": 3 * x, "distance": x.square()})
    total.backward()
    assert float(total.detach()) == 6 and x.grad == pytest.approx(3)


def test_a_blended_condition_keeps_its_rows_together() -> None:
    other = Condition(3, text=["d", "e", "f"], image=torch.arange(3.0).view(3, 1, 1, 1))
    whole = Condition(3, text=["a", "b", "c"], blend=Blend(other, torch.tensor([0.0, 0.5, 1.0])))
    part = whole.to("cpu")[1:3]
    assert part.size == 2 and part.text == ["b", "c"]
    assert part.blend is not None and part.blend.share.tolist() == [0.5, 1.0]
    assert part.blend.other.text == ["e", "f"] and part.blend.other.image is not None
    assert part.blend.other.image.flatten().tolist() == [1.0, 2.0] and part[1:].blend is not None


def test_conditions_are_put_together_as_they_were_parted() -> None:
    other = Condition(4, text=["e", "f", "g", "h"], image=torch.arange(4.0).view(4, 1, 1, 1))
    whole = Condition(
        4,
        label=torch.arange(4),
        text=["a", "b", "c", "d"],
        image=torch.rand(4, 3, 2, 2),
        mask=torch.ones(4, 1, 2, 2),
        blend=Blend(other, torch.linspace(0, 1, 4)),
    )
    again = Condition.cat([whole[:1], whole[1:3], whole[3:]])
    assert again.size == 4 and again.text == whole.text
    for name in ("label", "image", "mask"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert again.blend is not None and again.blend.other.text == other.text
    assert whole.blend is not None and torch.equal(again.blend.share, whole.blend.share)
    assert again.blend.other.image is not None and again.blend.other.image.flatten().tolist() == [0, 1, 2, 3]
    assert Condition.cat([Condition(2), Condition(1)]) == Condition(3)


def test_conditions_of_different_kinds_are_not_put_together() -> None:
    with pytest.raises(ValueError, match="different kinds"):
        Condition.cat([Condition(1), Condition(1, text=["a"])])


def test_draws_put_together_go_on_where_each_was() -> None:
    alone = [Draws([seed]) for seed in (5, 9)]
    parts = [Draws([seed]) for seed in (5, 9)]
    alone[1].normal(3), parts[1].normal(3)  # one of them is ahead
    together = Draws.cat(parts)
    assert together.seeds == (5, 9) and len(together) == 2
    assert torch.equal(together.normal(4), torch.cat([one.normal(4) for one in alone]))
    assert torch.equal(parts[0].uniform(2), alone[0].uniform(2)), "the streams stay those of the parts"
