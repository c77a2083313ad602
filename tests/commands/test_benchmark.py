"""The large study of the benchmark, with few subjects: what it trains, not how fast."""

from medcm_cli.commands import benchmark


def test_an_epoch_of_the_large_study_is_measured() -> None:
    population = benchmark._large_population(7)
    assert population.shape == (benchmark.LARGE_OBSERVATIONS, 7, 1)
    assert population.schedule.amount.shape[0] == benchmark.LARGE_DOSES
    for batch_subjects in (None, 3):
        seconds, peak, threads = benchmark._large_epoch(7, batch_subjects, 2)
        assert seconds > 0
        assert 0.01 < peak < 24  # GiB
        assert threads >= 1
