"""Train a small vision transformer from random weights by imitating a larger one, block by block.

    python examples/pretrain_backbone.py --data DIR --teacher FILE --out FILE --hours H

DIR holds one folder of pictures per data set, NAME/train/CLASS/*.jpg; training reads the train splits alone
and does not use their classes. The student has fewer blocks than the teacher. Each student block learns to
give the tokens the teacher has after the matching share of its blocks: at first fed with the teacher's, so
that all blocks learn at once, later with the student's. The same command continues an interrupted run; the
schedule follows the time given, so a run always ends annealed. Beside FILE lie a .json (how to build the
model, its accuracy) and a .checkpoint (safetensors).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from evaluate_backbone import (
    MEAN,
    STD,
    block_tokens,
    create_vit,
    load_vit,
    picture_paths,
    read_square,
    training_free_accuracy,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, apart from the pictures, the teacher's weights and the time.

    Attributes:
        model: timm name of the student; `kwargs` change its shape, `img_size` is what it is deployed at.
        teacher: timm name of the teacher, changed by `teacher_kwargs`; width and patch as the student's.
        stages: (share of the schedule, picture side in pixels) from which that size is used.
        batch: views a step.
        pool: views the teacher looks at ahead of the steps that use them.
        reuse: times each view of a pool is used.
        lr: peak learning rate, reached after `warmup` of the schedule, then half a cosine to zero.
        forced_until: share of the schedule over which the blocks' inputs go from the teacher's to their own.
        shrinkage: how much the metric of the errors is pulled towards the plain Euclidean one.
        cls_weight: weight of the class token beside the mean over patches.
        logit_weight: weight of the divergence of the teacher's head on the two class tokens.
        native_share: share of views cut from the large pictures, where there are large and small ones.
        mosaic_share: share of the views of small pictures that are four views tiled, where one would be a blurred
            enlargement: the fine detail of a sharp picture has to come from somewhere.
        optimizer: "muon" (AdamW for what is no matrix of a block) or "adamw".
        parent: SHA-256 of the weights of an earlier run that the student starts from; empty for random weights.
    """

    model: str = "vit_tiny_patch16_224"
    kwargs: dict[str, float] = field(default_factory=lambda: {"img_size": 128, "depth": 6, "mlp_ratio": 3.5})
    teacher: str = "vit_tiny_patch16_224"
    teacher_kwargs: dict[str, float] = field(default_factory=dict)
    stages: tuple[tuple[float, int], ...] = ((0.0, 64), (0.45, 96), (0.75, 128))
    batch: int = 128
    pool: int = 4096
    reuse: int = 4
    lr: float = 6e-3
    warmup: float = 0.03
    weight_decay: float = 0.02
    forced_until: float = 0.3
    shrinkage: float = 0.2
    cls_weight: float = 0.5
    logit_weight: float = 0.03
    native_share: float = 0.4
    mosaic_share: float = 0.25
    optimizer: str = "muon"
    parent: str = ""
    seed: int = 1993

    def digest(self) -> str:
        """Return a short SHA-256 of the recipe, the same for the same settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def image_size(self, progress: float) -> int:
        """Return the picture side in pixels at this share of the schedule."""
        return [size for start, size in self.stages if progress >= start][-1]

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate: a linear rise, then half a cosine to zero."""
        if progress < self.warmup:
            return self.lr * max(progress, 1e-3) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def forced_share(self, progress: float) -> float:
        """Return the share of block inputs taken from the teacher instead of the student."""
        return max(0.0, 1 - progress / self.forced_until) if self.forced_until else 0.0


COUNTERS = ("step", "pool_index", "pool_step", "pool_size", "elapsed_s")


@dataclass(frozen=True)
class Pictures:
    """Training pictures of one stored size, uint8 `(N, 3, S, S)`, on the training device."""

    names: tuple[str, ...]
    images: Tensor


