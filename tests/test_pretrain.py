"""The pretraining recipe, in small: it learns, resumes exactly, and writes what timm loads."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import evaluate_backbone as ev
import pretrain_backbone as pb

SHAPE = {"img_size": 48, "embed_dim": 32, "num_heads": 2}
RECIPE = pb.Recipe(
    kwargs={**SHAPE, "depth": 2},
    teacher_kwargs={**SHAPE, "depth": 4},
    stages=((0.0, 32), (0.6, 48)),
    batch=8,
    pool=16,
    reuse=2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of generated pictures, small and large; one has a test split."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, side, splits in (("small", 64, ["train"]), ("large", 96, ["train", "test"])):
        for split in splits:
            for k, label in enumerate(("dark", "light")):
                folder = root / name / split / label
                folder.mkdir(parents=True)
                for i in range(4):
                    coarse = random.integers(110 * k, 110 * k + 120, (6, 6, 3), dtype=np.uint8)
                    Image.fromarray(coarse).resize((side + 8 * i, side)).save(folder / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher whose every weight is random, biases and norms too."""
    vit = ev.create_vit(RECIPE.teacher, RECIPE.teacher_kwargs, classes=10)
    random = torch.Generator().manual_seed(1)
    state = {
        name: torch.randn(value.shape, generator=random) * (0.2 if value.ndim > 1 else 0.1) + ("norm" in name)
        for name, value in vit.state_dict().items()
    }
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(state, path)
    return path


def make_trainer(data: Path, teacher: Path, recipe: pb.Recipe = RECIPE) -> pb.Trainer:
    cpu = torch.device("cpu")
    return pb.Trainer(recipe, teacher, pb.load_pictures(data, cpu), cpu)


