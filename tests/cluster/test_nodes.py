"""Real clusters of two nodes on this machine, of which one is killed in the middle of 400 fits: nothing is
lost, and the numbers are those of a run without a launcher."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from medcm_cli.haemophilia.virtual import Settings, write_study
from tests.commands.program import ENVIRONMENT, statuses
from tests.commands.test_interruption import same_fits, wait_for
from tests.helpers import ROOT, ran

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
FITS = ("objective=mse,fo", "fold=range(1,21)", "replicate=range(1,11)", "batch.fits=50")
SHORT = ("epochs=200", "checkpoint_every=50", "dataset.path=data", "batch.processes=1")
LIMIT = 1200  # s
PATHS = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and the fits without a launcher."""
    folder = tmp_path_factory.mktemp("nodes")
    write_study(folder / "data", Settings(n=60, folds=20, fold_size=8))
    done = ran(command("study=alone"), folder, PATHS, LIMIT)
    assert done.returncode == 0, done.stderr
    return folder


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "medcm_cli", "fit", "-m", *FITS, *SHORT, *options]


Cluster = tuple[dict[str, str], tuple[str, ...], Callable[[], None]]
"""Environment and options of a command for it, and what kills its second node."""


@contextmanager
def slurm() -> Iterator[Cluster]:
    absent = [name for name in ("slurmctld", "slurmd", "munged", "srun") if shutil.which(name) is None]
    if absent or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip(f"needs root, and Debian's slurm-wlm and munge (absent: {', '.join(absent) or 'none'})")
    folder = tempfile.mkdtemp(dir="/tmp")  # paths of sockets are short

    def script(*arguments: str) -> None:
        subprocess.run(["bash", HERE / "slurm.sh", arguments[0], folder, *arguments[1:]], check=True)

    try:
        script("start")
        options = ("hydra/launcher=submitit_slurm",)
        yield {"SLURM_CONF": f"{folder}/slurm.conf"}, options, lambda: script("kill", "two")
    finally:
        script("stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray() -> Iterator[Cluster]:
    with subprocess.Popen(
        [sys.executable, HERE / "ray_nodes.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=PATHS,
        text=True,
    ) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        address = nodes.stdout.readline().strip()
        assert address

        def kill() -> None:
            assert nodes.stdin is not None
            assert nodes.stdout is not None
            print("kill", file=nodes.stdin, flush=True)
            assert nodes.stdout.readline() == "killed\n"

        yield {}, ("hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"), kill
        nodes.stdin.close()


@pytest.mark.parametrize(("cluster", "plugin"), [(slurm, "submitit"), (ray, "ray")])
def test_a_node_that_is_lost_costs_nothing(
    alone: Path, cluster: Callable[[], AbstractContextManager[Cluster]], plugin: str
) -> None:
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip("needs the extra `cluster`")
    study = alone / "outputs" / plugin
    with cluster() as (environment, options, kill), (alone / f"{plugin}.log").open("w") as log:
        words = command(f"study={plugin}", *options)
        running = subprocess.Popen(words, cwd=alone, env=PATHS | environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: "complete" in statuses(study).values(), "no job has finished", LIMIT)
            wait_for(lambda: len(list(study.rglob(".running-*"))) == 2, "no two jobs at once", LIMIT)
            kill()
            assert list(statuses(study).values()).count("complete") < 400
            assert running.wait(LIMIT) == 0, (alone / f"{plugin}.log").read_text()
        finally:
            running.kill()
    said = (alone / f"{plugin}.log").read_text().splitlines()
    last = f"outputs/{plugin}, 400 fits: 400 complete, 0 failed, 0 in training, 0 left"
    assert last in said
    same_fits(alone / "outputs" / "alone", study, exactly=True)
    assert not list(study.rglob(".running-*"))
    assert not list(study.rglob(".training-*"))