def load_pictures(data: Path, device: torch.device, small: int = 64, large: int = 144) -> list[Pictures]:
    """Read every train split under `data`, grouped into small and large pictures.

    Raises:
        FileNotFoundError: if no folder under `data` has pictures in train/CLASS/.
    """
    groups: dict[int, tuple[list[str], list[np.ndarray]]] = {small: ([], []), large: ([], [])}
    for root in sorted(data.iterdir()):
        paths = [path for path, _ in picture_paths(root / "train")] if (root / "train").is_dir() else []
        if paths:
            side = small if min(read_square(paths[0], None).shape[:2]) <= small else large
            groups[side][0].append(root.name)
            groups[side][1].extend(read_square(path, side) for path in paths)
    filled = [(names, images) for names, images in groups.values() if images]
    if not filled:
        raise FileNotFoundError(f"{data}: no pictures in NAME/train/CLASS/*.jpg; unpack the data sets there")
    return [
        Pictures(tuple(names), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device))
        for names, images in filled
    ]


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut, flip and tint random views `(B, 3, size, size)` in -1..1, on the device of `images`."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    area, aspect = uniform(0.15, 1.0), uniform(-0.29, 0.29).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    tint = torch.stack([uniform(0.7, 1.3), uniform(-0.2, 0.2)], 1).to(images.device)[..., None, None, None]
    finer = 2 if images.shape[-1] > 1.25 * size else 1  # where a view is smaller than its crop, against aliasing
    grid = F.affine_grid(theta.to(images.device), [count, 3, finer * size, finer * size], align_corners=False)
    views = F.grid_sample(images.float().div(127.5).sub(1), grid, padding_mode="reflection", align_corners=False)
    return (F.avg_pool2d(views, finer) * tint[:, 0] + tint[:, 1]).clamp(-1, 1)


