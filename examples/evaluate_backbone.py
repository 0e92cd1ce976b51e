"""Compare backbones without any training: accuracy of one Gaussian classifier, beside time on one CPU thread.

    python examples/evaluate_backbone.py --data DIR --weights FILE --teacher FILE [--sizes 128 224]
    python examples/evaluate_backbone.py --catalogue

The class token and the mean patch of every block, each after the final norm, make one vector a picture;
class means and one shrunk pooled covariance (linear discriminant analysis) are fitted on DIR/NAME/train and
judged on DIR/NAME/test. FILE was written by pretrain_backbone.py; the teacher runs at the sizes given. Prints
a markdown table. The time is CPU time, so that other work on the machine counts little. The second form prints
the time of every backbone that `edge-cl init --backbone list` shows, with random weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from edge_cl.catalogue import choices
from edge_cl.config import BACKBONES_DIR, SHIPPED

MEAN = STD = (0.5, 0.5, 0.5)


def picture_paths(split: Path) -> list[tuple[Path, str]]:
    """Return (path, class name) of every picture in `split`/CLASS/, in sorted order."""
    folders = sorted(folder for folder in split.iterdir() if folder.is_dir())
    kinds = {".jpg", ".jpeg", ".png"}
    return [(p, f.name) for f in folders for p in sorted(f.iterdir()) if p.suffix.lower() in kinds]


def read_square(path: Path, side: int | None) -> np.ndarray:
    """Read a picture as RGB uint8 `(H, W, 3)`; with `side`, resized to it and cut to the central square."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if side is None:
        return np.array(image)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.array(image.crop((left, top, left + side, top + side)))


def create_vit(model: str, kwargs: dict[str, float], classes: int = 0) -> VisionTransformer:
    """Return a plain timm vision transformer with random weights; 0 classes: no head."""
    vit = timm.create_model(model, num_classes=classes, **kwargs)  # type: ignore[arg-type]
    if not isinstance(vit, VisionTransformer):
        raise TypeError(f"{model} is no plain vision transformer; vit_tiny_patch16_224 is one")
    return vit


def load_vit(model: str, kwargs: dict[str, float], weights: Path, head: bool = False) -> VisionTransformer:
    """Return a frozen timm vision transformer in float32 with these weights, with or without its head."""
    state = {name: value.float() for name, value in load_file(weights).items()}
    classes = len(state["head.weight"]) if head else 0
    vit = create_vit(model, kwargs, classes)
    state = checkpoint_filter_fn(state, vit)
    vit.load_state_dict({name: value for name, value in state.items() if head or not name.startswith("head.")})
    return vit.eval().requires_grad_(False)


