"""Prefix tokens on disk: what was written is read, whatever decides them separates them, damage counts as absence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import picture, write_looks
from torch import Tensor

from edge_cl.architecture import BackboneSpec, build
from edge_cl.backbone import Backbone
from edge_cl.checkpoint import Checkpoint
from edge_cl.decoded import Source, decode
from edge_cl.encoding import Encoded, ViewEncoder
from edge_cl.errors import StoreError
from edge_cl.features import Encoder
from edge_cl.lora import Adapter
from edge_cl.pictures import read_folder
from edge_cl.preprocess import Preprocess
from edge_cl.tokens import DIGEST, ResidentTokens, TokenCache
from edge_cl.weights import read_weights

SHAPE = (6, 5, 8)
BYTES = 6 * 5 * 8 * 2 + DIGEST


def values(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).half().float()


def batches(tokens: Tensor) -> Iterator[Tensor]:
    yield from tokens.split(4)


def test_rows_are_what_was_written(tmp_path: Path) -> None:
    cache, wanted = TokenCache(tmp_path / "deep" / "tokens", 1 << 20), values()
    filled = cache.fill({"a": 1}, SHAPE, batches(wanted))
    found = cache.find({"a": 1}, SHAPE)
    assert found is not None
    assert len(found) == len(filled) == 6
    pictures, kept = np.array([5, 0, 3]), np.array([[0, 4], [0, 1], [2, 3]])
    for tokens in (filled, found):
        assert torch.equal(tokens.rows(pictures), wanted[pictures])
        assert torch.equal(tokens.rows(pictures, kept), wanted[pictures[:, None], kept])
    assert cache.find({"a": 2}, SHAPE) is None
    assert cache.find({"a": 1}, (6, 5, 4)) is None


def test_resident_rows_are_those_of_their_view(tmp_path: Path) -> None:
    cache, wanted = TokenCache(tmp_path, 1 << 20), [values(0), values(1), values(2)]
    views = [cache.fill({"view": i}, SHAPE, batches(view)) for i, view in enumerate(wanted)]
    held = ResidentTokens.of(views, torch.device("cpu"))
    pictures, kept = torch.tensor([5, 0, 3]), torch.tensor([[0, 4], [0, 1], [2, 3]])
    for i, view in enumerate(wanted):
        assert torch.equal(held.rows(torch.tensor([i]), pictures), view[pictures])
        assert torch.equal(held.rows(torch.tensor([i]), pictures, kept), view[pictures[:, None], kept])


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"\x00" * 9 + d[9:], lambda d: d + b"x", lambda d: b""])
def test_damage_counts_as_absence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.fill({}, SHAPE, batches(values()))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.find({}, SHAPE) is None
    assert torch.equal(cache.fill({}, SHAPE, batches(values(1))).rows(np.arange(6)), values(1))


def test_an_interrupted_fill_leaves_nothing(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, 1 << 20)

    def cut() -> Iterator[Tensor]:
        yield values()[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill({}, SHAPE, cut())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="240 bytes of tokens were produced, 480 were announced"):
        cache.fill({}, SHAPE, batches(values()[:3]))
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_give_way(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, 2 * BYTES)
    assert (cache.room(SHAPE), TokenCache(tmp_path, BYTES - 1).room(SHAPE)) == (2, 0)
    cache.fill({"n": 0}, SHAPE, batches(values(0)))
    cache.fill({"n": 1}, SHAPE, batches(values(1)))
    assert cache.find({"n": 0}, SHAPE) is not None  # now the newer of the two
    cache.fill({"n": 2}, SHAPE, batches(values(2)))
    assert [cache.find({"n": n}, SHAPE) is not None for n in range(3)] == [True, False, True]
    TokenCache(tmp_path, 1).fill({"n": 3}, SHAPE, batches(values(3)))  # more than the limit, but a learn needs one
    assert [cache.find({"n": n}, SHAPE) is not None for n in range(4)] == [False, False, False, True]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=str(tmp_path / "file")):
        TokenCache(tmp_path / "file" / "tokens", 1 << 20).fill({}, SHAPE, batches(values()))


# What decides the tokens decides their name.


def shared(seed: int) -> Adapter:
    adapter = Adapter.new_shared(3, 64, 2, torch.Generator().manual_seed(seed))
    torch.nn.init.normal_(adapter.B, 0, 0.1, generator=torch.Generator().manual_seed(seed))
    return adapter


def other_weights(backbone: Backbone) -> Backbone:
    backbone.vit.blocks[2].mlp.fc1.bias.data[0] += 1e-3
    return backbone


def suffix_weights(backbone: Backbone) -> Backbone:
    backbone.vit.blocks[3].mlp.fc1.bias.data[0] += 1e-3
    return backbone


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda e: e, True),
        (lambda e: replace(e, shared=shared(1)), True),
        (lambda e: replace(e, base=shared(2)), True),
        (lambda e: replace(e, shared=shared(2)), False),
        (lambda e: replace(e, shared=None), False),
        (lambda e: replace(e, preprocess=Preprocess(32, mean=(0.4, 0.5, 0.5))), False),
        (lambda e: replace(e, backbone=other_weights(e.backbone)), False),
        (lambda e: replace(e, backbone=suffix_weights(e.backbone)), True),
    ],
)
def test_prefix_digest(tiny_backbone: Backbone, change: Callable[[Encoder], Encoder], same: bool) -> None:
    encoder = Encoder(tiny_backbone, Preprocess(32), shared(1))
    before = encoder.prefix_digest()
    assert (change(encoder).prefix_digest() == before) is same


def test_prefix_digest_knows_the_split(tiny_weights: Path) -> None:
    backbones = [
        build(BackboneSpec("test_vit", 32, split, Preprocess(32)), read_weights(tiny_weights)) for split in (2, 3)
    ]
    assert len({Encoder(backbone, Preprocess(32)).prefix_digest() for backbone in backbones}) == 2


def test_views_are_encoded_once(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """A second run reads features and tokens back; with a picture changed, or too little room, it encodes again."""
    root = write_looks(tmp_path / "pictures", {"a": 0, "b": 4}, 3)
    told: list[int] = []

    def encode(room: int = 1 << 20) -> tuple[list[np.ndarray], int]:
        told.clear()
        source = Source(decode(read_folder(root).pictures, Preprocess(32), copies=True), Preprocess(32), 0, (0.4, 1.0))
        cache = TokenCache(tmp_path / "tokens", room)
        encoder = Encoder(tiny_backbone, Preprocess(32), shared(1))
        run = ViewEncoder(
            encoder, Checkpoint(tmp_path / "work", {}), cache, lambda stage, done, total: told.append(done)
        )
        result = run.base("train", source, 2, keep_tokens=True)
        rows = [tokens.rows(np.arange(6)).numpy() for tokens in result.tokens]
        return [result.features, result.last, *rows], len(result.tokens)

    first, kept = encode()
    assert (told, kept) == ([1, 2, 3], 3)
    again, _ = encode()
    assert told == []
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    picture(7, 99).save(root / "a" / "000.png")
    changed, _ = encode()
    assert told == [1, 2, 3]
    assert not np.array_equal(changed[2], first[2])
    assert encode(room=2 * (6 * 5 * 64 * 2 + DIGEST))[1] == 2
    assert encode(room=1)[1] == 1


def test_pictures_to_learn_from_alone_are_reduced(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Hold-out pictures keep every bit; a view in bfloat16 has its 8 bits, and is not taken for one in full."""
    pictures = read_folder(write_looks(tmp_path / "pictures", {"a": 0, "b": 4}, 3)).pictures
    cache, encoder = TokenCache(tmp_path / "tokens", 1 << 20), Encoder(tiny_backbone, Preprocess(32), shared(1))

    def encode(reduced: bool, *, learn: bool) -> Encoded:
        run = ViewEncoder(encoder, Checkpoint(tmp_path / str((reduced, learn)), {}), cache, lambda *told: None, reduced)
        source = Source(decode(pictures, Preprocess(32), copies=learn), Preprocess(32), 0, (0.4, 1.0))
        return run.base("some", source, int(learn), keep_tokens=True)

    full, reduced = encode(False, learn=True), encode(True, learn=True)
    for view in (0, 1):
        error = np.abs(reduced.features[view] - full.features[view])
        assert 1e-5 < error.max() < 0.03 * np.abs(full.features).max()
        rows = [encoded.tokens[view].rows(np.arange(6)) for encoded in (full, reduced)]
        assert not torch.equal(*rows)
    held = encode(True, learn=False)
    np.testing.assert_array_equal(held.features[0], full.features[0])
    assert torch.equal(held.tokens[0].rows(np.arange(6)), full.tokens[0].rows(np.arange(6)))
    assert not tiny_backbone._reduced
