"""Figures: the numbers behind them recomputed from the Parquet files, what every figure has to have, and
sweeps of which something is missing."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from medcm_cli import cli, runs
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.objectives import Fo, Foce, Mse, Vi
from medcm_cli.report.figures import style, training
from medcm_cli.report.figures.catalogue import figures
from medcm_cli.runs.bands import bands, effects
from medcm_cli.runs.sweeps import collect, typical_fit
from medcm_cli.study.job import Job
from tests.helpers import SMALL, configuration

OBJECTIVES = ("mse", "fo", "vi")
COLOURS = {"mse": "#CC79A7", "fo": "#D55E00", "foce": "#009E73", "vi": "#0072B2", "vi_1": "#56B4E9"}
QUANTILES = (0.025, 0.5, 0.975)
FAILED_AT = 5


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six fits by each of three objectives; one by fo failed, one by vi has not finished."""
    root = tmp_path_factory.mktemp("swept")
    write_study(root / "data", SMALL)
    for objective in OBJECTIVES:
        choices = (f"objective={objective}", "epochs=8", "tail=4", "fold=[1,2,3]", "replicate=[1,2]")
        job = Job.build(configuration(root / "data", root / "outputs", *choices))
        job.run(list(job.plan().records.values()))
    fits = sorted((root / "outputs").rglob("run.json"))
    one = next(path for path in fits if "objective=fo" in str(path))
    table = pyarrow.parquet.read_table(one.parent / "history.parquet")
    kept = table.filter(pyarrow.compute.less(table["epoch"], FAILED_AT))
    pyarrow.parquet.write_table(kept, one.parent / "history.parquet")
    failure = {"epoch": FAILED_AT, "cause": "objective is not finite"}
    change(one, status="failed", failure=failure, hashes={})
    change(next(path for path in fits if "objective=vi" in str(path)), status="running")
    return root / "outputs"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def drawn(swept: Path) -> dict[str, style.Drawn]:
    (sweep,) = collect([swept]).sweeps
    return {one.stem: one for one in figures(sweep, [], epochs=(2,))}


def histories(root: Path, objective: str) -> list[pd.DataFrame]:
    folders = [path.parent for path in root.rglob("run.json") if f"objective={objective}" in str(path)]
    finished = [f for f in folders if json.loads((f / "run.json").read_text())["status"] != "running"]
    return [pd.read_parquet(folder / "history.parquet") for folder in finished]


SHOWN = [
    ("epochs_objective", "objective_value", 1.0, "mse", 100.0**2),
    ("epochs_objective", "objective_value", 1.0, "fo", 1.0),
    ("epochs_rmse", "rmse", 1.0, "mse", 1.0),
    ("epochs_kl", "kl", 1.0, "vi", 1.0),
    ("epochs_omega", "omega_2", 1.0, "fo", 1.0),
    ("epochs_rho", "rho_21", 1.0, "vi", 1.0),
    ("epochs_sigma", "sigma_additive", 1.0, "fo", 100.0),  # IU/dL
]


@pytest.mark.parametrize(("stem", "column", "objective", "factor"), [(s, c, o, f) for s, c, _, o, f in SHOWN])
def test_medians_and_bands_are_those_of_the_histories(
    swept: Path, drawn: dict[str, style.Drawn], stem: str, column: str, objective: str, factor: float
) -> None:
    data = drawn[stem].data
    if "failed" in data:
        data = data[data["failed"].isna()]
    shown = data[(data["method"] == objective.upper()) & (data["measure"] == column)]
    read = histories(swept, objective)
    assert len(read) == {"mse": 6, "fo": 6, "vi": 5}[objective]
    assert len(shown) == len({epoch for history in read for epoch in history["epoch"]})
    for row in shown.to_dict("records"):
        values = [history[column][history["epoch"] == row["epoch"]].to_numpy() for history in read]
        expected = factor * np.quantile(np.concatenate(values).astype(np.float64), QUANTILES)
        np.testing.assert_allclose([row["low"], row["median"], row["high"]], expected, rtol=1e-12)
        assert row["fits"] == sum(map(len, values))


