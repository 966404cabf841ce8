"""A page that a person reads: one HTML file that needs nothing else, its Markdown twin, the same tables in the
terminal.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Table(NamedTuple):
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Link(str):
    """A cell that leads to another page, `target`, by its path from this one."""

    target: str

    def __new__(cls, text: str, target: str) -> "Link":
        link = super().__new__(cls, text)
        link.target = target
        return link


def pairs(values: Mapping[str, Any]) -> Table:
    """Names and what they stand for, without headings."""

    def said(value: Any) -> str:
        return ", ".join(value) or "–" if isinstance(value, list) else "–" if value is None else str(value)

    return Table(["", ""], [[name, said(value)] for name, value in values.items()])


class Picture(NamedTuple):
    name: str
    caption: str
    svg: str


Section = tuple[str, list[str | Table | Picture]]  # heading, blocks


class Page(NamedTuple):
    """`lead`: (what it comes to, why), shown in a box under the title; None for none."""

    title: str
    sections: Sequence[Section]
    footer: str
    lead: tuple[str, str] | None = None


def about(doc: str) -> dict[str, str]:
    """A docstring as fields: its first paragraph is the title; "Claim: …" and the like open the others."""
    title, _, text = doc.strip().partition("\n\n")
    _, *rest = re.split(r"^([A-Z][a-z]+): ", text, flags=re.MULTILINE)
    fields = {name.lower(): " ".join(text.split()) for name, text in zip(rest[::2], rest[1::2], strict=True)}
    return {"title": " ".join(title.split()), **fields}


def write(folder: Path, page: Page) -> None:
    """Writes `report.html`, `report.md` and the pictures as SVG into `folder`."""
    for _, blocks in page.sections:
        for picture in (block for block in blocks if isinstance(block, Picture)):
            (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    (folder / "report.md").write_text(markdown(page), encoding="utf-8")
    (folder / "report.html").write_text(_html(page), encoding="utf-8")


def grid(table: Table, title: str | None = None):
    """A table for the terminal: headings wrap, numbers do not."""
    from rich.table import Table as Grid

    result = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold", title=title, title_justify="left")
    for heading, *cells in zip(table.headings, *table.rows, strict=True):
        width = max(map(len, [*cells, *heading.split()]))
        side = "right" if result.columns else "left"
        result.add_column(heading, justify=side, vertical="bottom", min_width=width, max_width=width)
    for cells in table.rows:
        result.add_row(*cells)
    return result


def markdown_table(table: Table) -> str:
    def cell(content: str) -> str:
        return f"[{content}]({content.target})" if isinstance(content, Link) else content

    lines = [table.headings, ["---"] * len(table.headings), *table.rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def markdown(page: Page) -> str:
    """The page as Markdown; pictures lie beside it."""

    def block(content: str | Table | Picture) -> str:
        if isinstance(content, Picture):
            return f"![{content.caption}]({content.name}.svg)\n\n{content.caption}"
        return content if isinstance(content, str) else markdown_table(content)

    parts = [f"# {page.title}"]
    if page.lead:
        parts.append("**{}** {}".format(*page.lead))
    for heading, blocks in page.sections:
        parts += [f"## {heading}", *map(block, blocks)]
    return "\n\n".join([*parts, page.footer]) + "\n"


def _html(page: Page) -> str:
    def table(content: Table) -> str:
        columns = list(zip(*content.rows, strict=True))
        numeric = [all(re.fullmatch(r"[−+]?[\d.,]+( ± [\d.]+)?†?( ✗)?|–", cell.strip()) for cell in c) for c in columns]
        kinds = [' class="number"' if number else "" for number in numeric]

        def inside(cell: str) -> str:
            said = html.escape(cell)
            return f'<a href="{html.escape(cell.target)}">{said}</a>' if isinstance(cell, Link) else said

        def row(cells: Sequence[str], tag: str) -> str:
            parts = [f"<{tag}{kind}>{inside(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)]
            return f"<tr>{''.join(parts)}</tr>\n"

        head = f"<thead>\n{row(content.headings, 'th')}</thead>\n" if any(content.headings) else ""
        body = "".join(row(cells, "td") for cells in content.rows)
        return f'<div class="wide"><table>\n{head}<tbody>\n{body}</tbody>\n</table></div>\n'

    def block(content: str | Table | Picture) -> str:
        if isinstance(content, Picture):
            caption, drawing = html.escape(content.caption), content.svg[content.svg.index("<svg") :]
            return f'<figure role="img" aria-label="{caption}">\n{drawing}<figcaption>{caption}</figcaption></figure>\n'
        if isinstance(content, str):
            return f"<p>{html.escape(content)}</p>\n"
        return table(content)

    title = html.escape(page.title)
    lead = ""
    if page.lead:
        lead = '<p class="verdict"><strong>{}</strong> {}</p>\n'.format(*map(html.escape, page.lead))
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = "".join(
        f"<h2>{html.escape(heading)}</h2>\n{''.join(map(block, blocks))}" for heading, blocks in page.sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
{lead}{body}<footer>{html.escape(page.footer)}</footer>
</body>
</html>
"""
