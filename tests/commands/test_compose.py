"""Jobs that Hydra composes: all are checked before one runs, and one that fails costs itself alone."""

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from medcm_cli.commands import fit as fit_command
from medcm_cli.commands.compose import RECORD, Steps, Use, checked_flags, run
from medcm_cli.errors import InputError, JobError

FAULTS: dict[int, tuple[Exception, str]] = {
    2: (InputError("data.csv, row 3: a fault"), "data.csv, row 3: a fault"),
    3: (OSError(28, "No space left on device", "run.json"), "run.json: No space left on device"),
    4: (JobError("a training process was killed"), "a training process was killed"),
    5: (MemoryError(), "there is not memory enough; batch.fits=N trains fewer fits at once"),
    6: (KeyError("x"), "internal error, KeyError: 'x'; MEDCM_TRACEBACK=1 shows where"),
}


class Forked(Launcher):
    """A process of its own for each job, from which what the job returns is all that comes back."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        fork = multiprocessing.get_context("fork")
        returned = []
        for number, overrides in enumerate(job_overrides):
            ours, theirs = fork.Pipe()
            process = fork.Process(target=self._work, args=(initial_job_idx + number, overrides, theirs))
            process.start()
            returned.append(pickle.loads(ours.recv_bytes()))
            process.join()
        return returned

    def _work(self, number: int, overrides: Sequence[str], connection: Connection) -> None:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        returned = run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        connection.send_bytes(pickle.dumps(returned))
        os._exit(0)


CONFIGURATION = """
defaults: [override hydra/job_logging: none, override hydra/hydra_logging: none, _self_]
seed: 1
hydra: {output_subdir: null, run: {dir: .}, sweep: {dir: sweep, subdir: .}}
"""


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that is composed at once, in the folder where all is done."""
    (tmp_path / "small.yaml").write_text(CONFIGURATION)
    (tmp_path / "swept.yaml").write_text(CONFIGURATION.replace("hydra: {", f"hydra: {{{SWEEP}, "))
    monkeypatch.chdir(tmp_path)


SWEEP = "mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}"


def fit(
    job: Callable[[DictConfig], Any],
    *arguments: str,
    check: Use = lambda _: None,
    name: str = "small",
    together: Callable[[Sequence[Any]], Iterator[tuple[int, Exception]]] = lambda _: iter(()),
) -> None:
    run("fit", "config", ["-cd", ".", "-cn", name, *arguments], Steps(check, job, together=together))


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> str:
    """The override that chooses ``Forked``; Hydra takes launchers from such a package only."""
    package, module = ModuleType("hydra_plugins"), ModuleType("hydra_plugins.forked")
    monkeypatch.setattr(Forked, "__module__", module.__name__)
    vars(package)["forked"], vars(module)["Forked"] = module, Forked
    for one in (package, module):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    Plugins.instance().register(Forked)
    return "hydra.launcher._target_=hydra_plugins.forked.Forked"


def job(config: DictConfig) -> None:
    """Fails as its seed says, or leaves a file."""
    if config.seed in FAULTS:
        raise FAULTS[config.seed][0]
    Path(f"done{config.seed}").touch()


def done() -> list[str]:
    return sorted(path.name for path in Path().glob("done*"))


def listed(said: str, seeds: Sequence[int]) -> None:
    lines = [f"seed={seed}: {FAULTS[seed][1]}" for seed in seeds]
    assert said.splitlines() == [*(f"medcm: {x}" for x in lines), "failed:", *(f"  {x}" for x in lines)]


def test_jobs_that_fail_let_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError, match=r"^5 of 7 jobs of the multirun failed$"):
        fit(job, "-m", "seed=1,2,3,4,5,6,7")
    assert done() == ["done1", "done7"]
    listed(capfd.readouterr().err, [2, 3, 4, 5, 6])