def test_the_lines_are_the_numbers(drawn: dict[str, style.Drawn]) -> None:
    """Each method in a panel of its own, the others' medians behind it, and the same limits."""
    one = drawn["epochs_rmse"]
    axes = {axis.get_title(): axis for axis in one.figure.axes}
    assert list(axes) == [name.upper() for name in OBJECTIVES]
    assert len({axis.get_ylim() for axis in axes.values()}) == 1
    for name in OBJECTIVES:
        band = one.data[(one.data["method"] == name.upper()) & one.data["fits"].notna()]
        lines = {
            column: [
                to_hex(line.get_color()).upper()
                for line in axes[name.upper()].lines
                if np.array_equal(line.get_xydata(), band[["epoch", column]].to_numpy())
            ]
            for column in ("low", "median", "high")
        }
        assert lines == {column: [COLOURS[name]] for column in lines}
        others = [line for line in axes[name.upper()].lines if to_hex(line.get_color()) == to_hex("0.6")]
        assert len(others) == len(OBJECTIVES) - 1


def test_a_failed_fit_counts_until_it_fails_and_has_a_cross(
    swept: Path, drawn: dict[str, style.Drawn]
) -> None:
    (sweep,) = collect([swept]).sweeps
    fo = next(method for method in sweep.methods if method.objective == "fo")
    band = bands(fo, "omega_1").set_index("epoch")
    assert band["fits"].to_dict() == {0: 6, 2: 6, 4: 6, 6: 5, 8: 5}
    for stem in ("epochs_objective", "epochs_omega", "epochs_sigma"):
        crosses = [
            line for axis in drawn[stem].figure.axes for line in axis.lines if line.get_marker() == "x"
        ]
        assert crosses, stem
        for cross in crosses:
            assert np.asarray(cross.get_xdata()).tolist() == [FAILED_AT]
            assert to_hex(cross.get_color()).upper() == COLOURS["fo"]
        assert "FO (n = 6, 1 failed)" in drawn[stem].caption
        assert "1 not finished" in drawn[stem].caption


@pytest.mark.parametrize("epoch", [None, 2])
def test_effects_are_those_of_the_run_folders(swept: Path, epoch: int | None) -> None:
    (sweep,) = collect([swept]).sweeps
    vi = next(method for method in sweep.methods if method.objective == "vi")
    shown = effects(vi, () if epoch is None else (epoch,))
    shown = shown[shown["epoch"].isna() if epoch is None else shown["epoch"] == epoch]
    read = [pd.read_parquet(fit.folder / "effects.parquet") for fit in vi.complete]
    assert len(read) == 5
    for (covariate, parameter), curve in shown.groupby(["covariate", "parameter"]):
        each = []
        for table in read:
            own = table[(table["covariate"] == covariate) & (table["parameter"] == parameter)]
            own = own[own["epoch"] >= 4 if epoch is None else own["epoch"] == epoch]
            each.append(own["relative"].to_numpy(np.float64).reshape(-1, len(curve)).mean(0))
        expected = np.quantile(np.stack(each), QUANTILES, axis=0)
        np.testing.assert_allclose(curve[["low", "median", "high"]].to_numpy().T, expected, rtol=1e-6)
        np.testing.assert_allclose(
            curve["x"], np.linspace(0, {"weight": 150, "vwf": 350}[str(covariate)], 40)
        )
    assert len(shown) == 3 * 40


def test_every_kind_of_figure_is_there(drawn: dict[str, style.Drawn]) -> None:
    expected = {f"epochs_{measure}" for measure in training.MEASURES} | {"effects", "effects_epoch_2"}
    expected |= {f"goodness_{name}" for name in OBJECTIVES} | {"predictive_check", "random_effects"}
    for stem in ("individuals_{}_01", "npde_{}"):  # mse has neither
        expected |= {stem.format(name) for name in ("fo", "vi")}
    assert set(drawn) == expected


UNIT = re.compile(r"epoch|IU/dL|, h$|, kg|nats|log L|scale|\(-\)|fraction|subjects")


def test_every_axis_has_a_unit_and_every_figure_words(drawn: dict[str, style.Drawn]) -> None:
    for stem, one in drawn.items():
        labels = [label for axis in one.figure.axes for label in (axis.get_xlabel(), axis.get_ylabel())]
        named = [label for label in labels if label]
        assert named, stem
        for label in named:
            assert UNIT.search(label), (stem, label)
        # An axis without a label shares that of the panels beside or below it.
        for axis in one.figure.axes:
            if not axis.get_xlabel():
                alike = [other for other in one.figure.axes if other.get_xlim() == axis.get_xlim()]
                assert any(other.get_xlabel() for other in alike), stem
        assert len(one.alt) > 60, stem
        assert len(one.caption) > 60, stem
        assert "$" not in one.alt, stem
        assert "{" not in one.alt, stem
        assert len(one.data), stem


