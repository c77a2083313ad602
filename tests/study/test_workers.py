"""Batches on several processes: each fit once, the same result, and errors that come home."""

import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from medcm_cli import runs
from medcm_cli.errors import InputError, JobError
from medcm_cli.study.interrupted import interrupted, kept_of
from medcm_cli.study.job import Job
from medcm_cli.study.queue import Queue, Work
from medcm_cli.study.workers import Progress, Workers, batches, process_count, shares
from tests.helpers import configuration


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Training in this process sets torch's threads and denormals; the other tests keep theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def made(count: int) -> list[runs.Record]:
    address = runs.Address("s", "d", "vi", "additive", 0.1, "default", 1, 1)
    record = runs.Record("running", address, "", {}, {}, None, 0, {})
    return [replace(record, address=replace(address, replicate=number + 1)) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("most", [None, 1, 3, 7, 1000])
@pytest.mark.parametrize("processes", [1, 2, 5])
def test_batches_cover_each_fit_once_and_evenly(count: int, most: int | None, processes: int) -> None:
    records = made(count)
    parts = batches(records, most, processes)
    assert [record for part in parts for record in part] == records
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert len(parts) >= min(processes, count)
    assert most is None or max(sizes) <= most
    if processes == 1 and (most is None or most >= count):
        assert len(parts) == 1


@pytest.mark.parametrize(
    ("efforts", "processes", "expected"),
    [
        ([7.0], 1, [1]),
        ([7.0], 3, [3]),  # one job has all of them
        ([1.0, 2.0, 5.0, 2.0], 2, [2, 1, 1, 1]),  # 5 | 2 + 2, then half of 1 each
        ([1.0, 2.0, 5.0, 2.0], 4, [2, 1, 2, 1]),  # 2.5 each
        ([5.0, 1.0], 2, [2, 2]),
        ([1.0] * 40, 2, [1] * 40),
    ],
)
def test_jobs_are_cut_where_a_process_would_have_nothing_to_do(
    efforts: list[float], processes: int, expected: list[int]
) -> None:
    assert shares(efforts, processes) == expected


@pytest.mark.parametrize(("cores", "fits", "expected"), [(4, 1, 1), (4, 7, 1), (4, 400, 4), (1, 400, 1)])
def test_processes_chosen_by_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, fits: int, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert process_count("auto", fits) == expected


def test_processes_chosen_by_the_user() -> None:
    assert process_count(3, 1) == 3


@pytest.mark.parametrize("option", [0, -1, 1.5, True, None, "two", "AUTO", [1]])
def test_processes_that_make_no_sense(option: object) -> None:
    with pytest.raises(InputError, match=r"batch\.processes"):
        process_count(option, 100)


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1.5"])
def test_threads_that_make_no_sense(data: Path, tmp_path: Path, threads: str) -> None:
    def run() -> None:
        job = Job.build(configuration(data, tmp_path, "objective=mse", f"batch.threads={threads}"))
        with Workers() as workers:
            trained(workers, job, [list(job.plan().records.values())], 1)

    with pytest.raises(InputError, match=r"batch\.threads"):
        run()


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two processes that live from test to test, once one has started them."""
    with Workers() as started:
        yield started


def trained(
    workers: Workers,
    job: Job,
    parts: Sequence[Sequence[runs.Record]],
    processes: int,
    progress: Progress = lambda *_: None,
) -> list[runs.Record]:
    """The finished records of the only job; raises its error."""
    (ended,) = workers.run([Work(job.config, parts)], processes, progress)
    if ended.error is not None:
        raise ended.error
    return ended.finished


OPTIONS = ("objective=vi", "fold=[1,2]", "replicate=[1,2]")
FITS = [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.slow  # two processes that load torch; what they share is tested below
def test_two_processes_give_what_one_gives(workers: Workers, data: Path, tmp_path: Path) -> None:
    seen: dict[int, list[tuple[int, int]]] = {1: [], 2: []}
    finished = {}
    for processes in (1, 2):
        job = Job.build(configuration(data, tmp_path / str(processes), *OPTIONS))
        parts = batches(list(job.plan().records.values()), None, processes)
        report = seen[processes]
        records = trained(
            workers, job, parts, processes, lambda b, f, *_, to=report: to.append((b.number, f))
        )
        finished[processes] = sorted(records, key=lambda r: (r.address.fold, r.address.replicate))
        assert [(r.address.fold, r.address.replicate) for r in finished[processes]] == FITS
    assert set(seen[1]) == {(0, 4)}  # (batch, its fits)
    assert set(seen[2]) == {(0, 2), (1, 2)}
    assert len(multiprocessing.active_children()) == 2
    for one, two in zip(finished[1], finished[2], strict=True):
        assert one.status == two.status == "complete"
        assert one.config_hash == two.config_hash
        folders = one.address.folder(tmp_path / "1"), two.address.folder(tmp_path / "2")
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1]
        assert runs.read_record(folders[1]) == two
        for name in ("history", "parameters", "random_effects", "effects"):
            a, b = (pd.read_parquet(folder / f"{name}.parquet", partitioning=None) for folder in folders)
            pd.testing.assert_frame_equal(a, b, rtol=1e-4, atol=1e-6)


def test_nested_fits_of_a_synthetic_cohort_on_two_processes(workers: Workers, tmp_path: Path) -> None:
    """A process that builds its batch anew finds the same cohort, under the same name, and the same folds."""
    choices = ("dataset=prophylaxis", "network=real_data", "split=nested", "outer=[1,2]", "inner=[4,9]")
    job = Job.build(configuration(None, tmp_path, *choices, "objective=fo", "error=combined"))
    plan = job.plan()
    assert plan.todo == ((4, 1), (9, 1), (14, 1), (19, 1))
    records = trained(workers, job, batches(list(plan.records.values()), None, 2), 2)
    found = sorted((record.address.outer, record.address.inner) for record in records)
    assert found == [(1, 4), (1, 9), (2, 4), (2, 9)]
    assert {record.address.dataset for record in records} == {"synthetic_prophylaxis"}
    assert Job.build(job.config).plan().todo == ()


def without_data(data: Path, folder: Path) -> Job:
    """A job whose data vanish before a training process reads them."""
    moving = Path(shutil.copytree(data, folder / "moving"))
    job = Job.build(configuration(moving, folder, *OPTIONS))
    shutil.rmtree(moving)
    return job


def test_bad_input_in_a_process_comes_home(workers: Workers, data: Path, tmp_path: Path) -> None:
    job = without_data(data, tmp_path)
    with pytest.raises(InputError, match="moving") as caught:
        trained(workers, job, [list(job.plan().records.values())], 2)
    assert "\n" not in str(caught.value)


def test_jobs_share_processes_and_one_that_fails_costs_itself_alone(
    workers: Workers, data: Path, tmp_path: Path
) -> None:
    """What takes longest begins first; each job ends when its own batches have."""
    (tmp_path / "failing").mkdir()
    failing = without_data(data, tmp_path / "failing")
    jobs = [
        Job.build(configuration(data, tmp_path, *OPTIONS[1:], f"objective={name}"))
        for name in ("mse", "vi", "fo")
    ]
    works = [
        Work(job.config, batches(list(job.plan().records.values()), None, cut), effort)
        for job, cut, effort in zip([failing, *jobs], (2, 1, 2, 1), (1.0, 1.0, 4.0, 3.0), strict=True)
    ]
    begun: dict[tuple[int, int], None] = {}
    ended = list(workers.run(works, 2, lambda batch, *_: begun.setdefault((batch.job, batch.number))))
    assert sorted(end.number for end in ended) == [0, 1, 2, 3]
    of = {end.number: end for end in ended}
    assert isinstance(of[0].error, InputError)
    for number, job in enumerate(jobs, 1):
        assert of[number].error is None
        assert {record.address for record in of[number].finished} == {
            record.address for record in job.plan().records.values()
        }
        assert job.plan().todo == ()
    # 12 of job 3 before twice 8 of job 2, 4 of job 1 and what fails.
    assert [job for job, _ in sorted(begun, key=lambda key: key[1])][:2] == [3, 2]
    assert sorted(job for job, _ in begun) == [1, 2, 2, 3]


@pytest.mark.slow
def test_a_job_after_one_that_failed_gets_its_own_results(
    workers: Workers, data: Path, tmp_path: Path
) -> None:
    """What the other process still had to say about the failed job is not taken for the next one's."""
    with workers:  # leaving it ends the processes, whatever they have left to say
        failing = without_data(data, tmp_path)
        records = list(failing.plan().records.values())
        with pytest.raises(InputError, match="moving"):
            trained(workers, failing, batches(records, None, 2), 2)
        job = Job.build(configuration(data, tmp_path, *OPTIONS, "study=next"))
        records = list(job.plan().records.values())
        finished = trained(workers, job, batches(records, None, 2), 2)
    assert {record.address for record in finished} == {record.address for record in records}


def endless(data: Path, folder: Path, *options: str) -> tuple[Job, list[runs.Record]]:
    """A job that does not end, and its fits."""
    given = ("objective=mse", "fold=[1,2]", "epochs=100000", "checkpoint_every=10", *options)
    job = Job.build(configuration(data, folder, *given))
    return job, list(job.plan().records.values())


def kill(*_: object) -> None:
    for child in multiprocessing.active_children():
        child.kill()


@pytest.mark.slow
def test_a_process_that_dies_is_noticed(workers: Workers, data: Path, tmp_path: Path) -> None:
    job, records = endless(data, tmp_path, "replicate=[1,2]")
    with workers, pytest.raises(JobError) as caught:  # leaving it forgets the dead
        trained(workers, job, batches(records, None, 2), 2, kill)
    for part in ("killed by SIGKILL", "lack of memory", "0 of 4 fits", "batch.fits=1 "):
        assert part in str(caught.value)
    assert not multiprocessing.active_children()
    for record in records:
        found = runs.read_record(record.address.folder(tmp_path))
        assert found is None or found.status == "running"


@pytest.mark.slow
def test_a_process_that_dies_between_jobs_is_replaced(data: Path, tmp_path: Path) -> None:
    first, second = (Job.build(configuration(data, tmp_path, *OPTIONS, f"study={n}")) for n in ("a", "b"))
    with Workers() as workers:
        for job in (first, second):  # what is finished is not trained again
            records = list(job.plan().records.values())
            assert len(trained(workers, job, batches(records, None, 2), 2)) == len(records)
            kill()
            for child in multiprocessing.active_children():
                child.join()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_lack_of_memory_in_this_process_is_told_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lacking(*_: object) -> None:
        raise error

    job, records = endless(data, tmp_path, "replicate=[1,2,3]")
    monkeypatch.setattr(Job, "train", lacking)
    with Workers() as workers, pytest.raises(JobError) as caught:
        trained(workers, job, [records[:5], records[5:]], 1)
    for part in ("not memory enough", "0 of 6 fits", "batch.fits=3 "):
        assert part in str(caught.value)


def test_a_batch_goes_on_in_the_batch_that_it_was_in(data: Path, tmp_path: Path) -> None:
    """However the fits that remain would be divided now; of what is finished nothing stays behind."""
    options = ("objective=fo", "fold=[1,2]", "replicate=[1,2]", "epochs=60", "checkpoint_every=10")
    whole, cut = (Job.build(configuration(data, tmp_path / name, *options)) for name in ("whole", "cut"))
    order = (2, 0, 3)
    records = list(whole.plan().records.values())
    batch, other = [records[i] for i in order], [records[1]]
    for job in (whole, cut):
        job.run(other)
    whole.run(batch)

    def stop(epoch: int, _: torch.Tensor) -> None:
        if epoch == 30:
            raise KeyboardInterrupt

    root = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medcm_cli.training.kept._FIRST", 0.0)
        patch.setattr("medcm_cli.training.kept._SHARE", torch.inf)
        with pytest.raises(KeyboardInterrupt):
            cut.run(batch, stop)
    plan = cut.plan()
    remaining = [plan.records[fit] for fit in plan.todo]
    assert len(remaining) == 3
    assert interrupted(root, remaining, [], 2) == ([], remaining)  # to save memory
    (part,), rest = interrupted(root, remaining, [], None)
    assert rest == []
    assert [record.address for record in part] == [record.address for record in batch]
    seen: list[int] = []
    cut.run(part, lambda epoch, _: seen.append(epoch))
    assert seen == [30, 40, 50, 60]
    assert not list(root.rglob(".training-*"))
    for record in plan.records.values():
        for name in ("history", "parameters", "random_effects", "effects"):
            before, after = (
                pd.read_parquet(record.address.folder(folder) / f"{name}.parquet", partitioning=None)
                for folder in (tmp_path / "whole", root)
            )
            pd.testing.assert_frame_equal(before, after, rtol=0, atol=0, check_exact=True)


def test_a_batch_that_was_being_written_stays_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among fewer fits the others could come out otherwise, in the last digit; what is written stays."""
    options = ("objective=mse", "fold=[1,2]", "replicate=[1,2,3,4]", "epochs=40", "checkpoint_every=10")
    whole, cut = (Job.build(configuration(data, tmp_path / name, *options)) for name in ("whole", "cut"))
    records = list(whole.plan().records.values())
    whole.run(records)
    root, written, finish = tmp_path / "cut", list[runs.Record](), runs.finish

    def stop(*arguments: Any) -> runs.Record:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(finish(*arguments))
        return written[-1]

    monkeypatch.setattr("medcm_cli.runs.finish", stop)
    with pytest.raises(KeyboardInterrupt):
        cut.run(records)
    monkeypatch.undo()
    plan = cut.plan()
    left, done = ([plan.records[fit] for fit in fits] for fits in (plan.todo, plan.done))
    before = [(record.address.folder(root) / "run.json").read_bytes() for record in done]
    assert len(done) == 3
    parts, rest = interrupted(root, left, done, None)
    assert rest == []
    with Queue([Work(cut.config, parts)]) as queue:
        batch = queue.take(wait=False)
    assert batch is not None
    assert [record.address for record in batch.records] == [record.address for record in records]
    assert len(cut.run(batch.records, None, batch.left)) == 5
    assert before == [(record.address.folder(root) / "run.json").read_bytes() for record in done]
    for record in records:
        for name in ("history", "parameters", "effects"):
            ours, theirs = (
                pq.ParquetFile(record.address.folder(folder) / f"{name}.parquet").read()
                for folder in (tmp_path / "whole", root)
            )
            assert ours.equals(theirs)
    assert not list(root.rglob(".training-*"))


@pytest.mark.parametrize("option", ["learning_rate=0.2", "seed=1"])
def test_a_batch_of_another_configuration_is_not_gone_on_with(
    data: Path, tmp_path: Path, option: str
) -> None:
    job, records = endless(data, tmp_path)

    def stop(epoch: int, _: torch.Tensor) -> None:
        if epoch == 20:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medcm_cli.training.kept._FIRST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            job.run(records, stop)
    assert list(tmp_path.rglob(".training-*"))
    _, others = endless(data, tmp_path, option)
    assert interrupted(tmp_path, others, [], None) == ([], others)
    assert kept_of(tmp_path, others).read() is None
    assert kept_of(tmp_path, records).read() is not None
