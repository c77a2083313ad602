"""A report's page as a program reads it."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a page holds; an element that is not closed, or closed twice, is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # of each element that holds text, and that text
        self.rows: list[list[list[str]]] = []  # of each table, the header first
        self.around: list[list[tuple[str, dict[str, str | None]]]] = []  # what each table stands in
        self.inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.rows.append([])
            self.around.append(list(self.inside))
        elif tag == "tr":
            self.rows[-1].append([])
        elif tag in ("td", "th"):
            self.rows[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)
            self.inside.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        data = data.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")  # as they are typed
        self.texts.append((self.open[-1], data))
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags: str) -> str:
        return " ".join(text for tag, text in self.texts if not tags or tag in tags)
