"""``medcm new``: a short configuration to start from, written for an event table."""

import re
from pathlib import Path
from typing import Any

from medcm_cli.commands.parser import Parser, add_dialect, add_units, pair, path
from medcm_cli.commands.terminal import ERR, OUT
from medcm_cli.errors import InputError

_REPEATED: dict[str, Any] = {"action": "append", "default": []}


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or a file that do not fit, or the file to
    write is there."""
    options = _parser().read(arguments)
    out = options.out or Path(f"{_name(options.file)}.yaml")
    if out.suffix != ".yaml":
        raise InputError(f"{out}: expected the name of a .yaml file")
    if out.exists():
        raise InputError(f"{out}: exists already; give another name with -o, or remove it")
    from medcm_cli.data import Format
    from medcm_cli.files import replaced
    from medcm_cli.runs import Units
    from medcm_cli.study.starting import starting
    from medcm_cli.study.units import checked

    columns = {role: None if name == "null" else name for role, name in options.column}
    keep = {name: values.split(",") for name, values in options.keep}
    given = {"time": options.time_unit, "amount": options.amount_unit, "level": options.level_unit}
    said = {kind: unit for kind, unit in given.items() if unit is not None}
    kinds = checked({"amount": "mg", "level": "mg/L", **said})
    units = Units(kinds["level"], 1.0, kinds["level"], kinds["amount"], kinds["time"])
    how = Format(columns, keep, dict(options.dialect), predose_observations="keep", time_unit=units.time)
    found = starting(options.file, how, units, said, _name(out))
    for line in found.notes:
        ERR.print(line)
    with replaced(out) as partial:
        partial.write_text(found.text, encoding="utf-8")
    folder = out.parent if str(out.parent) else Path()
    OUT.print(f"{out}: written; medcm fit -cd {folder} -cn {out.stem}")


def _name(file: Path) -> str:
    """What a study of a file may be called."""
    return re.sub(r"\W+", "_", file.stem).strip("_") or "study"


def _parser() -> Parser:
    parser = Parser(
        "new", "Write a short configuration to start from, for an event table of a drug of your own."
    )
    parser.add_argument("file", type=path, help="event table, text (.csv, .dat ...) or .parquet")
    parser.add_argument("-o", "--out", type=path, help="file to write (TABLE.yaml if not given)")
    parser.add_argument(
        "--column",
        type=pair,
        metavar="ROLE=NAME",
        help="the name of a column, where it is not that of its role, or null, as of data check",
        **_REPEATED,
    )
    parser.add_argument(
        "--keep",
        type=pair,
        metavar="NAME=VALUES",
        help="use only rows with one of these values, as in DVID=1,2; may be given several times",
        **_REPEATED,
    )
    add_dialect(parser)
    add_units(parser)
    return parser