@pytest.mark.slow  # every figure is drawn
def test_print_size(drawn: dict[str, style.Drawn]) -> None:
    for stem, one in drawn.items():
        assert one.figure.get_figwidth() in (style.SINGLE, style.DOUBLE), stem
        one.figure.draw_without_rendering()
        sizes = {
            float(text.get_fontsize())
            for axis in one.figure.axes
            for text in (axis.xaxis.label, axis.yaxis.label, axis.title, *axis.get_xticklabels())
        }
        assert min(sizes) >= 7, stem


def test_an_objective_has_one_colour_everywhere(drawn: dict[str, style.Drawn]) -> None:
    for name in OBJECTIVES:
        (points,) = {
            to_hex(np.asarray(c.get_facecolor())[0]).upper()
            for c in drawn[f"goodness_{name}"].figure.axes[0].collections
        }
        assert points == COLOURS[name]
    for stem, names in (("epochs_rmse", OBJECTIVES), ("epochs_kl", ("fo", "vi")), ("effects", OBJECTIVES)):
        every = {to_hex(line.get_color()).upper() for axis in drawn[stem].figure.axes for line in axis.lines}
        used = {colour for colour in every if len({colour[1:3], colour[3:5], colour[5:]}) > 1} | {"#000000"}
        assert {COLOURS[name] for name in names} <= used, stem
        assert used <= {COLOURS[name] for name in names} | {"#000000"}, stem
    assert len({*style.COLOURS, style.OTHER}) == len(style.COLOURS) + 1


def test_colours_and_markers_of_the_papers_objectives() -> None:
    """They stay what they were in earlier figures; what is not known to the palette is neutral."""
    ranks = [one.describe().rank for one in (Mse(), Fo(), Foce(), Vi(), Vi(samples=1))]
    assert [style.colour_of(rank) for rank in ranks] == list(COLOURS.values())
    assert [style.marker_of(rank) for rank in ranks] == ["D", "s", "^", "o", "v"]
    assert Foce(mode_gradient="implicit").describe() == Foce().describe()
    assert {style.colour_of(rank) for rank in (None, 99)} == {style.OTHER}
    assert {style.marker_of(rank) for rank in (None, 99)} == {"P"}


def test_methods_of_one_colour_have_their_own_panel_and_label(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept, tmp_path / "outputs")
    for path in (tmp_path / "outputs").rglob("run.json"):
        address = json.loads(path.read_text())["address"]
        if address["objective"] == "vi" and address["fold"] > 1:
            change(path, address=address | {"variant": "objective.samples-1"})
    (sweep,) = collect([tmp_path / "outputs"]).sweeps
    vi = [method for method in sweep.methods if method.objective == "vi"]
    assert [method.label for method in vi] == ["VI", "VI, objective.samples-1"]
    for measure in ("objective", "rmse"):
        one = training.over_epochs(sweep, measure)
        assert one is not None
        titles = [axis.get_title() for axis in one.figure.axes]
        assert titles == [method.label for method in sweep.methods]


def test_shrinkage(drawn: dict[str, style.Drawn]) -> None:
    one = drawn["random_effects"]
    assert set(one.data["method"]) == {"FO", "VI"}
    for (_, _), part in one.data.groupby(["method", "parameter"]):
        expected = 1 - np.std(part["eta"], ddof=1) / part["omega"].iloc[0]
        np.testing.assert_allclose(part["shrinkage"], expected)


def test_the_fit_that_is_looked_at_has_the_median_objective(swept: Path) -> None:
    (sweep,) = collect([swept]).sweeps
    for method in sweep.methods:
        finals = {}
        for fit in method.complete:
            history = pd.read_parquet(fit.folder / "history.parquet")
            finals[fit.folder] = history["objective_value"][history["epoch"] >= 4].mean()
        chosen = typical_fit(method)
        assert chosen is not None
        below = sum(value < finals[chosen.folder] for value in finals.values())
        assert below == (len(finals) - 1) // 2
        other = typical_fit(method, fold=3, replicate=2)
        assert other is not None
        assert (other.record.address.fold, other.record.address.replicate) == (3, 2)
        assert typical_fit(method, fold=9) is None