@pytest.fixture(scope="module")
def finished(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an uninterrupted run of 10 steps."""
    out = tmp_path_factory.mktemp("finished") / "student.safetensors"
    pb.run(make_trainer(data, teacher), out, None, 10)
    return out


def test_pictures_are_grouped_by_size_and_only_train_is_read(data: Path) -> None:
    small, large = pb.load_pictures(data, torch.device("cpu"))
    assert (small.names, large.names) == (("small",), ("large",))
    assert small.images.shape == (8, 3, 64, 64)
    assert large.images.shape == (8, 3, 144, 144)
    assert small.images.dtype == torch.uint8


def test_no_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="unpack"):
        pb.load_pictures(tmp_path, torch.device("cpu"))


def test_views_are_repeatable_and_in_range() -> None:
    picture = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    views = pb.augment(picture, 32, torch.Generator().manual_seed(0))
    assert views.shape == (3, 3, 32, 32)
    assert views.abs().max() <= 1
    again = pb.augment(picture, 32, torch.Generator().manual_seed(0))
    assert torch.equal(views, again)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_loss_falls(data: Path, teacher: Path, tmp_path: Path, optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, stages=((0.0, 32),), forced_until=0.0, pool=64, lr=0.02)
    history = np.array(pb.run(make_trainer(data, teacher, recipe), tmp_path / "w.safetensors", None, 40))
    assert history.shape == (40, 3)
    assert (history[-5:, :2].mean(0) < 0.8 * history[:3, :2].mean(0)).all()


def test_matched_levels_and_forcing(data: Path, teacher: Path) -> None:
    trainer = make_trainer(data, teacher)
    assert trainer.matched == [2, 4]
    pool = trainer.make_pool(0, 32)
    trainer.measure_metrics()
    expected = ev.block_tokens(trainer.teacher, pool.views[:4].float())
    for level, k in zip(pool.levels, (0, 2, 4), strict=True):
        torch.testing.assert_close(level[:4].float(), expected[k], atol=0.15, rtol=0.05)
    # Forced inputs cut the gradient between blocks: the first block learns from its own level alone.
    trainer.losses(pool.views, pool.levels, 1.0, torch.Generator())[1:].sum().backward()
    first, second = (block.attn.qkv.weight.grad for block in trainer.student.blocks)
    assert not first.any()
    assert second.any()


def test_interrupted_run_ends_the_same(
    data: Path, teacher: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "student.safetensors", []

    def cut_power(*_: object) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pb, "export_weights", cut_power)
        with pytest.raises(KeyboardInterrupt):
            pb.run(make_trainer(data, teacher), out, None, 10, save_every_s=0)
    resumed = make_trainer(data, teacher)
    assert len(pb.run(resumed, out, None, 10)) == 4
    assert resumed.pool_size == 48
    once, twice = load_file(finished.with_suffix(".checkpoint")), load_file(out.with_suffix(".checkpoint"))
    assert once.keys() == twice.keys()
    assert any(name.endswith("momentum_buffer") for name in once)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_checkpoint_of_another_recipe_is_refused(data: Path, teacher: Path, finished: Path) -> None:
    with pytest.raises(ValueError, match="another recipe"):
        pb.run(make_trainer(data, teacher, replace(RECIPE, lr=1e-3)), finished, None, 10)


def test_a_run_goes_on_from_the_weights_of_another(data: Path, teacher: Path, finished: Path) -> None:
    cpu = torch.device("cpu")
    child = pb.Trainer(RECIPE, teacher, pb.load_pictures(data, cpu), cpu, finished)
    state = child.student.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in load_file(finished).items())


def test_parent_and_out_must_differ(data: Path, teacher: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = ["--parent", str(finished), "--out", str(finished), "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["pretrain", "--data", str(data), "--teacher", str(teacher), *same])
    with pytest.raises(SystemExit, match="2"):
        pb.main()


def test_width_must_agree(data: Path, teacher: Path) -> None:
    with pytest.raises(ValueError, match="width 64, teacher width 32"):
        make_trainer(data, teacher, replace(RECIPE, kwargs={**RECIPE.kwargs, "embed_dim": 64}))


def test_export_loads_strictly_in_timm(finished: Path, teacher: Path) -> None:
    state, taught = load_file(finished), load_file(teacher)
    with safe_open(finished, "pt") as opened:
        card = opened.metadata()
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert not any(name.startswith("head.") for name in state)
    vit = timm.create_model(card["model"], num_classes=0, **json.loads(card["kwargs"]))
    vit.load_state_dict(state, strict=True)
    sidecar = json.loads(finished.with_suffix(".json").read_text())
    assert sidecar["image_size"] == 48
    assert sidecar["recipe"] == card["recipe"] == RECIPE.digest()
    assert sidecar["data"] == ["small", "large"]
    teachers = list(taught.values())
    for name, value in state.items():
        same = [t for t in teachers if t.shape == value.shape and torch.allclose(t, value.float(), atol=0.02)]
        assert not same, name


def test_main_trains_exports_and_evaluates(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "deep" / "student.safetensors"
    changed = {"kwargs": RECIPE.kwargs, "teacher_kwargs": RECIPE.teacher_kwargs, "pool": 16, "batch": 8}
    common = ["--data", str(data), "--teacher", str(teacher)]
    monkeypatch.setattr(
        sys, "argv", ["pretrain", *common, "--out", str(out), "--steps", "2", "--recipe", json.dumps(changed)]
    )
    pb.main()
    accuracy = json.loads(out.with_suffix(".json").read_text())["accuracy"]
    assert accuracy.keys() == {"large"}
    assert 0.5 < accuracy["large"] <= 1
    monkeypatch.setattr(sys, "argv", ["evaluate", "--data", str(data), "--weights", str(out)])
    ev.main()
    rows = capsys.readouterr().out.strip().splitlines()
    assert rows[0].endswith("| large |")
    assert rows[2].startswith("| student | 48 |")
    assert rows[2].endswith(f"| {100 * accuracy['large']:.1f} |")


def test_shipped_weights_are_what_their_sidecar_says() -> None:
    weights = Path(__file__).parents[1] / "edge_cl" / "backbones" / "edge_vit_tiny.safetensors"
    card, state = json.loads(weights.with_suffix(".json").read_text()), load_file(weights)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]
    assert weights.stat().st_size <= 12e6
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert all(value.isfinite().all() for value in state.values())
    vit = timm.create_model(card["model"], num_classes=0, **card["kwargs"])
    vit.load_state_dict(state, strict=True)
    assert vit.patch_embed.img_size == (card["image_size"],) * 2
    settings = json.dumps(card["settings"], sort_keys=True).encode()
    assert card["recipe"] == hashlib.sha256(settings).hexdigest()[:16]


def test_lda_accuracy_against_sklearn() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    x = random.normal(size=(60, 5)) + labels[:, None] * 0.7
    a, truth = (
        random.normal(size=(300, 5)) + np.repeat(np.arange(3), 100)[:, None] * 0.7,
        np.repeat(np.arange(3), 100),
    )
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2, priors=[1 / 3] * 3)
    expected = float((reference.fit(x, labels).predict(a) == truth).mean())
    got = ev.lda_accuracy(*(torch.from_numpy(v) for v in (x, labels, a, truth)))
    assert got == pytest.approx(expected, abs=0.01)
    assert got > 0.5
