"""Results as HTML pages, for those who have no notebook."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from mako.lookup import TemplateLookup  # pyright: ignore[reportMissingTypeStubs]

from datamig_nb import display

templates: Any = TemplateLookup(
    [str(files("datamig_nb") / "templates")], default_filters=["h"], strict_undefined=True
)


def page(*values: object) -> str:
    """A whole HTML document that shows values as a notebook does, light or dark as the reader.

    Raises
    ------
    TypeError
        If no renderer is registered for the class of one of them.
    """
    bodies: list[str] = []
    for value in values:
        body = display.to_html(value)
        if body is None:
            raise TypeError(f"{type(value).__name__} has no HTML")
        bodies.append(body)
    title = ", ".join(dict.fromkeys(type(value).__name__ for value in values))
    return templates.get_template("page.mako").render(title=title, body="\n".join(bodies))


def save_html(path: str | Path, *values: object) -> None:
    """Write the values to a file as one HTML page, for those who have no notebook."""
    Path(path).write_text(page(*values), encoding="utf-8")
