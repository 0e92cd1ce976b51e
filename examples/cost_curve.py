"""Accuracy against cost: what a store answers, where the exit is surer or less sure, and where more branches are asked.

    python examples/cost_curve.py STORE DIR/test --output cost_curve

writes cost_curve.csv and cost_curve.png: backbone passes a picture (one is the whole backbone once) and accuracy. Task
branches share in the answer here even where the hold-out pictures said that it wins nothing, and they are not asked.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_cl import Learner
from edge_cl.assessment import calibrated, with_exit
from edge_cl.backend import BASE, BATCH_SIZE
from edge_cl.decoded import decode
from edge_cl.features import TorchBackend
from edge_cl.pictures import read_folder
from edge_cl.recognition import Recogniser

CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


def measure(learner: Learner, folder: Path) -> list[tuple[str, float, float]]:
    """Return (what, passes, accuracy) of every way of answering."""
    model, encoder = learner.load()
    encoder = replace(encoder, preprocess=model.preprocess)
    model = with_exit(calibrated(model), encoder.prefix_width)
    shares = {t: replace(b, weight=b.weight or model.config.branch_weight) for t, b in model.branches.items()}
    model = replace(model, branches={t: b if t in model.adapters else model.branches[t] for t, b in shares.items()})
    head, backend = model.head(), TorchBackend(encoder, model.adapters)
    assert head.exit is not None, "this store has too few hold-out pictures for an exit"
    whole, split = replace(head, exit=None), encoder.backbone.split / encoder.backbone.depth
    pictures = read_folder(folder).pictures
    column = {c.name: i for i, c in enumerate(model.classes)}
    truth = np.asarray([column[p.label] for p in pictures])
    early, near, base, one, two, asked = [], [], [], [], [], []
    for start in range(0, len(pictures), BATCH_SIZE):
        pixels = np.stack(decode(pictures[start : start + BATCH_SIZE], encoder.preprocess).pixels)
        encoding = backend.prefix(pixels)
        early.append(head.exit.answers(encoding.features)[0])
        near.append(replace(head.exit, confidence=0.0).answers(encoding.features)[1])
        full = backend.branch(encoding, BASE, range(len(pixels)))
        base.append(head.base_posterior(full.features))
        for count, into in ((1, one), (2, two)):
            routed = replace(whole, routed=count)
            into.append(Recogniser(backend, routed, model.names).posterior(encoding))
            asked.append((count, [len(route) for route in routed.route(base[-1])]))
    early_p, near_p, base_p, one_p, two_p = (np.concatenate(part) for part in (early, near, base, one, two))
    runs = {count: np.concatenate([r for c, r in asked if c == count]) for count in (1, 2)}

    def accuracy(posterior: np.ndarray) -> float:
        return float((posterior.argmax(1) == truth).mean())

    rows = []
    for confidence in CONFIDENCES:
        stands = (early_p.max(1) > confidence) & near_p
        answer = np.where(stands[:, None], early_p, base_p)
        rows.append((f"exit above {confidence:g}, then the base branch", 1 - (1 - split) * stands.mean(), answer))
        unsure = ~stands & (base_p.max(1) <= confidence)
        answer = np.where(unsure[:, None], one_p, answer)
        passes = rows[-1][1] + (1 - split) * (unsure * runs[1]).mean()
        rows.append((f"exit above {confidence:g}, a task branch where unsure", passes, answer))
    rows.append(("base branch", 1.0, base_p))
    rows.append(("one task branch always", 1 + (1 - split) * runs[1].mean(), one_p))
    rows.append(("two task branches always", 1 + (1 - split) * runs[2].mean(), two_p))
    return [(what, float(passes), accuracy(answer)) for what, passes, answer in rows]


def plot(rows: list[tuple[str, float, float]], path: Path) -> None:
    """Draw accuracy over passes, a line a way of answering."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for ending, label in (
        ("base branch", "exit, then the base branch"),
        ("where unsure", "exit, base branch, a task branch where unsure"),
        ("always", "no exit, one or two task branches"),
    ):
        points = sorted((passes, 100 * accuracy) for what, passes, accuracy in rows if what.endswith(ending))
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axes.set(xlabel="backbone passes a picture", ylabel="accuracy, %", title="Accuracy against cost")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("pictures", type=Path, help="one sub-folder a class")
    parser.add_argument("--output", type=Path, default=Path("cost_curve"), help="without an ending")
    arguments = parser.parse_args()
    rows = measure(Learner.open(arguments.store), arguments.pictures)
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("what", "passes", "accuracy"), *rows])
    plot(rows, arguments.output.with_suffix(".png"))
    for what, passes, accuracy in rows:
        print(f"{passes:5.2f} passes  {accuracy:6.1%}  {what}")


if __name__ == "__main__":
    main()
