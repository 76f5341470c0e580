"""Fill a page's template:  values -> one HTML file that loads nothing, written whole or not at all"""

from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cyto_dl.storage import atomic_path


def write_page(template: str, path: str | PathLike[str], **values: Any) -> Path:
    """Write a page; returns its path. What values hold is text, never HTML, except drawings of `charts`."""
    filled = Environment(
        loader=PackageLoader("cyto_dl.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(template)
    with atomic_path(path) as temporary:
        temporary.write_text(filled.render(**values), encoding="utf-8")
    return Path(path)