def test_what_jobs_leave_is_done_together(capfd: pytest.CaptureFixture[str]) -> None:
    """After all that need not wait; a fault there is told like any other, with the options of its own job."""
    seen = []

    def leave(config: DictConfig) -> int | None:
        job(config)
        return None if config.seed == 1 else int(config.seed)

    def together(left: Sequence[int]) -> Iterator[tuple[int, Exception]]:
        assert {"done1", "done9"} <= set(done())
        seen.append(list(left))
        yield 1, FAULTS[4][0]

    with pytest.raises(JobError, match=r"^2 of 5 jobs of the multirun failed$"):
        fit(leave, "-m", "seed=7,2,1,8,9", together=together)
    assert seen == [[7, 8, 9]]
    lines = [f"seed=2: {FAULTS[2][1]}", f"seed=8: {FAULTS[4][1]}"]
    said = capfd.readouterr().err.splitlines()
    assert said == [*(f"medcm: {x}" for x in lines), "failed:", *(f"  {x}" for x in lines)]


def test_what_the_only_job_leaves_is_done(capfd: pytest.CaptureFixture[str]) -> None:
    def together(left: Sequence[int]) -> Iterator[tuple[int, Exception]]:
        assert list(left) == [1]
        yield 0, FAULTS[4][0]

    with pytest.raises(JobError, match=f"^{FAULTS[4][1]}$"):
        fit(lambda config: int(config.seed), together=together)
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:.*fork")
def test_so_do_those_of_a_launcher_with_processes(capfd: pytest.CaptureFixture[str], launcher: str) -> None:
    with pytest.raises(JobError, match=r"^2 of 3 jobs of the multirun failed$"):
        fit(job, "-m", "seed=3,1,6", launcher)
    assert done() == ["done1"]
    listed(capfd.readouterr().err, [3, 6])


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["alone", "in a multirun"])
def test_jobs_are_checked_before_the_first_runs(flags: list[str]) -> None:
    def check(config: DictConfig) -> None:
        if config.seed == 8:
            raise InputError("seed is 8; expected another")

    with pytest.raises(InputError, match=r"^seed is 8; expected another$"):
        fit(job, *flags, "seed=1,8" if flags else "seed=8", check=check)
    assert done() == []


@pytest.mark.parametrize("seed", FAULTS)
def test_the_fault_of_the_only_job_is_that_of_the_command(
    capfd: pytest.CaptureFixture[str], seed: int
) -> None:
    with pytest.raises(type(FAULTS[seed][0])) as caught:
        fit(job, f"seed={seed}")
    assert str(caught.value) == str(FAULTS[seed][0])
    assert capfd.readouterr() == ("", "")


def test_a_sweep_of_a_file_names_its_jobs(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError, match=r"^1 of 2 jobs"):
        fit(job, name="swept")
    assert done() == ["done1"]
    assert capfd.readouterr().err.splitlines()[-1] == f"  seed=2: {FAULTS[2][1]}"


def test_what_hydra_cannot_write_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omegaconf.OmegaConf.save", full)
    with pytest.raises(OSError, match=r"No space left on device: 'multirun\.yaml'"):
        fit(job, "-m", "seed=1")


@pytest.mark.parametrize("before", [None, "of a multirun before"])
def test_a_refused_multirun_leaves_nothing_behind(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path / "empty"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["medcm"])
    if before is not None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / RECORD).write_text(before)
    with pytest.raises(InputError, match="study"):
        fit_command.command(["-m", "study=../x", "objective=mse,fo"])
    found = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*")}
    if before is None:
        assert not found
    else:
        assert sorted(found) == ["x", f"x/{RECORD}"]
        assert found[f"x/{RECORD}"].read_text() == before


def test_flags_may_stand_between_options(tmp_path: Path) -> None:
    flags = checked_flags("fit", "config", ["-m", "seed=1", "-cd", str(tmp_path), "objective=mse,fo"])
    assert (flags.overrides, flags.config_dir, flags.multirun) == (
        ["seed=1", "objective=mse,fo"],
        str(tmp_path),
        True,
    )
