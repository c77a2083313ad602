"""``medcm data check``: an event table read, checked and described without fitting it."""

from typing import Any

from medcm_cli.commands.parser import Parser, pair, path, text
from medcm_cli.commands.terminal import ERR, OUT, show

_REPEATED: dict[str, Any] = {"action": "append", "default": []}


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or a file that do not fit."""
    options = _parser().read(arguments)
    columns = {role: None if name == "null" else name for role, name in options.column}
    keep = {name: values.split(",") for name, values in options.keep}

    from medcm_cli.data import Format, describe, plain_covariates, read_events, with_magnitudes
    from medcm_cli.quantities import factor
    from medcm_cli.report.tables import characteristics
    from medcm_cli.runs import Units
    from medcm_cli.study.units import checked

    kinds = {"time": options.time_unit, "amount": options.amount_unit, "level": options.level_unit}
    kinds = checked({kind: unit for kind, unit in kinds.items() if unit is not None})
    units = Units(kinds["level"], 1.0, kinds["level"], kinds["amount"], kinds["time"])
    predose = "keep" if options.predose else "error"
    form = Format(columns, keep, predose_observations=predose, time_unit=units.time)
    covariates, form = plain_covariates(options.file, form, options.covariate)
    if factor(units.level, f"{units.amount}/L") is None:
        ERR.print(f"{units.level} does not follow from {units.amount}: `medcm fit` needs pk.amount_per_level")
    table = with_magnitudes(read_events(options.file, covariates, form), units)
    for line in table.notes:
        ERR.print(line)
    show(characteristics(str(options.file), describe(table), kinds))
    OUT.print(f"{options.file}: no fault found")


def _parser() -> Parser:
    parser = Parser("data", "Check an event table without fitting it, and print what it holds.")
    parser.add_argument("action", choices=["check"])
    parser.add_argument("file", type=path, help="event table, .csv or .parquet")
    parser.add_argument(
        "--column",
        type=pair,
        metavar="ROLE=NAME",
        help="the name of a column, where it is not that of its role, or null of a role that no column is to "
        "have; may be given several times. Roles: id, "
        "time, amt, rate, duration, dv, evid, mdv, addl, ii, ss, cmt, occ, cens, lloq",
        **_REPEATED,
    )
    parser.add_argument(
        "--keep",
        type=pair,
        metavar="NAME=VALUES",
        help="use only rows with one of these values, as in DVID=1,2; may be given several times",
        **_REPEATED,
    )
    parser.add_argument(
        "--covariate",
        type=text,
        metavar="NAME",
        help="a column to describe; may be given several times (all columns of numbers if not given)",
        **_REPEATED,
    )
    parser.add_argument("--time-unit", type=text, help="unit of TIME, as dataset.units.time")
    parser.add_argument("--amount-unit", type=text, help="unit of AMT, as dataset.units.amount")
    parser.add_argument("--level-unit", type=text, help="unit of DV, as dataset.units.level")
    parser.add_argument("--predose", action="store_true", help="allow observations before the first dose")
    return parser
