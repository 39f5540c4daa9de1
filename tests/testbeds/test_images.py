"""What is drawn: in range, the same again, and different between splits."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from weightsmith.testbeds.data import images, tasks
from weightsmith.testbeds.data.tasks import SPLITS, Handwriting, read_items, write_items
from weightsmith.testbeds.families import vision

TASKS = {
    task.name: task for task in (tasks.shapes(), tasks.gratings(), tasks.dots(), Handwriting())
}


@pytest.fixture(params=sorted(TASKS))
def task(request):
    return TASKS[request.param]


def test_images_are_standardised_and_every_class_occurs(task):
    pixels, labels = task.images("train", 120, seed=0)
    assert pixels.shape == (120, 24, 24)
    assert pixels.dtype == np.float32
    assert np.abs(pixels.mean((1, 2))).max() < 1e-5
    assert np.abs(pixels.std((1, 2)) - 1).max() < 1e-5
    assert set(labels.tolist()) == set(range(len(task.classes)))


def test_the_same_seed_draws_the_same_images(task):
    first, second = (task.images("test", 30, seed=0)[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert task.images("test", 30, seed=1)[0].tobytes() != first.tobytes()


def test_no_image_is_in_two_splits(task):
    seen = {}
    for split in SPLITS:
        for image in task.images(split, 200, seed=0)[0]:
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            assert seen.setdefault(digest, split) == split


def test_every_handwritten_digit_is_in_one_split():
    ranges = sorted(tasks._HANDWRITTEN.values())
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(images.handwritten()[1]) == 1797
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(ranges))


def test_the_test_shows_each_handwritten_digit_once():
    pixels, labels = Handwriting().images("test", 5000, seed=0)
    first, end = tasks._HANDWRITTEN["test"]
    assert len(pixels) == end - first
    counted = np.bincount(images.handwritten()[1][first:end])
    assert np.bincount(labels).tolist() == counted.tolist()


def test_dots_can_be_counted():
    generator = np.random.default_rng(0)
    for kind in range(images.MOST_DOTS):
        image = images.draw_dots(generator, kind)
        bright = image > (image.max() + image.min()) / 2
        assert islands(bright) == kind + 1


def islands(mask):
    """Number of connected regions, by flooding."""
    mask, count = mask.copy(), 0
    while mask.any():
        count += 1
        pending = [tuple(np.argwhere(mask)[0])]
        while pending:
            y, x = pending.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]:
                mask[y, x] = False
                pending += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return count


def test_a_grating_varies_along_its_direction():
    generator = np.random.default_rng(0)
    across = sum(
        np.abs(np.diff(images.draw_grating(generator, 0), axis=1)).sum() for _ in range(20)
    )
    down = sum(np.abs(np.diff(images.draw_grating(generator, 0), axis=0)).sum() for _ in range(20))
    assert across > 1.5 * down


def test_an_even_image_is_standardised_to_zeros():
    assert not images.standardise(np.full((1, 24, 24), 0.3, np.float32)).any()


def test_items_are_stored_as_the_model_takes_them_in_equal_bytes(tmp_path):
    pixels, labels = TASKS["shapes"].images("train", 20, seed=0)
    for name in "ab":
        write_items(tmp_path / f"{name}.npz", pixels, labels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    stored, found = read_items(tmp_path / "a.npz")
    assert np.array_equal(found, labels)
    assert np.abs(stored - pixels).max() < 2e-3
    with np.load(tmp_path / "a.npz") as raw:
        assert raw["inputs"].shape == (20, 1, 24, 24)


def test_typefaces_are_in_one_split_each():
    faces = [(face, split) for split, faces in vision._TYPEFACES.items() for face in faces]
    for one, other in itertools.combinations(faces, 2):
        if one[1] != other[1] and one[0].source == other[0].source:
            prefixes = one[0].prefix, other[0].prefix
            assert not prefixes[0].startswith(prefixes[1])
            assert not prefixes[1].startswith(prefixes[0])
