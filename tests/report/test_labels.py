"""Text in figures: our own symbols are mathematics, what others wrote is not, and file names have an end."""

import pytest
from matplotlib.figure import Figure

from medcm_cli.report.figures import style


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (f"{style.symbol('omega', 'CL')}, sd on log scale", True),
        (f"{style.symbol('rho', 'V1', 'CL')} and {style.symbol('eta', '')}", True),
        (style.SQUARED_OMEGA, True),
        ("a$b$c", False),
        ("$\\frac{", False),
        (f"$x$ {style.symbol('omega', 'CL')}", False),
        ("plain", False),
        ("$", False),
    ],
)
def test_only_our_own_symbols_are_mathematics(text: str, parsed: bool) -> None:
    with style.styled():
        figure = Figure()
        shown = [figure.suptitle(text), figure.subplots().set_xlabel(text)]
        style._harmless(figure)
        figure.draw_without_rendering()
    assert [label.get_parse_math() for label in shown] == [parsed, parsed]
    assert [label.get_text() for label in shown] == [text, text]


def test_names_of_files_are_short_and_different() -> None:
    names = ["a" * 300, "a" * 299 + "b", "ä" * 300, "VI, lr 0.1", "A" * 100]
    slugs = [style.slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert max(len(slug.encode()) for slug in slugs) <= 120
    assert slugs[3:] == ["vi_lr_0_1", "a" * 100]


def test_of_a_long_name_both_ends_are_shown() -> None:
    assert style.named("short") == "short"
    assert style.named("x" * 40) == "x" * 40
    long = style.named("first" + "x" * 300 + "last")
    assert len(long) <= 40
    assert long.startswith("first")
    assert long.endswith("last")
