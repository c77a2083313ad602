"""The option ``device``: what is refused, and that it is no part of what a result is."""

from pathlib import Path

import pytest
import torch

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.numerics.devices import device_of
from medcm_cli.study.identity import difference, identity
from medcm_cli.study.job import Job
from medcm_cli.study.options import complete
from medcm_cli.study.workers import process_count
from tests.helpers import configuration

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_but_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"^device={name}: torch .* finds no such device here; it finds cpu$"
    ):
        Job.build(configuration(data, tmp_path, f"device={name}"))
    assert not list(tmp_path.iterdir())


def test_auto_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("auto") == device_of("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("device=gpu",), "device"),
        (("device=1",), "device"),
        (("device=mps", "dtype=float64"), "dtype=float64: device=mps has no such numbers"),
    ],
)
def test_what_is_no_device_is_refused_before_anything(options: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        complete(configuration(None, Path("outputs"), *options))


@pytest.mark.parametrize(
    "options",
    [
        ("pk=two_compartment_ode", "network=none"),
        ("dataset.over_time={weight: record, vwf: record}",),
    ],
)
def test_mps_takes_no_model_that_needs_float64(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    path = tmp_path / "events.csv"
    rows = ["1,0,1,2000,,70,100", "1,5,0,,0.9,71,100", "1,24,0,,0.2,72,100"]
    path.write_text("\n".join(["id,time,evid,amt,dv,wt,vwf", *rows]))
    given = ("dataset=table", "split=all", "dataset.truth=null", "device=mps")
    rule = ("dataset.over_time={weight: first, vwf: first}",)
    with pytest.raises(InputError, match=r"^device=mps has no float64"):
        Job.build(configuration(path, tmp_path / "outputs", *given, *rule, *options))


def test_it_is_no_part_of_a_result(data: Path, tmp_path: Path) -> None:
    here, there = (configuration(data, tmp_path, *o) for o in ((), ("device=auto",)))
    assert identity(here) == identity(there)
    assert difference(here, there) == ""
    job = Job.build(there)
    (record,) = job.plan().records.values()
    assert "device" not in record.config
    (before,) = Job.build(here).plan().records.values()
    assert record == before
    (finished,) = job.run([record])
    assert set(finished.batch) == {"fits", "seconds"}  # of another device than the CPU, its name too
    assert Job.build(here).plan().done == ((1, 1),)
    assert runs.config_hash(identity(here), {}) == runs.config_hash(identity(there), {})


def test_a_device_is_for_one_process() -> None:
    assert process_count("auto", 400, torch.device("cuda")) == 1
    assert process_count(2, 400, torch.device("cuda")) == 2
