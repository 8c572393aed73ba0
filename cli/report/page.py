"""One self-contained HTML page: templates, style, script and pictures in a single file, and the pictures as PNGs.

Names and labels come from strangers' files. Jinja escapes whatever a template prints; JSON for the script escapes <, >,
& and ' as well, so that no name can end the script; the page's own policy (Content-Security-Policy) lets nothing leave.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cli.report.panels import Panel
from cli.show.terminal import escaped
from teacher_cache.storage.atomic import refuse_links, replace_file

__all__ = ["write_page"]

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = "pictures"  # beside the page
_OWN = re.compile(r"[a-z0-9-]+\.png")


def write_page(out: Path, template: str, context: Mapping[str, Any], pictures: Sequence[tuple[str, Panel]]) -> Path:
    """Write OUT/index.html and, beside it, OUT/pictures/NAME.png; pictures of an earlier report that are not drawn any
    more are removed. -> the page

    template  a file of `templates`.   context  its values.   pictures  (name without ending, picture).

    A page is replaced as a whole: a stop at any moment leaves the earlier page or the new one.
    """
    clouds: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}

    def cloud_number(panel: Panel) -> int:
        if id(panel) not in numbers:
            assert panel.cloud is not None
            numbers[id(panel)] = len(clouds)
            clouds.append(panel.cloud)
        return numbers[id(panel)]

    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        finalize=_readable,
    )  # fmt: skip
    page = environment.get_template(template).render(
        **context,
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        cloud_number=cloud_number,
        clouds=lambda: htmlsafe_json_dumps(clouds, dumps=json.dumps),
    )
    folder = out / PICTURES
    for place in (out / "any", folder / "any"):
        refuse_links(out, place)
    folder.mkdir(parents=True, exist_ok=True)
    names = set()
    for name, panel in pictures:
        file = f"{name}.png"
        assert _OWN.fullmatch(file), name
        names.add(file)
        replace_file(folder / file, panel.png)
    for path in folder.iterdir():
        if path.name not in names and _OWN.fullmatch(path.name):
            path.unlink()
    replace_file(out / "index.html", page.encode("utf-8"))
    return out / "index.html"


def _readable(value: Any) -> Any:
    """Show control characters of names as escapes, as the terminal does; Markup of our own stays."""
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value
