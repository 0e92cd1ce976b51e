"""The split into pictures to learn from and pictures held out."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.pictures import (
    Picture,
    split_hold_out,
)

pictures_of_classes = st.dictionaries(
    st.sampled_from("abcd"), st.sets(st.integers(0, 2**32), min_size=1, max_size=40), min_size=1
).map(
    lambda classes: [
        Picture(Path(f"{label}/{n}.jpg"), label, f"{n:064x}", (8, 8)) for label, ns in classes.items() for n in ns
    ]
)
fractions = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("n", "fraction", "held"),
    [
        (1, 0.1, 0),
        (2, 0.1, 0),
        (3, 0.1, 0),
        (4, 0.1, 1),
        (14, 0.1, 1),
        (16, 0.1, 2),
        (100, 0.1, 10),
        (2, 0.9, 1),
        (1, 0.9, 0),
        (10, 0.99, 9),
        (10, 0.0, 0),
    ],
)
def test_hold_out_takes_the_lowest_hashes(n: int, fraction: float, held: int) -> None:
    ordered = [Picture(Path(f"{n - i}.jpg"), "a", f"{i:064x}", (8, 8)) for i in range(n)]
    assert split_hold_out(ordered[::-1], fraction=fraction) == (ordered[held:], ordered[:held])


@pytest.mark.parametrize(
    ("before", "n", "held"),
    [(0, 3, 0), (1, 2, 0), (3, 1, 1), (3, 3, 1), (4, 3, 0), (8, 10, 1), (14, 1, 1), (30, 30, 3), (40, 5, 0)],
)
def test_pictures_learned_before_count(before: int, n: int, held: int) -> None:
    pictures = [Picture(Path(f"{i}.jpg"), label, f"{i:064x}", (8, 8)) for i in range(n) for label in "ab"]
    _, hold_out = split_hold_out(pictures, learned={"b": before})
    assert [p for p in hold_out if p.label == "b"] == [p for p in pictures if p.label == "b"][:held]
    assert [p for p in hold_out if p.label == "a"] == split_hold_out(pictures[::2])[1]


@given(st.lists(st.integers(1, 9), min_size=1), fractions)
def test_a_class_that_grows_holds_out_as_many_as_one_that_comes_at_once(steps: list[int], fraction: float) -> None:
    def held(n: int, learned: int) -> int:
        pictures = [Picture(Path(f"{i}.jpg"), "a", f"{i:064x}", (8, 8)) for i in range(n)]
        return len(split_hold_out(pictures, fraction=fraction, learned={"a": learned})[1])

    grown = sum(held(n, sum(steps[:i])) for i, n in enumerate(steps))
    assert grown == held(sum(steps), 0)


@given(pictures_of_classes, fractions, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_order_or_names(
    pictures: list[Picture], fraction: float, shuffle: random.Random
) -> None:
    expected = split_hold_out(pictures, fraction=fraction)
    shuffled = shuffle.sample(pictures, len(pictures))
    assert split_hold_out(shuffled, fraction=fraction) == expected
    renamed = [Picture(Path(f"{shuffle.random()}"), p.label, p.sha256, p.size) for p in pictures]
    for part, named in zip(split_hold_out(renamed, fraction=fraction), expected, strict=True):
        assert [(p.label, p.sha256) for p in part] == [(p.label, p.sha256) for p in named]


@given(pictures_of_classes, fractions)
def test_split_loses_nothing_and_empties_no_class(pictures: list[Picture], fraction: float) -> None:
    train, hold_out = split_hold_out(pictures, fraction=fraction)
    assert sorted([*train, *hold_out], key=str) == sorted(pictures, key=str)
    assert {p.label for p in train} == {p.label for p in pictures}


@given(pictures_of_classes, fractions)
def test_split_of_a_class_does_not_depend_on_the_others(pictures: list[Picture], fraction: float) -> None:
    _, together = split_hold_out(pictures, fraction=fraction)
    for label in {p.label for p in pictures}:
        _, alone = split_hold_out([p for p in pictures if p.label == label], fraction=fraction)
        assert alone == [p for p in together if p.label == label]


@given(pictures_of_classes, fractions, st.integers(2**32 + 1, 2**33) | st.integers(0, 2**32))
def test_a_new_picture_moves_at_most_one_other(pictures: list[Picture], fraction: float, n: int) -> None:
    new = Picture(Path("new.jpg"), "a", f"{n:064x}", (8, 8))
    before = set(split_hold_out(pictures, fraction=fraction)[1])
    after = set(split_hold_out([*pictures, new], fraction=fraction)[1])
    assert len((before ^ after) - {new}) <= 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction is"):
        split_hold_out([], fraction=fraction)
