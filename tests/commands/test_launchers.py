"""Jobs that a launcher spreads: the cores they have, where they work, and what is said of those it lost."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medcm_cli.commands import fit
from medcm_cli.commands.launchers import cores_of, go_home, launched, lost, not_installed
from medcm_cli.errors import InputError, JobError
from medcm_cli.runs.planned import planned
from medcm_cli.study.options import conf_dir

PRESETS = sorted(path.stem for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml"))


def hydra_of(*overrides: str) -> DictConfig:
    """Hydra's part of a configuration."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        whole = compose("config", ["hydra.job.name=fit", *overrides], return_hydra_config=True)
    composed: Any = whole.hydra
    return OmegaConf.create({"mode": "RunMode.MULTIRUN", "launcher": composed.launcher})


@pytest.mark.parametrize(
    ("overrides", "cores"),
    [
        ("hydra/launcher=basic", None),
        ("hydra/launcher=joblib", 1),
        ("hydra/launcher=submitit_local", 1),
        ("hydra/launcher=submitit_slurm hydra.launcher.cpus_per_task=4", 4),
        ("hydra/launcher=ray hydra.launcher.ray.remote.num_cpus=2", 2),
    ],
)
def test_the_cores_that_a_job_has(overrides: str, cores: int | None) -> None:
    hydra = hydra_of(*overrides.split())
    assert cores_of(hydra) == cores
    assert launched(hydra) == (cores is not None)
    hydra.mode = "RunMode.RUN"  # no multirun, and so no launcher
    assert cores_of(hydra) is None


def test_presets_are_those_of_the_manual() -> None:
    assert PRESETS == ["joblib", "ray", "submitit_local", "submitit_slurm"]


def test_a_job_works_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    go_home(OmegaConf.create({"runtime": {"cwd": str(tmp_path)}}))
    assert Path.cwd() == tmp_path
    with pytest.raises(InputError, match=r"absent: is not on .*share the folder"):
        go_home(OmegaConf.create({"runtime": {"cwd": str(tmp_path / "absent")}}))


@pytest.mark.parametrize("name", ["joblib", "submitit", "ray"])
def test_a_launcher_that_is_not_there_is_told_in_one_line(name: str) -> None:
    fault = f"Unknown plugin class : 'hydra_plugins.hydra_{name}_launcher.x.Y'"
    assert "'.[cluster]'" in not_installed(fault)
    assert not_installed("Unknown plugin class : 'hydra_plugins.mine.Y'") == ""


def test_what_a_launcher_says_of_jobs_it_lost_is_one_line() -> None:
    error = lost("a.b.SlurmLauncher", RuntimeError("---\nJob 3 has not produced any output\nlog\nlog"))
    assert isinstance(error, JobError)
    assert str(error).startswith("SlurmLauncher: Job 3 has not produced any output; what is finished is kept")
    assert "\n" not in str(error)


def test_a_multirun_is_planned_before_its_first_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["medcm"])
    seen: list[list[str]] = []

    def job(_: DictConfig) -> None:
        files = Path("outputs/default/planned").glob("*.json")
        seen.append(sorted("/".join(fit) for file in files for fit in planned(file)))

    monkeypatch.setattr(fit, "_job", job)
    fit.command(["-m", "objective=fo,vi", "fold=1,2", "epochs=7"])
    fits = [
        f"dataset=simulated/objective={objective}/error=additive/lr=0.1/variant=epochs-7/fold=0{n}/replicate=1"
        for objective in ("fo", "vi")
        for n in (1, 2)
    ]
    assert seen == [fits] * 2


def test_a_multirun_that_cannot_be_is_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["medcm"])
    with pytest.raises(InputError, match="epochs"):
        fit.command(["-m", "epochs=7,-1"])
    assert not list(tmp_path.rglob("*.json"))
