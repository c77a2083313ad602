"""The large study of the benchmark, with few subjects: what it trains, not how fast."""

from medcm_cli.commands import speed
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
