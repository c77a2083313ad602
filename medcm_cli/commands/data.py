"""``medcm data check``: an event table read, checked and described without fitting it."""

from typing import TYPE_CHECKING, Any

from medcm_cli.commands.parser import Parser, add_dialect, add_units, pair, path, text
from medcm_cli.commands.terminal import ERR, OUT, show
from medcm_cli.errors import InputError

if TYPE_CHECKING:
    import argparse

    from omegaconf import DictConfig

    from medcm_cli.data import EventTable

_REPEATED: dict[str, Any] = {"action": "append", "default": []}
_TABLE_FLAGS = ("column", "keep", "covariate", "dialect", "predose")


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or a file that do not fit."""
    options = _parser().read(arguments)
    if options.option or options.config_dir is not None:
        _check_as_fit(options)
    else:
        _check(options)
    OUT.print(f"{options.file}: no fault found")


def _check(options: "argparse.Namespace") -> None:
    """Whatever model it is for."""
    from medcm_cli.data import Format, describe, read_plain, units_assumed, with_magnitudes
    from medcm_cli.quantities import factor
    from medcm_cli.report.tables import characteristics
    from medcm_cli.runs import Units
    from medcm_cli.study.units import checked

    columns = {role: None if name == "null" else name for role, name in options.column}
    keep = {name: values.split(",") for name, values in options.keep}
    kinds = {"time": options.time_unit, "amount": options.amount_unit, "level": options.level_unit}
    said = {kind: unit for kind, unit in kinds.items() if unit is not None}
    kinds = checked(said)
    units = Units(kinds["level"], 1.0, kinds["level"], kinds["amount"], kinds["time"])
    predose = "keep" if options.predose else "error"
    form = Format(columns, keep, dict(options.dialect), predose_observations=predose, time_unit=units.time)
    if factor(units.level, f"{units.amount}/L") is None:
        ERR.print(f"{units.level} does not follow from {units.amount}: `medcm fit` needs pk.amount_per_level")
    table = with_magnitudes(read_plain(options.file, form, options.covariate), units)
    for line in (*table.notes, *([] if said else [units_assumed(str(options.file), units)])):
        ERR.print(line)
    show(characteristics(str(options.file), describe(table) | _kinds(table, kinds["level"]), kinds))


def _kinds(table: "EventTable", level: str) -> dict[str, Any]:
    """What is said of each kind of observation, where there are several; and a line on how to use them."""
    from medcm_cli.checks import as_option
    from medcm_cli.data.describe import describe_endpoint

    if not table.kinds:
        return {}
    column = str(table.kinds[0].column)
    plain = column.lower() == "dvid"
    made = {
        one.name: {"dvid": one.value} if plain else {"column": column, "value": one.value}
        for one in table.kinds
    }
    ERR.print(
        f"{table.source}: {column} tells {len(table.kinds)} kinds of observations apart; for a fit "
        f"{as_option('endpoints', **made)} makes endpoints of them, with the output, error and unit of each "
        f"(medcm help methods), and {as_option('dataset.keep', **{column: [table.kinds[0].value]})} leaves "
        "the others out"
    )
    # Only that of the first is said.
    return {
        "endpoints": {
            f"{column} {one.value}": {
                "unit": "unit not said" if place else level,
                **describe_endpoint(table, place),
            }
            for place, one in enumerate(table.kinds)
        }
    }


def _check_as_fit(options: "argparse.Namespace") -> None:
    """As a fit with the same options would read it. :raises InputError: what a fit refuses."""
    from medcm_cli.commands.compose import Steps, run
    from medcm_cli.study.options import as_config, complete

    flags = [name for name in _TABLE_FLAGS if getattr(options, name)]
    if flags:
        raise InputError(
            f"--{flags[0].replace('_', '-')}: has no effect with the options of a fit; "
            "say it by those (dataset.*)"
        )

    def check(composed: "DictConfig") -> None:
        complete(as_config(composed))

    def job(composed: "DictConfig") -> None:
        from medcm_cli.report.tables import characteristics
        from medcm_cli.study.job import Job
        from medcm_cli.study.known import with_known

        problem = Job.build(with_known(as_config(composed))).problem
        for line in problem.events.notes:
            ERR.print(line)
        units = problem.config["dataset"]["units"]
        show(characteristics(str(options.file), problem.data["characteristics"], units))

    quoted = str(options.file).replace("\\", "\\\\").replace("'", "\\'")
    whole = [] if any(word.startswith("dataset=") for word in options.option) else ["dataset=table"]
    split = [] if any(word.startswith("split=") for word in options.option) else ["split=all"]
    folder = [] if options.config_dir is None else ["--config-dir", str(options.config_dir)]
    given = [*folder, *whole, *split, *options.option, f"dataset.path='{quoted}'"]
    run("data", "config", given, Steps(check, job))


def _parser() -> Parser:
    parser = Parser("data", "Check an event table without fitting it, and print what it holds.")
    parser.add_argument("action", choices=["check"])
    parser.add_argument("file", type=path, help="event table, text (.csv, .dat ...) or .parquet")
    parser.add_argument(
        "option",
        nargs="*",
        default=[],  # without one argparse says that it is required
        type=text,
        metavar="option=value",
        help="options of a fit: with any, the table is read and refused as that fit would do it, with "
        "dataset=table and split=all if nothing else is said",
    )
    parser.add_argument(
        "-cd", "--config-dir", type=path, help="a folder of your own choices of options, as fit takes it"
    )
    parser.add_argument(
        "--column",
        type=pair,
        metavar="ROLE=NAME",
        help="the name of a column, where it is not that of its role, or null of a role that no column is to "
        "have; may be given several times. Roles: id, time, date, "
        "amt, rate, duration, dv, evid, mdv, addl, ii, ss, cmt, occ, cens, lloq, uloq",
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
        help="a column to describe, which every row needs; may be given several times (all columns of "
        "numbers, missing or not, if not given)",
        **_REPEATED,
    )
    add_dialect(parser)
    add_units(parser)
    parser.add_argument("--predose", action="store_true", help="allow observations before the first dose")
    return parser
