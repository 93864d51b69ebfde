"""The training loop: steps, validations and checkpoints, safe to kill at any moment."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sacvit_deploy.decode import encode
from sacvit_deploy.errors import DataError, SacvitDeployError, raised_as
from sacvit_deploy.files import write_whole
from sacvit_deploy.model.checkpoints import save_checkpoint
from sacvit_deploy.progress import OnProgress, clock, silent
from sacvit_deploy.training.augmentation import mix_batch
from sacvit_deploy.training.config import TrainConfig
from sacvit_deploy.training.data import generator_for, read_batches, seed_torch
from sacvit_deploy.training.metrics import MetricsLog, validate
from sacvit_deploy.training.objective import Losses, recipe_loss, smooth_targets
from sacvit_deploy.training.optimizer import learning_rate, update_average
from sacvit_deploy.training.run import Run, joined_processes, load_run, save_run, set_up

RUN_FILE, LAST_FILE, BEST_FILE = "run.safetensors", "last.safetensors", "best.safetensors"
METRICS_FILE, CONFIG_FILE = "metrics.jsonl", "config.json"


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        checkpoint: File of the averaged weights after the last epoch.
        best: File of the averaged weights of the best validation; None without validation.
        metrics: Metrics of the last validation, in [0, 1]; empty without validation.
        steps: Optimiser steps done.
    """

    checkpoint: Path
    best: Path | None
    metrics: dict[str, float]
    steps: int


def train(config: TrainConfig, on_progress: OnProgress = silent) -> TrainResult:
    """Train a network, or resume an interrupted run in the same output folder.

    Under torchrun every process calls this with the same output folder. A resumed run ends in the
    same weights as an uninterrupted one: to the bit on a CPU, up to the order of sums on a GPU.

    Args:
        config: Configuration of the run.
        on_progress: Called by the first process after each step with the share of the steps done,
            in (0, 1], and with loss, speed and remaining time as a text.

    Raises:
        ConfigError: The device does not exist.
        DataError: Pictures cannot be read or do not fit the model, or a file cannot be written.
        CheckpointError: Weights cannot be read or written, or the folder holds another run.
        SacvitDeployError: The loss is not finite.
    """
    with joined_processes(config.device) as processes:
        problem = f"The output folder {config.output} cannot be made"
        with raised_as(DataError, problem, "Set another output."):
            config.output.mkdir(parents=True, exist_ok=True)
        run = set_up(config, processes)
        run_file = config.output / RUN_FILE
        if run_file.exists():
            load_run(run_file, run.state, config)
        return _Loop(config, run, on_progress).complete()


