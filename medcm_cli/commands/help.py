"""``medcm help``: the manual in the terminal."""

import re
from pathlib import Path

from medcm_cli.commands.nearest import suggestion
from medcm_cli.commands.parser import Parser, text
from medcm_cli.commands.terminal import OUT
from medcm_cli.errors import InputError

PAGES = Path(__file__).resolve().parents[1] / "docs"
_WIDEST = 100  # characters of a line of text, which longer ones are hard to read


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: no such topic, or no manual."""
    parser = Parser("help", "Read the manual: a list of its topics, or one of them.")
    parser.add_argument("topic", type=text, nargs="?", help="the page to show")
    topic = parser.read(arguments).topic
    pages = topics()
    if not pages:
        raise InputError(f"{PAGES}: the manual is not there; this installation is incomplete")
    if topic is None:
        _list(pages)
    elif topic in pages:
        _show(pages[topic].read_text(encoding="utf-8"))
    else:
        rest = suggestion(topic, pages) or f"; there are {', '.join(pages)}"
        raise InputError(f"{topic}: the manual has no such topic{rest}")


def topics() -> dict[str, Path]:
    """The topics of the manual and their pages."""
    return {path.stem: path for path in sorted(PAGES.glob("*.md"))}


def summary(text: str) -> tuple[str, str]:
    """The title of a page, and the first sentence below it, without markup."""
    title, _, below = text.partition("\n")
    paragraph = " ".join(below.strip().partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?!]) (?=[A-Z`])", paragraph)[0]
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", sentence)
    return title.lstrip("# ").strip(), plain.replace("`", "").replace("*", "")


def _list(pages: dict[str, Path]) -> None:
    width = max(map(len, pages))
    for topic, page in pages.items():
        title, sentence = summary(page.read_text(encoding="utf-8"))
        OUT.print(f"{topic:<{width}}  {title}. {sentence}")
    OUT.print("\nmedcm help TOPIC shows a page.")


def _show(text: str) -> None:
    """Set for a terminal; Markdown as it is anywhere else."""
    if not OUT.is_terminal:
        OUT.print(text, end="")
        return
    from rich.markdown import Markdown

    OUT.print(Markdown(text, hyperlinks=False), soft_wrap=False, width=min(OUT.width, _WIDEST))
