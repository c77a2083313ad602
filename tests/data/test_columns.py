"""Cells that an event table cannot have, and ways to read one that make no sense: the message names them."""

from pathlib import Path

import pytest

from medcm_cli.data import Format, read_events
from medcm_cli.errors import InputError
from tests.data.tables import FORMATS, FULL, LINES, edited, full_row, refusal, write

# edits of LINES -> line, column, words of the reason
BAD_CELLS: dict[str, tuple[dict[int, str | None], int, str, str]] = {
    "text in time": ({3: "a,soon,,,,0.5,0,70"}, 3, "time", "'soon' is not a number"),
    "text in dv": ({3: "a,4,,,,BLQ,0,70"}, 3, "dv", "'BLQ' is not a number"),
    "above nothing": ({3: "a,4,,,,>0,0,70"}, 3, "dv", "expected a limit above 0"),
    "below nothing": ({3: "a,4,,,,<0,0,70"}, 3, "dv", "expected a limit above 0"),
    "text in amt": ({5: "b,0,2000 IU,,,,1,80"}, 5, "amt", "'2000 IU' is not a number"),
    "text in rate": ({5: "b,0,2000,fast,,,1,80"}, 5, "rate", "'fast' is not a number"),
    "text in duration": ({5: "b,0,2000,,short,,1,80"}, 5, "duration", "'short' is not a number"),
    "text in evid": ({6: "b,5,,,,0.4,obs,80"}, 6, "evid", "'obs' is not a number"),
    "text in a covariate": ({6: "b,5,,,,0.4,0,heavy"}, 6, "wt", "'heavy' is not a number"),
    "decimal comma": ({3: 'a,4,,,,"0,5",0,70'}, 3, "dv", "'0,5' is not a number"),
    "text after a missing cell": ({2: "a,0,1000,,,,1,70", 4: "a,24,,,,low,0,70"}, 4, "dv", "'low'"),
    "time missing": ({4: "a,,,,,0.2,0,70"}, 4, "time", "missing"),
    "time negative": ({2: "a,-1,1000,,,,1,70"}, 2, "time", "-1 is negative"),
    "time infinite": ({4: "a,inf,,,,0.2,0,70"}, 4, "time", "not finite"),
    "time falls": ({4: "a,3.5,,,,0.2,0,70"}, 4, "time", "3.5 comes after a later time"),
    "dose after a later observation": ({5: "b,9,2000,,,,1,80"}, 6, "time", "5 comes after a later time"),
    "dv missing": ({6: "b,5,,,,,0,80"}, 6, "dv", "missing on an observation"),
    "dv infinite": ({6: "b,5,,,,-inf,0,80"}, 6, "dv", "not finite"),
    "observation before the dose": (
        {2: "a,1,,,,0.5,0,70", 3: "a,2,1000,,,,1,70"},
        2,
        "time",
        "observation at 1 h comes before the subject's first dose",
    ),
    "rows of a subject in two places": ({6: "a,30,,,,0.4,0,70"}, 6, "id", "'a' appears in more than one"),
    "id missing": ({4: ",24,,,,0.2,0,70"}, 4, "id", "missing"),
    "subject without dose": ({2: None}, 2, "amt", "subject 'a' has no dose"),
    "evid is no event": ({4: "a,24,,,,0.2,5,70"}, 4, "evid", "is 5; expected 0, 1, 2, 3 or 4"),
    "evid is a fraction": ({4: "a,24,,,,0.2,0.5,70"}, 4, "evid", "expected 0, 1, 2, 3 or 4"),
    "evid missing": ({5: "b,0,2000,,,,,80"}, 5, "evid", "is empty; expected 0, 1, 2, 3 or 4"),
    "amount on another event": (
        {4: "a,24,500,,,0.2,2,70"},
        4,
        "evid",
        "is 2 (no dose) on a row that has a dose",
    ),
    "amount on a reset": ({4: "a,24,500,,,0.2,3,70"}, 4, "evid", "is 3 (no dose) on a row that has a dose"),
    "reset and dose of nothing": ({4: "a,24,,,,,4,70"}, 4, "amt", "missing or zero"),
    "rate modelled": ({2: "a,0,1000,-1,,,1,70"}, 2, "rate", "is -1 (a rate that the model has)"),
    "time falls without a reset": ({4: "a,1,500,,,,1,70"}, 4, "time", "or begin again with EVID 3 or 4"),
    "amount on an observation": ({4: "a,24,500,,,0.2,0,70"}, 4, "evid", "a row that has a dose"),
    "rate on an observation": ({4: "a,24,,500,1,0.2,0,70"}, 4, "evid", "a row that has a dose"),
    "amount negative": ({2: "a,0,-1000,,,,1,70"}, 2, "amt", "-1000"),
    "rate negative": ({2: "a,0,1000,-50,,,1,70"}, 2, "rate", "negative"),
    "duration negative": ({2: "a,0,1000,,-2,,1,70"}, 2, "duration", "negative"),
    "dose of nothing": ({5: "b,0,0,,,,1,80"}, 5, "amt", "missing or zero"),
    "dose without amount or rate": ({5: "b,0,,,0.5,,1,80"}, 5, "amt", "missing or zero"),
    "rate without duration or amount": ({5: "b,0,,3000,,,1,80"}, 5, "duration", "missing on a dose row"),
    "amount infinite": ({5: "b,0,1e400,,,,1,80"}, 5, "amt", "not finite"),
    "rate infinite": ({5: "b,0,,inf,1,,1,80"}, 5, "rate", "not finite"),
    "duration infinite": ({5: "b,0,,100,inf,,1,80"}, 5, "duration", "not finite"),
    "covariate missing": ({4: "a,24,,,,0.2,0,"}, 4, "wt", "missing"),
    "covariate missing on the dose row": ({5: "b,0,2000,,,,1,"}, 5, "wt", "missing"),
    "covariate changes": ({4: "a,24,,,,0.2,0,71"}, 4, "wt", "71"),
    "covariate infinite": ({5: "b,0,2000,,,,1,inf"}, 5, "wt", "not finite"),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("case", BAD_CELLS)
def test_a_bad_cell_is_named(tmp_path: Path, case: str, suffix: str) -> None:
    edits, line, column, reason = BAD_CELLS[case]
    path = write(tmp_path, edited(edits), suffix)
    place = f"line {line}" if suffix == ".csv" else f"row {line - 1}"
    message = refusal(path)
    assert message.startswith(f"{path}, {place}, column {column!r}: ")
    assert reason in message.removeprefix(f"{path}, {place}")


MDV_LINES = tuple(line.replace("evid", "mdv") for line in LINES)
BAD_MDV: dict[str, tuple[dict[int, str | None], int, str, str]] = {
    "mdv is neither 0 nor 1": ({3: "a,4,,,,0.5,100,70"}, 3, "mdv", "expected 0 or 1"),
    "mdv missing": ({3: "a,4,,,,0.5,,70"}, 3, "mdv", "expected 0 or 1"),
    "dose on an observation": ({2: "a,0,1000,,,,0,70"}, 2, "mdv", "a row that has a dose"),
    "amount negative": ({2: "a,0,-1000,,,,1,70"}, 2, "amt", "negative"),
    "rate negative": ({2: "a,0,,-50,1,,1,70"}, 2, "rate", "negative"),
    "dose of nothing": ({2: "a,0,0,,,,1,70"}, 2, "amt", "subject 'a' has no dose"),
}


@pytest.mark.parametrize("case", BAD_MDV)
def test_a_bad_cell_is_named_where_mdv_tells_doses(tmp_path: Path, case: str) -> None:
    edits, line, column, reason = BAD_MDV[case]
    path = write(tmp_path, edited(edits, MDV_LINES))
    message = refusal(path)
    assert message.startswith(f"{path}, line {line}, column {column!r}: ")
    assert reason in message


def test_a_bad_mdv_beside_a_good_evid_is_named(tmp_path: Path) -> None:
    lines = tuple(f"{line},{mdv}" for line, mdv in zip(LINES, ["mdv", 1, 0, 3, 1, 0], strict=True))
    path = write(tmp_path, edited({}, lines))
    assert refusal(path).startswith(f"{path}, line 4, column 'mdv': is 3; expected 0 or 1")


BAD_FULL: dict[str, tuple[dict[int, str | None], int, str, str]] = {
    "addl negative": (full_row(2, ADDL="-1"), 2, "ADDL", "is -1; expected a whole number from 0"),
    "addl a fraction": (full_row(2, ADDL="1.5"), 2, "ADDL", "is 1.5; expected a whole number"),
    "addl text": (full_row(2, ADDL="many"), 2, "ADDL", "'many' is not a number"),
    "addl without ii": (full_row(2, II="."), 2, "II", "is missing or zero on a dose row with additional"),
    "addl on an observation": (full_row(3, ADDL="2"), 3, "ADDL", "is 2 on a row that is not a dose"),
    "ii negative": (full_row(2, II="-12"), 2, "II", "-12 is negative"),
    "ii on an observation": (full_row(3, II="12"), 3, "II", "is 12 on a row that is not a dose"),
    "ss unknown": (full_row(5, SS="3"), 5, "SS", "is 3; expected 0, 1 or 2"),
    "ss without ii": (full_row(5, II="0"), 5, "II", "at steady state"),
    "ss on an observation": (full_row(6, SS="1"), 6, "SS", "is 1 on a row that is not a dose"),
    "cmt negative": (full_row(2, CMT="-1"), 2, "CMT", "is -1; expected a whole number from 0"),
    "cmt a fraction": (full_row(2, CMT="1.5"), 2, "CMT", "expected a whole number"),
    "occ zero": (full_row(2, OCC="0"), 2, "OCC", "is 0; expected a whole number from 1"),
    "occ missing": (full_row(4, OCC="."), 4, "OCC", "is missing; expected the occasion of every row"),
    "occ falls": (full_row(4, OCC="1") | full_row(3, OCC="2"), 4, "OCC", "1 comes after a later occasion"),
    "cens unknown": (full_row(4, CENS="2"), 4, "CENS", "is 2; expected -1, 0 or 1"),
    "cens without a limit": (full_row(4, DV="."), 4, "DV", "expected the limit, there or in LLOQ"),
    "limit of zero": (full_row(3, LLOQ="0"), 3, "LLOQ", "is 0; expected a level above 0"),
    "limit is text": (full_row(3, LLOQ="<1"), 3, "LLOQ", "'<1' is not a number"),
    "dv missing": (full_row(3, DV="NA"), 3, "DV", "is missing on an observation row"),
    "rate of nothing at steady state": (full_row(5, AMT=".", RATE="."), 5, "AMT", "missing or zero"),
}


@pytest.mark.parametrize("case", BAD_FULL)
def test_a_bad_cell_of_a_regimen_is_named(tmp_path: Path, case: str) -> None:
    edits, line, column, reason = BAD_FULL[case]
    path = write(tmp_path, edited(edits, FULL))
    message = refusal(path, {"weight": "WT"})
    assert message.startswith(f"{path}, line {line}, column {column!r}: ")
    assert reason in message


BAD_FORMATS: dict[str, tuple[dict[str, object], str]] = {
    "unknown role": ({"columns": {"weight": "WT"}}, "dataset.columns: 'weight'; expected some of id, time"),
    "column absent": ({"columns": {"time": "HOURS"}}, "column 'HOURS' is missing; the file has ID, TIME"),
    "optional column absent": ({"columns": {"lloq": "LIMIT"}}, "column 'LIMIT' is missing"),
    "keep of a column absent": ({"keep": {"DVID": [1]}}, "column 'DVID' is missing"),
    "keep is no list": ({"keep": {"CMT": 1}}, "dataset.keep.CMT is 1; expected a list"),
    "keep leaves nothing": ({"keep": {"CMT": [7]}}, "no row has CMT in [7]"),
    "bolus negative": (
        {"bolus_duration": -1},
        "dataset.bolus_duration is -1; expected a number from 0 to 10000, in h",
    ),
    "bolus is text": ({"bolus_duration": "short"}, "dataset.bolus_duration is 'short'"),
    "over time unknown": ({"over_time": {"weight": "last"}}, "dataset.over_time.weight is 'last'; expected"),
    "over time of nothing": ({"over_time": {"vwf": "mean"}}, "dataset.over_time.vwf: no such covariate"),
}


@pytest.mark.parametrize("case", BAD_FORMATS)
def test_a_bad_way_to_read_is_refused(tmp_path: Path, case: str) -> None:
    options, reason = BAD_FORMATS[case]
    path = write(tmp_path, edited({}, FULL))
    with pytest.raises(InputError) as caught:
        read_events(path, {"weight": "WT"}, Format(**options))  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
