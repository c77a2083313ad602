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

    from medcm_cli.data import Format, describe, plain_covariates, read_events
    from medcm_cli.report.tables import characteristics

    form = Format(columns, keep, predose_observations="keep" if options.predose else "error")
    covariates, form = plain_covariates(options.file, form, options.covariate)
    table = read_events(options.file, covariates, form)
    described = describe(table)
    show(characteristics(str(options.file), described, options.amount_unit, options.level_unit))
    for line in table.notes:
        ERR.print(line)
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
    parser.add_argument("--level-unit", type=text, default="IU/mL", help="unit of DV")
    parser.add_argument("--amount-unit", type=text, default="IU", help="unit of AMT")
    parser.add_argument("--predose", action="store_true", help="allow observations before the first dose")
    return parser
