"""Random numbers of a fit depend on its own name and on nothing that shares its batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.numerics import streams
from medcm_cli.numerics.streams import Noise, Stream, per_fit

F64 = torch.float64
BASE = Stream(seed=7, fold=2, replicate=3)
BATCH = [Stream(7, fold, replicate) for fold in (1, 2, 3) for replicate in (1, 2)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, F64])


def numbers(stream: Stream, purpose: str = "network") -> np.ndarray:
    return stream.generator(purpose).standard_normal(50)


def epochs(noise: Noise, count: int) -> Tensor:
    return torch.stack([noise.draw() for _ in range(count)])


# -- streams ---------------------------------------------------------------------------------------


def test_a_stream_gives_the_same_numbers_each_time() -> None:
    first = numbers(BASE)
    numbers(BASE, "other")
    np.random.default_rng(1).random()
    torch.randn(3)
    np.testing.assert_array_equal(numbers(Stream(7, 2, 3)), first)


@pytest.mark.parametrize(
    ("other", "purpose"),
    [
        (replace(BASE, seed=8), "network"),
        (replace(BASE, fold=3), "network"),
        (replace(BASE, replicate=4), "network"),
        (replace(BASE, attempt=1), "network"),
        (Stream(7, 2, 3, 3), "network"),
        (Stream(7, 3, 2), "network"),
        (Stream(2, 7, 3), "network"),
        (BASE, "noise"),
        (BASE, "network "),
    ],
    ids=[
        "seed",
        "fold",
        "replicate",
        "attempt",
        "attempt like the replicate",
        "fold and replicate change places",
        "seed and fold",
        "purpose",
        "space",
    ],
)
def test_every_part_of_its_name_changes_a_stream(other: Stream, purpose: str) -> None:
    assert not np.isin(numbers(BASE), numbers(other, purpose)).any()


def test_streams_of_a_study_are_independent_standard_normals() -> None:
    drawn = np.stack(
        [
            Stream(0, fold, replicate).generator("noise").standard_normal(200)
            for fold in range(1, 21)
            for replicate in range(1, 6)
        ]
    )
    assert stats.kstest(drawn.ravel(), stats.norm.cdf).pvalue > 1e-3
    correlation = np.corrcoef(drawn) - np.eye(100)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(200)  # 4950 pairs


@DTYPES
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_per_fit_puts_the_fits_last(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    drawn = per_fit(BATCH, lambda g: g.standard_normal(shape), "x", dtype)
    assert drawn.shape == (*shape, len(BATCH))
    assert drawn.dtype == dtype
    for fit, stream in enumerate(BATCH):
        expected = torch.as_tensor(stream.generator("x").standard_normal(shape), dtype=dtype)
        assert torch.equal(drawn[..., fit], expected)
        alone = per_fit([stream], lambda g: g.standard_normal(shape), "x", dtype)
        assert torch.equal(drawn[..., fit : fit + 1], alone)


def test_streams_of_a_first_attempt_are_those_of_earlier_versions() -> None:
    """Numbers that fits on disk began with."""
    drawn = Stream(0, 1, 1).generator("noise").standard_normal(3)
    np.testing.assert_allclose(drawn, [-0.9736729740460316, -1.8527063087080606, -0.3720635441585137])


# -- noise -----------------------------------------------------------------------------------------


@DTYPES
def test_noise_does_not_depend_on_the_other_fits(dtype: torch.dtype) -> None:
    shape, counts = (3, 2, 5), [5, 3, 4, 5, 1, 2]
    together = epochs(Noise(BATCH, shape, counts, dtype), 60)
    assert together.shape == (60, *shape, len(BATCH))
    assert together.dtype == dtype
    for fit, (stream, count) in enumerate(zip(BATCH, counts, strict=True)):
        alone = epochs(Noise([stream], shape, [count], dtype), 60)
        assert torch.equal(together[..., fit], alone[..., 0])
    order = [4, 0, 5, 2, 1, 3]
    shuffled = Noise([BATCH[fit] for fit in order], shape, [counts[fit] for fit in order], dtype)
    assert torch.equal(epochs(shuffled, 60), together[..., order])


@DTYPES
def test_noise_does_not_depend_on_padding(dtype: torch.dtype) -> None:
    """The same fit of 4 subjects, in a batch of its own size and in one padded to 9."""
    tight = epochs(Noise([BASE], (3, 2, 4), [4], dtype), 30)
    padded = epochs(Noise([BASE], (3, 2, 9), [4], dtype), 30)
    assert torch.equal(padded[..., :4, :], tight)
    assert not padded[..., 4:, :].any()
    assert tight.all()


@DTYPES
@pytest.mark.parametrize("block", [1, 7, 400])
def test_noise_does_not_depend_on_the_length_of_a_block(
    monkeypatch: pytest.MonkeyPatch, block: int, dtype: torch.dtype
) -> None:
    shape, counts = (3, 5), [5, 4, 3, 2, 1, 5]
    expected = epochs(Noise(BATCH, shape, counts, dtype), 60)
    monkeypatch.setattr(streams, "_BLOCK", block)
    assert torch.equal(epochs(Noise(BATCH, shape, counts, dtype), 60), expected)


@DTYPES
def test_noise_is_standard_normal_and_new_in_every_epoch(dtype: torch.dtype) -> None:
    drawn = epochs(Noise(BATCH, (10, 20), [20] * 6, dtype), 100).double()
    assert stats.kstest(drawn.numpy().ravel(), stats.norm.cdf).pvalue > 1e-3
    assert len(torch.unique(drawn[..., 0])) > 0.99 * drawn[..., 0].numel()
    rows = drawn.movedim(-1, 0).reshape(6, -1).numpy()
    assert np.abs(np.corrcoef(rows) - np.eye(6)).max() < 4.5 / np.sqrt(rows.shape[1])
    lagged = np.corrcoef(drawn[:-1].numpy().ravel(), drawn[1:].numpy().ravel())[0, 1]
    assert abs(lagged) < 4.5 / np.sqrt(drawn[1:].numel())


def test_noise_needs_a_count_for_every_fit() -> None:
    with pytest.raises(ValueError, match="zip"):
        Noise(BATCH, (3, 5), [5, 5], F64).draw()


def test_noise_for_another_device_is_the_same() -> None:
    streams, counts = [Stream(0, 1, replicate) for replicate in range(1, 6)], [4, 2, 4, 1, 3]
    here = Noise(streams, (2, 3, 4), counts, torch.float32)
    # Another device to those who compare, and the CPU all the same.
    there = Noise(streams, (2, 3, 4), counts, torch.float32, device=torch.device("cpu:0"))
    for _ in range(60):
        assert torch.equal(here.draw(), there.draw())
    there.move_to(here.position())
    assert torch.equal(here.draw(), there.draw())