def block_tokens(vit: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Return the tokens `(B, T, D)` before the first block and after every block."""
    tokens = [vit._pos_embed(vit.patch_embed(images))]
    for block in vit.blocks:
        tokens.append(block(tokens[-1]))
    return tokens


@torch.inference_mode()
def extract_features(vit: VisionTransformer, paths: list[Path]) -> Tensor:
    """Return class token and mean patch of every block after the final norm, `(N, 2 * blocks * D)`."""
    rows, size = [], vit.patch_embed.img_size[0]
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for start in range(0, len(paths), 64):
        pictures = np.stack([read_square(path, size) for path in paths[start : start + 64]])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        normed = [vit.norm(tokens) for tokens in block_tokens(vit, (images - mean) / std)[1:]]
        rows.append(torch.cat([part for n in normed for part in (n[:, 0], n[:, 1:].mean(1))], 1))
    return torch.cat(rows)


def lda_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, shrinkage: float = 0.2) -> float:
    """Return the accuracy on `test` of class means and one shrunk covariance of `train`, in float64."""
    train, test = train.double(), test.double()
    means = torch.stack([train[labels == k].mean(0) for k in range(int(labels.max()) + 1)])
    rest = train - means[labels]
    covariance = rest.T @ rest / len(train)
    eye = torch.eye(len(covariance), dtype=torch.float64)
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().mean() * eye
    weight = torch.linalg.solve(covariance, means.T)
    scores = test @ weight - 0.5 * (means.T * weight).sum(0)
    return float((scores.argmax(1) == truth).double().mean())


def training_free_accuracy(vit: VisionTransformer, root: Path, split: str = "test") -> float:
    """Return the accuracy on `root`/`split` after one look at `root`/train."""
    fitted, judged = picture_paths(root / "train"), picture_paths(root / split)
    number = {name: k for k, name in enumerate(sorted({name for _, name in fitted}))}
    return lda_accuracy(
        extract_features(vit, [path for path, _ in fitted]),
        torch.tensor([number[name] for _, name in fitted]),
        extract_features(vit, [path for path, _ in judged]),
        torch.tensor([number[name] for _, name in judged]),
    )


@torch.inference_mode()
def median_cpu_ms(vits: list[VisionTransformer], rounds: int = 40) -> list[float]:
    """Return the median CPU milliseconds of one picture on one thread for every model, measured in turns."""
    torch.set_num_threads(1)
    times: list[list[float]] = [[] for _ in vits]
    pictures = [torch.zeros(1, 3, *vit.patch_embed.img_size) for vit in vits]
    for _ in range(rounds):
        for vit, picture, taken in zip(vits, pictures, times, strict=True):
            started = time.process_time()
            vit.forward_features(picture)
            taken.append(1000 * (time.process_time() - started))
    return [statistics.median(taken[rounds // 4 :]) for taken in times]


def print_catalogue_times() -> None:
    """Measure every backbone of the catalogue at its own picture size, and print a markdown table."""
    shipped = json.loads((BACKBONES_DIR / f"{SHIPPED}.json").read_text())
    shapes = {SHIPPED: (shipped["model"], shipped["kwargs"])}
    vits = [create_vit(*shapes.get(choice.name, (choice.name, {}))).eval() for choice in choices()]
    print("| backbone | picture, px | CPU ms |\n|---|---|---|")
    for choice, milliseconds in zip(choices(), median_cpu_ms(vits, rounds=12), strict=True):
        print(f"| {choice.name} | {choice.picture_px} | {milliseconds:.1f} |", flush=True)


def main() -> None:
    """Read the command line, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--catalogue", action="store_true", help="print the times of the backbones to choose from")
    parser.add_argument("--data", type=Path, help="folder of NAME/{train,test}/CLASS/*.jpg")
    parser.add_argument("--weights", type=Path, help="written by pretrain_backbone.py")
    parser.add_argument("--teacher", type=Path, help="the teacher's weights, safetensors")
    parser.add_argument("--teacher-model", default="vit_tiny_patch16_224", help="its timm name")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224], help="the teacher's picture sides")
    parser.add_argument("--split", default="test", help="the split to judge on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.catalogue:
        return print_catalogue_times()
    if not args.data or not args.weights:
        parser.error("give --data and --weights, or --catalogue")
    with safe_open(args.weights, "pt") as opened:
        card = opened.metadata()
    vits = {"student": load_vit(card["model"], json.loads(card["kwargs"]), args.weights)}
    for size in args.sizes if args.teacher else []:
        vits[f"teacher {size}"] = load_vit(args.teacher_model, {"img_size": size}, args.teacher)
    roots = [root for root in sorted(args.data.iterdir()) if (root / args.split).is_dir()]
    print(f"| backbone | picture, px | parameters, M | CPU ms | {' | '.join(root.name for root in roots)} |")
    print("|---" * (4 + len(roots)) + "|")
    for (name, vit), milliseconds in zip(vits.items(), median_cpu_ms(list(vits.values())), strict=True):
        accuracy = " | ".join(f"{100 * training_free_accuracy(vit, root, args.split):.1f}" for root in roots)
        millions, side = sum(p.numel() for p in vit.parameters()) / 1e6, vit.patch_embed.img_size[0]
        print(f"| {name.split()[0]} | {side} | {millions:.2f} | {milliseconds:.1f} | {accuracy} |", flush=True)


if __name__ == "__main__":
    main()