class _Loop:
    def __init__(self, config: TrainConfig, run: Run, on_progress: OnProgress) -> None:
        self.config, self.run, self.on_progress = config, run, on_progress
        self.state, self.plan, self.processes = run.state, run.plan, run.plan.processes
        self.total_steps = config.schedule.epochs * self.plan.steps_per_epoch
        self.metrics: dict[str, float] = {}
        self.log: MetricsLog | None = None
        self.started, self.first_step = time.monotonic(), self.state.step

    def complete(self) -> TrainResult:
        output = self.config.output
        if self.processes.first:
            path = output / CONFIG_FILE
            fix = "Check that folder and the space on its disk."
            with raised_as(DataError, f"{path} cannot be written", fix):
                write_whole(path, json.dumps(encode(self.config), indent=2) + "\n")
            events = output / "tensorboard" if self.config.tensorboard else None
            self.log = MetricsLog(output / METRICS_FILE, self.state.step, events)
        if self.state.step == self.total_steps:
            self.metrics = self._validate()
        while self.state.step < self.total_steps:
            self._rest_of_epoch()
            self._end_epoch()
        if self.log:
            self.log.close()
        best = output / BEST_FILE if self.run.validation else None
        return TrainResult(output / LAST_FILE, best, self.metrics, self.state.step)

    def _rest_of_epoch(self) -> None:
        parts = read_batches(
            self.run.training,
            self.plan.parts_from(self.state.step),
            self.config.data.workers,
            pin_memory=self.processes.device.type == "cuda",
        )
        left = self.plan.steps_per_epoch - self.state.step % self.plan.steps_per_epoch
        for _ in range(left):
            losses = self._step([next(parts) for _ in range(self.plan.parts)])
            self.state.step += 1
            self._after_step(losses)

    def _step(self, parts: list[tuple[Tensor, Tensor]]) -> Losses:
        """Do one optimiser step; return its losses, averaged over parts and processes."""
        state = self.state
        seed_torch(self.config.seed, "step", state.step, self.processes.rank)
        rate = learning_rate(state.step, self.plan.steps_per_epoch, self.config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        state.optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros(len(Losses._fields), device=self.processes.device)
        for number, (image, label) in enumerate(parts):
            # Processes exchange gradients only in the last part of a step.
            shared = self.processes.count > 1 and number < len(parts) - 1
            with self.run.forward.no_sync() if shared else nullcontext():  # type: ignore[operator]
                losses = self._losses(image, label, number)
                (losses.total / len(parts)).backward()  # type: ignore[no-untyped-call]
            summed += torch.stack(losses).detach()
        means = Losses(*self.processes.sum(summed / len(parts)) / self.processes.count)
        self._check_finite(means)
        if clip := self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
        state.optimizer.step()
        decay = self.config.optimizer.ema_decay
        update_average(state.average, state.model.state_dict(), decay, state.step)
        return means

    def _losses(self, image: Tensor, label: Tensor, part: int) -> Losses:
        config, run, device = self.config, self.run, self.processes.device
        image, label = image.to(device), label.to(device)
        target = smooth_targets(label, config.model.num_classes, config.loss.label_smoothing)
        draws = generator_for(config.seed, "mix", self.state.step, part)
        image, target = mix_batch(image, target, config.augmentation, draws)
        epoch = self.state.step // self.plan.steps_per_epoch
        low = config.optimizer.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            answers = run.forward(image, epoch < config.schedule.all_tokens_epochs)
            with torch.no_grad():
                teacher = run.teacher(image) if run.teacher else None
        return recipe_loss(answers, target, config.loss, teacher)

    def _check_finite(self, losses: Losses) -> None:
        if torch.isfinite(losses.total):
            return
        saved = self.config.output / RUN_FILE
        kept = f"The last good state is {saved}." if saved.exists() else "Nothing was saved yet."
        raise SacvitDeployError(
            f"The loss of step {self.state.step + 1} is {losses.total.item()}.\n{kept}",
            "Lower learning_rate, set clip_norm = 1.0, or train in float32, in a new output folder "
            "with init set to the last good checkpoint.",
        )

    def _after_step(self, losses: Losses) -> None:
        schedule, step = self.config.schedule, self.state.step
        done, seconds = step - self.first_step, time.monotonic() - self.started
        speed = done * schedule.batch_size / seconds
        if self.log:
            if step % schedule.log_every == 0:
                rate = learning_rate(step - 1, self.plan.steps_per_epoch, self.config)
                values = {name: value.item() for name, value in losses._asdict().items()}
                self.log.write(step, {**values, "learning_rate": rate, "images_per_s": speed})
            # Without the validations to come.
            left = clock((self.total_steps - step) * schedule.batch_size / speed)
            self.on_progress(
                step / self.total_steps,
                f"loss {losses.total.item():.3f}, {speed:.0f}/s, {left} left",
            )
        ends_epoch = step % self.plan.steps_per_epoch == 0
        if step % schedule.checkpoint_every == 0 and not ends_epoch:
            self._save()

    def _end_epoch(self) -> None:
        """Validate and save. The run comes last: after a kill before that, the rest is repeated."""
        state = self.state
        epoch = state.step // self.plan.steps_per_epoch
        if state.step == self.total_steps or epoch % self.config.schedule.validate_every == 0:
            self.metrics = self._validate()
            if self.log and self.metrics:
                done = state.step / self.plan.steps_per_epoch
                self.log.write(state.step, {"epoch": done, **self.metrics})
            top1 = self.metrics.get("top1")
            if top1 is not None and (state.best is None or top1 > state.best):
                state.best = top1
                self._save_average(BEST_FILE)
        self._save_average(LAST_FILE)
        self._save()

    def _validate(self) -> dict[str, float]:
        run = self.run
        if run.validation is None:
            return {}
        run.averaged.model.load_state_dict(self.state.average)
        workers = self.config.data.workers
        return validate(run.averaged, run.validation, self.processes, workers)

    def _save_average(self, name: str) -> None:
        if self.processes.first:
            save_checkpoint(self.config.output / name, self.state.average, self.config.model)

    def _save(self) -> None:
        if self.processes.first:
            save_run(self.config.output / RUN_FILE, self.state, self.config)
        self.processes.wait()
