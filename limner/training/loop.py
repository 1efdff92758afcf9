"""The only training loop: a model's objectives on any data, exactly resumable.

Progress is counted in images seen. Every random draw comes from a generator keyed by the seed and the
position in the stream of images, so nothing random needs saving: a resumed run equals an unbroken one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from limner import checkpoint
from limner.config import Run
from limner.core import Batch, Model, merge, merged, mix
from limner.data import Data, Selection
from limner.device import autocast, keep_freed_memory
from limner.distributed import ALONE, Ranks, joined, microbatch_size
from limner.inference.precision import choose_bf16, network_name
from limner.settings import LimnerError
from limner.training.optim import Muon, load_state
from limner.training.players import Player, clip_gradients, make_players, naming_second_derivatives

COUNTERS = "seen", "step", "seconds", "skipped", "rollbacks"  # of a loop, which a checkpoint holds


def learning_rate_factor(run: Run, seen: int, progress: float) -> float:
    """The factor in [0, 1] of the schedule and the warm-up; ``progress`` is the share of the budget that is spent."""
    t, progress = run.training, min(max(progress, 0.0), 1.0)
    warm = min(1.0, (seen + t.batch) / t.warmup) if t.warmup else 1.0
    falling = max(1.0 - t.flat, 1e-9)  # share of the budget over which the rate falls
    if t.schedule == "linear":
        return warm * min(1.0, (1.0 - progress) / falling)
    if t.schedule == "cosine":
        return warm * (0.5 * (1.0 + math.cos(math.pi * (max(progress - t.flat, 0.0) / falling))))
    return warm


class Loop:
    """The state of one training (model, players, average, counters) and its steps."""

    def __init__(self, run: Run, model: Model, data: Data, device: torch.device, ranks: Ranks):
        t = run.training
        self.run, self.data, self.device, self.ranks = run, data, device, ranks
        self.model = model.to(device)
        keep_freed_memory()
        if t.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.microbatch = microbatch_size(t.batch, t.accumulate, ranks)
        self.seen = self.step = self.skipped = self.rollbacks = 0
        self.seconds = 0.0
        self.in_bf16: bool | None = None  # networks and Muon's products; None: not decided yet

        parents = [model.get_submodule(name).requires_grad_(False) for name in model.frozen]
        self.players = make_players(model, t)
        self.optimisers = {player.objective.trains: player.optimiser for player in self.players}
        self.model.requires_grad_(False).train()  # a player's gradients are enabled in its own turn
        if t.compile:
            for name in self.optimisers:
                model.get_submodule(name).compile()

        # By name, since they are looked up at every step: what the average copies, and what a loss may change.
        averaged, frozen = (tuple(f"{n}." for n in names) for names in (model.averaged, model.frozen))
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        learned = [name for name in model.state_dict() if not name.startswith(frozen)]
        self.unaveraged = [name for name in learned if not name.startswith(averaged)]
        self.buffers = [name for name in learned if name not in weights]

        # Frozen parents are shared with the averaged model, not copied: they never change.
        shared: dict[int, Any] = {id(parent): parent for parent in parents}
        merges = any(merged(part) is not part for part in model.children())
        self.average = self.model
        if t.average or merges:
            self.average = merge(copy.deepcopy(self.model, shared)).eval()

    def decide_precision(self) -> None:
        """Decide once whether this run is trained in bf16, for auto by measuring it. The first process decides."""
        if self.in_bf16 is not None:
            return
        t, ranks = self.run.training, self.ranks
        name = network_name(self.run.family, (self.model.config, self.model.spec), self.microbatch, "train")

        def run(in_bf16: bool) -> None:
            self.in_bf16 = in_bf16
            for player in self.players:
                self.accumulate_gradients(player, selection)
                player.optimiser.zero_grad()

        with self._rehearsal() as selection:
            self.ranks = ALONE  # each process may measure more often than another
            chosen = choose_bf16(self.device, t.precision, name, run)
            self.ranks = ranks
        self._use_bf16(ranks.as_first(chosen))

    @contextmanager
    def _rehearsal(self) -> Iterator[Selection]:
        """The images of the next step, for losses without an update: what they change in buffers is set back."""
        before = {name: b.clone() for name, b in self.model.named_buffers()}
        self.model.progress = 1.0  # the end of training costs most, where that differs
        self.model.advance(self.seen)
        yield self.data.select(self.seen, self.run.training.batch, self.run.seed)
        for name, b in self.model.named_buffers():
            b.copy_(before[name])

    def _use_bf16(self, in_bf16: bool) -> None:
        self.in_bf16 = in_bf16
        for optimiser in self.optimisers.values():
            if isinstance(optimiser, Muon):
                optimiser.products = torch.bfloat16 if in_bf16 else torch.float32

    def accumulate_gradients(self, player: Player, selection: Selection) -> dict[str, Tensor]:
        """Set the gradients of one player's loss, the mean over the batch and the processes; returns the mean terms."""
        t, own = self.run.training, player.parameters
        player.optimiser.zero_grad()
        for p in own:
            p.requires_grad_(True)
        sums: dict[str, Tensor] = {}
        for i in range(t.accumulate):
            at = (self.ranks.rank * t.accumulate + i) * self.microbatch
            batch = self._to_device(self.data.batch(selection[at : at + self.microbatch]))
            # Keyed by the microbatch's position in the stream of images, not by rank: another number of
            # processes with microbatches of the same size draws the same noise for the same images.
            torch.manual_seed(mix(self.run.seed, self.rollbacks, self.seen + at, player.name))
            with naming_second_derivatives(self.run.family):
                with joined(self.ranks), autocast(self.device, bool(self.in_bf16)):
                    terms = player.objective.loss(batch)
                (player.objective.total(terms) / t.accumulate).backward()
            for name, value in terms.items():
                mean = value.detach().float() / t.accumulate
                sums[name] = sums.get(name, 0) + mean
        for p in own:
            p.requires_grad_(False)
        self.ranks.mean_([p.grad for p in own if p.grad is not None] + list(sums.values()))
        return sums

    def _to_device(self, batch: Batch) -> Batch:
        image = batch.image.to(self.device, non_blocking=True)
        if self.run.training.channels_last and image.ndim == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        counts = None if batch.counts is None else batch.counts.to(self.device)
        return Batch(image, batch.condition.to(self.device), counts)

    def take_step(self, progress: float) -> dict[str, Tensor]:
        """One step: an update by every player that is due, then the average. Returns the mean terms.

        Raises FloatingPointError, which names the images, at a loss or gradient that is not finite: that player's
        update is skipped and ends the step; the updates before it stay.
        """
        t = self.run.training
        self.decide_precision()
        selection = self.data.select(self.seen, t.batch, self.run.seed, self.run.data.flip)
        self.model.progress = min(max(progress, 0.0), 1.0)
        self.model.advance(self.seen)
        factor = learning_rate_factor(self.run, self.seen, progress)
        report: dict[str, Tensor] = {}
        failure = ""
        for player in self.players:
            if self.step % player.objective.every:
                continue
            before = {name: value.clone() for name, value in self._saved_buffers().items()}
            terms = self.accumulate_gradients(player, selection)
            norm = nn.utils.get_total_norm([p.grad for p in player.parameters if p.grad is not None])
            if not bool(torch.isfinite(norm + sum(terms.values()))):
                player.optimiser.zero_grad()
                for name, value in self._saved_buffers().items():
                    value.copy_(before[name])
                names = ", ".join(self.data.names[i] for i in selection.index)
                failure = f"{player.name}: its loss or gradient was not finite on {names}"
                break
            if t.clip and norm > t.clip:
                clip_gradients(player.parameters, t, norm)
            own_factor = player.objective.rate() if player.objective.rate else 1.0
            for group, peak in zip(player.optimiser.param_groups, player.peaks, strict=True):
                group["lr"] = peak * factor * own_factor
            player.optimiser.step()
            player.optimiser.zero_grad()
            report |= {f"{player.name}/{k}": v for k, v in terms.items()}
            report[f"{player.name}/gradient"] = norm.detach()
        self._average_buffers()  # which players changed, also those before a failure
        self.seen += t.batch
        self.step += 1
        if failure:
            self.skipped += 1
            raise FloatingPointError(failure)
        self.skipped = 0
        self._update_average()
        return report

    @torch.no_grad()
    def _update_average(self) -> None:
        """One step of the moving average, whose half-life ramps up (Karras 2022), or whose decay does."""
        t = self.run.training
        if self.average is self.model or not self.ranks.first:  # only the first process uses it
            return
        half = min(t.average, self.seen * t.average_rampup) if t.average_rampup else t.average
        keep = 0.5 ** (t.batch / max(half, 1e-9))
        if t.average_warmup:
            keep = min(keep, (1 + self.step) / (10 + self.step))
        if self.seen < t.average_from or not t.average:
            keep = 0.0
        for name in self.model.averaged:
            slow, live = self.average.get_submodule(name), merged(self.model.get_submodule(name))
            pairs = zip(slow.parameters(), live.parameters(), strict=True)
            both = [(old, new) for old, new in pairs if old is not new]  # frozen ones are shared
            if both:  # a stage that the settings leave out has none
                torch._foreach_lerp_([old for old, _ in both], [new for _, new in both], 1.0 - keep)
            for to, source in zip(slow.buffers(), live.buffers(), strict=True):
                to.copy_(source)
        if self.unaveraged:
            states = self.average.state_dict(), self.model.state_dict()
            for name in self.unaveraged:
                states[0][name].copy_(states[1][name])

    def _saved_buffers(self) -> dict[str, Tensor]:
        """The buffers that a loss may change and a checkpoint holds."""
        return {name: self.model.get_buffer(name) for name in self.buffers}

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Give all processes the mean of their buffers, in float64, where the mean of equal numbers is that number."""
        if self.ranks.world > 1:
            buffers = [value for value in self._saved_buffers().values() if value.is_floating_point()]
            self.ranks.mean_(means := [value.double() for value in buffers])
            for value, mean in zip(buffers, means, strict=True):
                value.copy_(mean)

    def estimate_cost(self) -> tuple[float, int]:
        """(seconds a step, peak bytes), measured on a batch without any update."""
        self.decide_precision()
        storages: dict[int, int] = {}  # what the backward pass needs: bytes by address

        def record(x: Tensor) -> Tensor:
            try:
                storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            except RuntimeError:  # a wrapper within torch.func, whose storage cannot be asked
                storages[-id(x)] = x.numel() * x.element_size()
            return x

        seconds, activations = math.inf, 0
        with self._rehearsal() as selection:
            for recording in (torch.autograd.graph.saved_tensors_hooks(record, lambda x: x), nullcontext()):
                start = time.perf_counter()
                for player in self.players:
                    storages.clear()
                    with recording:
                        self.accumulate_gradients(player, selection)
                    activations = max(activations, sum(storages.values()))
                    player.optimiser.zero_grad()
                seconds = min(seconds, time.perf_counter() - start)
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return seconds, activations + 5 * weights  # weights, gradient, two moments, average

    @torch.no_grad()
    def held_out_losses(self, data: Data, limit: int = 256) -> dict[str, float]:
        """Mean terms of every objective on held-out images, by the averaged weights, with the same draws each time."""
        sums: dict[str, float] = {}
        self.average.eval()
        chosen = data.order(0, min(len(data), limit), 0)  # random, since files of one class may be neighbours
        for at in range(0, len(chosen), self.microbatch):
            rows = chosen[at : at + self.microbatch]
            batch = self._to_device(data.batch(rows))
            for player, objective in zip(self.players, self.average.objectives(), strict=True):
                torch.manual_seed(mix("held out", at, player.name))
                with autocast(self.device, bool(self.in_bf16)):
                    terms = objective.loss(batch)
                for name, value in terms.items():
                    key = f"{player.name}/{name}"
                    sums[key] = sums.get(key, 0.0) + float(value) * len(rows)
        self.model.train()  # which is the average if there is none
        return {name: value / len(chosen) for name, value in sums.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The live weights and every optimiser's tensors; the counters and every optimiser's other state."""
        tensors, packed = {f"model/{k}": v for k, v in self.model.state_dict().items()}, {}
        for name, optimiser in self.optimisers.items():
            part, packed[name] = checkpoint.pack_state(optimiser.state_dict(), f"optimiser/{name}")
            tensors |= part
        counters = {name: getattr(self, name) for name in COUNTERS}
        return tensors, counters | {"bf16": self.in_bf16, "optimisers": packed}

    def restore(self, resumed: checkpoint.Resumed) -> None:
        """Take the state of a checkpoint. Raises LimnerError for one of another model or other optimisers."""
        live, state = resumed.live_tensors, resumed.state
        weights = {k.removeprefix("model/"): v for k, v in live.items() if k.startswith("model/")}
        checkpoint.load_weights(self.model, weights, "the checkpoint")
        if self.average is not self.model:
            checkpoint.load_weights(self.average, resumed.model_tensors, "the checkpoint")
        for name, optimiser in self.optimisers.items():
            load_state(optimiser, live, state["optimisers"].get(name), name)
        for name in COUNTERS:
            if isinstance(state.get(name), bool) or not isinstance(state.get(name), (int, float)):
                raise LimnerError(
                    f"The checkpoint lacks the counter {name!r}: use an earlier one, or train again."
                )
            setattr(self, name, state[name])
        if self.run.training.precision == "auto" and isinstance(state.get("bf16"), bool):
            self._use_bf16(state["bf16"])  # as it was trained, so that it goes on exactly