def cut_views(images: Tensor, count: int, size: int, across: int, generator: torch.Generator) -> Tensor:
    """Cut random views `(count, 3, size, size)` of random pictures; each is `across` x `across` smaller ones, tiled."""
    chosen = torch.randint(len(images), (count * across * across,), generator=generator)
    views = augment(images[chosen.to(images.device)], size // across, generator)
    tiles = views.unflatten(0, (count, across, across)).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(count, 3, size, size)


@dataclass(frozen=True)
class Pool:
    """A block of views `(N, 3, S, S)` with the teacher's tokens `(N, T, D)` at every matched level."""

    views: Tensor
    levels: list[Tensor]


class Trainer:
    """Student, teacher, pictures and optimisers of one run; the state is saved and restored exactly."""

    def __init__(
        self,
        recipe: Recipe,
        teacher: Path,
        pictures: list[Pictures],
        device: torch.device,
        parent: Path | None = None,
    ) -> None:
        self.recipe, self.pictures, self.device = recipe, pictures, device
        shape = {**recipe.teacher_kwargs, "dynamic_img_size": True}
        self.teacher = load_vit(recipe.teacher, shape, teacher, head=True).to(device)
        torch.manual_seed(recipe.seed)
        student = create_vit(recipe.model, {**recipe.kwargs, "dynamic_img_size": True})
        if parent:
            student.load_state_dict(load_file(parent))
        self.student = student.to(device)
        if student.embed_dim != self.teacher.embed_dim:
            raise ValueError(
                f"student width {student.embed_dim}, teacher width {self.teacher.embed_dim}: "
                "block by block they must agree; change embed_dim in the recipe's kwargs"
            )
        depth, deep = len(list(student.blocks)), len(list(self.teacher.blocks))
        self.matched = [round((k + 1) * deep / depth) for k in range(depth)]
        for block in (*self.student.blocks, *self.teacher.blocks):
            block.attn.fused_attn = device.type != "cpu"  # of so few tokens the fused kernel is slower on a CPU
        self.optimizers = make_optimizers(recipe, self.student)
        self.step = self.pool_index = self.pool_step = 0
        self.pool_size, self.elapsed_s = recipe.image_size(0.0), 0.0
        self.metrics: list[Tensor] = []

    def autocast(self) -> torch.autocast:
        """Return the bfloat16 context that both models run in."""
        return torch.autocast(self.device.type, torch.bfloat16)

    @torch.no_grad()
    def make_pool(self, index: int, size: int, count: int | None = None) -> Pool:
        """Cut views and let the teacher look at them; the same `index` always gives the same pool."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + index)
        count = count or self.recipe.pool
        large = round(count * self.recipe.native_share) if len(self.pictures) == 2 else 0
        small = self.pictures[0].images
        tiled = round((count - large) * self.recipe.mosaic_share) if size > 1.25 * small.shape[-1] else 0
        shares = [(small, count - large - tiled, 1), (small, tiled, 2), (self.pictures[-1].images, large, 1)]
        views, levels = [], []
        for images, share, across in shares:
            for start in range(0, share, 256):
                view = cut_views(images, min(256, share - start), size, across, generator)
                with self.autocast():
                    tokens = block_tokens(self.teacher, view)
                views.append(view.half())
                levels.append(torch.stack([tokens[k] for k in (0, *self.matched)]).half())
        return Pool(torch.cat(views), list(torch.cat(levels, 1)))

    def measure_metrics(self) -> None:
        """Set the metric of every level, C^-1/2 of its shrunk token covariance C, as LDA on it would see.

        The teacher looks at pictures of the size that the student is deployed at.
        """
        size, shrinkage = self.student.patch_embed.img_size[0], self.recipe.shrinkage
        for level in self.make_pool(-1, size, min(2048, self.recipe.pool)).levels[1:]:
            some = level[:, :: max(1, level.shape[1] // 8)].flatten(0, 1).float()
            covariance = torch.cov(F.layer_norm(some, some.shape[-1:]).T).double()
            eye = torch.eye(len(covariance), dtype=torch.float64, device=self.device)
            spread = covariance.diagonal().mean()
            values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * spread * eye)
            self.metrics.append((vectors * values.rsqrt() @ vectors.T).float())

    def losses(self, views: Tensor, levels: list[Tensor], forced: float, random: torch.Generator) -> Tensor:
        """Return the loss of every level and, last, of the logits, `(L + 1,)`.

        Args:
            views: pictures `(B, 3, S, S)`.
            levels: the teacher's tokens `(B, T, D)` before the first block and at every matched level.
            forced: probability with which the input of a block after the first is the teacher's.
            random: decides which.
        """
        student, losses = self.student, []
        with self.autocast():
            tokens = student._pos_embed(student.patch_embed(views.float()))
            for k, block in enumerate(student.blocks):
                taught = torch.rand(len(views), 1, 1, generator=random).to(self.device) < forced
                tokens = block(torch.where(taught, levels[k].to(tokens.dtype), tokens) if forced and k else tokens)
                target = levels[k + 1].float()
                error = (tokens.float() - target) / target.std(-1, keepdim=True)
                error = F.smooth_l1_loss(error @ self.metrics[k], torch.zeros_like(error), reduction="none")
                losses.append(error[:, 1:].mean() + self.recipe.cls_weight * error[:, 0].mean())
            wanted = self.teacher.head(self.teacher.norm(levels[-1][:, 0].float()))
            given = self.teacher.head(student.norm(tokens)[:, 0])
        given, wanted = given.float().log_softmax(-1), wanted.float().log_softmax(-1)
        losses.append(F.kl_div(given, wanted, log_target=True, reduction="batchmean"))
        return torch.stack(losses)

    def train_steps(self, progress: Iterator[float]) -> Iterator[tuple[float, Tensor]]:
        """Train while `progress` gives numbers under 1; yield the progress and the losses of every step."""
        recipe, pool = self.recipe, self.make_pool(self.pool_index, self.pool_size)
        if not self.metrics:
            self.measure_metrics()
        per_pool = recipe.reuse * (recipe.pool // recipe.batch)
        for done in progress:
            if self.pool_step == per_pool:
                self.pool_index, self.pool_step = self.pool_index + 1, 0
                self.pool_size = recipe.image_size(done)
                pool = self.make_pool(self.pool_index, self.pool_size)
            random = torch.Generator().manual_seed(recipe.seed * 200_003 + self.step)
            chosen = self.batch_rows(self.pool_step)
            levels = [level[chosen].float() for level in pool.levels]
            losses = self.losses(pool.views[chosen], levels, recipe.forced_share(done), random)
            torch.autograd.backward(losses[:-1].mean() + recipe.logit_weight * losses[-1])
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate(done)
                optimizer.step()
                optimizer.zero_grad()
            self.step, self.pool_step = self.step + 1, self.pool_step + 1
            yield done, losses.detach()

    def batch_rows(self, pool_step: int) -> Tensor:
        """Return the rows of the pool that this step trains on, each row once per reading of the pool."""
        per_reading = self.recipe.pool // self.recipe.batch
        reading, at = divmod(pool_step, per_reading)
        seed = self.recipe.seed * 300_007 + self.pool_index * 101 + reading
        order = torch.randperm(self.recipe.pool, generator=torch.Generator().manual_seed(seed))
        return order[at * self.recipe.batch :][: self.recipe.batch].to(self.device)


def make_optimizers(recipe: Recipe, student: nn.Module) -> list[torch.optim.Optimizer]:
    """Return the optimisers: Muon for the blocks' matrices and AdamW for the rest, or AdamW alone."""
    matrices, others, plain = [], [], []
    for name, parameter in student.named_parameters():
        if parameter.ndim == 1 or parameter.shape[0] == 1:
            plain.append(parameter)
        elif parameter.ndim == 2 and name.startswith("blocks.") and recipe.optimizer == "muon":
            matrices.append(parameter)
        else:
            others.append(parameter)
    lr, decay = recipe.lr, recipe.weight_decay
    groups: list[dict[str, Any]] = [{"params": others}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=decay)
    if not matrices:
        return [adamw]
    return [adamw, torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write weights, optimiser state, metrics and counters to one safetensors file, replaced in one move."""
    tensors = {f"student.{name}": value for name, value in trainer.student.state_dict().items()}
    tensors |= {f"metric.{k}": value for k, value in enumerate(trainer.metrics)}
    for k, optimizer in enumerate(trainer.optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{k}.{number}.{key}": value for key, value in state.items()}
    counters = {name: getattr(trainer, name) for name in COUNTERS} | {"recipe": trainer.recipe.digest()}
    write_safetensors(tensors, {"counters": json.dumps(counters)}, path)


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a saved state back into a fresh trainer.

    Raises:
        ValueError: if the checkpoint was written under another recipe.
    """
    with safe_open(path, "pt") as opened:
        counters = json.loads(opened.metadata()["counters"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if counters.pop("recipe") != trainer.recipe.digest():
        raise ValueError(f"{path}: from another recipe; delete it to start again, or give another --out")
    for name, value in counters.items():
        setattr(trainer, name, value)
    trainer.student.load_state_dict(starting_with("student.", tensors))
    metrics = starting_with("metric.", tensors)
    trainer.metrics = [metrics[str(k)].to(trainer.device) for k in range(len(metrics))]
    for k, optimizer in enumerate(trainer.optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in starting_with(f"optimizer.{k}.", tensors).items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def starting_with(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file beside its final name, then move it there in one step."""
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)
    partial.replace(path)


def export_weights(trainer: Trainer, path: Path) -> None:
    """Write the student as fp16 safetensors with what builds it again, and a JSON sidecar; it has no head."""
    recipe = trainer.recipe
    card = {
        "model": recipe.model,
        "kwargs": recipe.kwargs,
        "mean": MEAN,
        "std": STD,
        "image_size": trainer.student.patch_embed.img_size[0],
        "recipe": recipe.digest(),
        "settings": asdict(recipe),
        "data": [name for group in trainer.pictures for name in group.names],
        "steps": trainer.step,
        "seconds": round(trainer.elapsed_s),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    weights = {name: value.half() for name, value in trainer.student.state_dict().items()}
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in card.items()}
    write_safetensors(weights, written, path)
    card["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def run(
    trainer: Trainer, out: Path, hours: float | None, steps: int | None, save_every_s: float = 900.0
) -> list[list[float]]:
    """Train to the end of the schedule, saving on the way; return the losses of the steps done here."""
    checkpoint, history = out.with_suffix(".checkpoint"), []
    if checkpoint.exists():
        load_checkpoint(trainer, checkpoint)
    started, saved_s = time.monotonic() - trainer.elapsed_s, trainer.elapsed_s

    def progress() -> Iterator[float]:
        while True:
            share = trainer.step / steps if steps else trainer.elapsed_s / (3600 * (hours or 1))
            if share >= 1:
                return
            yield share

    for done, losses in trainer.train_steps(progress()):
        trainer.elapsed_s = time.monotonic() - started
        history.append(losses.tolist())
        if trainer.step % 50 == 0:
            shown = " ".join(f"{loss:.3f}" for loss in history[-1])
            print(f"{done:6.1%} step {trainer.step} {trainer.pool_size} px: {shown}", flush=True)
        if trainer.elapsed_s - saved_s >= save_every_s:
            saved_s = trainer.elapsed_s
            save_checkpoint(trainer, checkpoint)
            export_weights(trainer, out)
    save_checkpoint(trainer, checkpoint)
    export_weights(trainer, out)
    return history


def main() -> None:
    """Read the command line, train, export and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of NAME/train/CLASS/*.jpg")
    parser.add_argument("--teacher", type=Path, required=True, help="the teacher's weights, safetensors")
    parser.add_argument("--out", type=Path, required=True, help="where to write the weights, safetensors")
    parser.add_argument("--parent", type=Path, help="weights of an earlier run to start from, instead of random ones")
    parser.add_argument("--hours", type=float, help="training time; the schedule follows it")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of --hours")
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON of settings that differ")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    if (args.hours is None) == (args.steps is None):
        parser.error("give one of --hours H and --steps N")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.parent and args.parent.resolve() == args.out.resolve():
        parser.error("--parent and --out are the same file; the run would lose what it started from")
    device, recipe = torch.device(args.device), replace(Recipe(), **args.recipe)
    if args.parent:
        recipe = replace(recipe, parent=hashlib.sha256(args.parent.read_bytes()).hexdigest())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, args.teacher, load_pictures(args.data, device), device, args.parent)
    run(trainer, args.out, args.hours, args.steps)
    vit, sidecar = load_vit(recipe.model, recipe.kwargs, args.out), args.out.with_suffix(".json")
    judged = [root for root in sorted(args.data.iterdir()) if (root / "test").is_dir()]
    card = json.loads(sidecar.read_text())
    card["accuracy"] = {root.name: training_free_accuracy(vit, root) for root in judged}
    sidecar.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
