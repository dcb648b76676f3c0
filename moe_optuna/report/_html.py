"""HTML that is escaped by construction: text becomes `Html` only through `tag`, which escapes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Html", "join", "table", "tag", "word"]


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. Children that are not `Html` are escaped, and so are attributes; ``None`` children are left out.

    An attribute's underscores are hyphens, a trailing one is dropped (``class_``).
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(text))}"' for key, text in attributes.items())
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one after another, those that are not `Html` escaped, ``None`` left out."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts if part is not None))


def table(columns: Sequence[object], rows: Iterable[Sequence[object]], *, numeric: bool = True) -> Html:
    """A table whose first column heads its rows; `numeric`: the others are numbers, set to the right."""
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag(
        "div",
        tag(
            "table",
            tag("thead", head) if any(columns) else None,
            tag("tbody", *body),
            class_="numeric" if numeric else "words",
        ),
        class_="scroll",
    )


def word(text: str) -> Html:
    """A name as it stands in files and columns."""
    return tag("span", text, class_="word")