def test_files_open_and_hold_the_numbers(drawn: dict[str, style.Drawn], tmp_path: Path) -> None:
    one = drawn["epochs_omega"]
    paths = {path.suffix: path for path in style.write(one, tmp_path / "first")}
    with Image.open(paths[".png"]) as image:
        width = image.size[0]
        image.verify()
    assert width == round(one.figure.get_figwidth() * style.STYLE["savefig.dpi"])
    assert ElementTree.parse(paths[".svg"]).getroot().tag.endswith("svg")
    content = paths[".pdf"].read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    pd.testing.assert_frame_equal(pd.read_csv(paths[".csv"]), one.data, check_dtype=False)
    for path in style.write(one, tmp_path / "second"):
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes(), path.name


# -- what is missing ------------------------------------------------------------------------------


@pytest.fixture
def plot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medcm", "plot", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(str(stopped.value.code)), out, " ".join(err.split())

    return run


def test_a_folder_without_fits(plot: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = plot(tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"medcm: {tmp_path}: no run folder below it")
    assert list(tmp_path.iterdir()) == []
    assert plot(tmp_path / "nowhere")[0] == 2


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..", "a\nb"])
@pytest.mark.parametrize("part", ["study", "dataset"])
def test_names_in_a_record_do_not_lead_out_of_the_folder_of_figures(
    plot: Callable[..., tuple[int, str, str]], swept: Path, tmp_path: Path, part: str, name: str
) -> None:
    root = tmp_path / "outputs"
    run = next(path.parent for path in swept.rglob("run.json") if "objective=vi" in str(path))
    shutil.copytree(run, root)
    address = json.loads((root / "run.json").read_text())["address"]
    change(root / "run.json", address=address | {part: name}, status="complete")
    code, out, err = plot(root, "--out", tmp_path / "a" / "b" / "figures")
    assert (code, out) == (2, "")
    assert err.startswith(f"medcm: {root / 'run.json'}: is not a run record (address.{part} is ")
    assert sorted(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize(
    ("option", "value"), [("--format", "png,gif"), ("--epochs", "25,x"), ("--fold", "first")]
)
def test_bad_options(
    plot: Callable[..., tuple[int, str, str]], tmp_path: Path, option: str, value: str
) -> None:
    code, _, err = plot(tmp_path, option, value)
    assert code == 2
    assert option in err


def test_without_data_what_needs_none_is_drawn(
    plot: Callable[..., tuple[int, str, str]], swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that are gone, a damaged history, lost effects: each in a line, and the rest as it is."""
    monkeypatch.setattr(training, "MEASURES", ("objective", "omega"))
    root = tmp_path / "outputs"
    shutil.copytree(swept, root)
    for path in root.rglob("run.json"):
        data = json.loads(path.read_text())["data"]
        change(path, data=data | {"source": str(tmp_path / "gone.parquet")})
    mse = sorted(path for path in root.rglob("history.parquet") if "objective=mse" in str(path))
    mse[0].write_bytes(b"nothing")
    (mse[1].parent / "effects.parquet").unlink()
    code, _, err = plot(root, "--out", tmp_path / "figures", "--format", "svg", "--epochs", "3")
    assert code == 0
    for part in (
        "gone.parquet",
        "history.parquet: cannot be read",
        "effects.parquet",
        "no learned effects at epoch 3",
    ):
        assert part in err, part
    stems = {path.stem for path in (tmp_path / "figures").rglob("*.svg")}
    assert stems == {f"epochs_{measure}" for measure in training.MEASURES} | {"effects"}
    captions = next((tmp_path / "figures").rglob("figures.md")).read_text()
    assert "MSE (n = 5)" in captions


def test_when_every_fit_failed(
    plot: Callable[..., tuple[int, str, str]], swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MEASURES", ("rmse",))
    root = tmp_path / "outputs"
    shutil.copytree(swept, root)
    for path in root.rglob("run.json"):
        change(path, status="failed", failure={"epoch": 1, "cause": "objective is not finite"}, hashes={})
        table = pyarrow.parquet.read_table(path.parent / "history.parquet")
        pyarrow.parquet.write_table(table.slice(0, 0), path.parent / "history.parquet")
    code, _, err = plot(root, "--out", tmp_path / "figures", "--format", "png")
    assert code == 0
    assert err.count("no complete fit") == 3
    assert runs.read_record(next(root.rglob("run.json")).parent) is not None
