"""The large study of the benchmark, with few subjects, and its ragged records: what is trained, not how
fast."""

import torch

from medcm_cli.commands import speed
from medcm_cli.pk.ragged import Ragged
from tests.helpers import schedule_of


def test_an_epoch_of_the_large_study_is_measured() -> None:
    population = speed._large_population(7)
    assert population.shape == (speed.LARGE_OBSERVATIONS, 7, 1)
    assert schedule_of(population).amount.shape[0] == speed.LARGE_DOSES
    for batch_subjects in (None, 3):
        seconds, peak, threads = speed._large_epoch(7, batch_subjects, 2)
        assert seconds > 0
        assert 0.01 < peak < 24  # GiB
        assert threads >= 1


def test_ragged_records_are_the_same_records_grouped_and_padded() -> None:
    grouped, padded = (speed._ragged(how) for how in (True, False))
    assert isinstance(grouped.schedule, Ragged)
    assert schedule_of(padded).amount.shape[0] == speed.LONG_DOSES
    assert torch.equal(grouped.dv, padded.dv)
    assert speed._train_alone(grouped, 1) > 0
