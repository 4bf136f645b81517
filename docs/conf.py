"""Sphinx settings of the documentation; `make docs` builds it into build/docs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.util import logging

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# The checkout's own package, also where another one is installed.
sys.path.insert(0, str(ROOT))

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where links to files outside docs/ lead; without an address they become plain text.
SOURCE = PROJECT.get("urls", {}).get("Source", "").rstrip("/")

logger = logging.getLogger(__name__)
project = "rao_kernels"
author = PROJECT["authors"][0]["name"]
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["*.py"]
html_theme = "furo"
html_title = "rao_kernels"
html_show_copyright = False
myst_heading_anchors = 3

# `name` in a docstring is a link where it is a public name, and code elsewhere.
default_role = "py:obj"
add_module_names = False
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "both"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
smartquotes_action = "D"  # dashes alone: quotes stay as they are typed

_OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#]*)(#[^)]*)?\)")
_NAMES = r"(\w+(?:, \w+)*): "
_FIELD = re.compile(r"(?:(?<=^)|(?<=\. ))" + _NAMES)
_FLAG = re.compile(r"--\w+")
_ENTRY = re.compile(r"^    " + _NAMES, re.MULTILINE)


def link_outside(app: Any, name: str, source: list[str]) -> None:
    """Turn links to files outside docs/ into links to the repository; each must exist."""
    folder = (DOCS / name).parent

    def replaced(match: re.Match[str]) -> str:
        text, path = match[1], (folder / match[2]).resolve()
        if path.is_relative_to(DOCS):
            return match[0]
        if not path.exists():
            logger.warning("links to %s, which does not exist", match[2], location=name)
        if not SOURCE:
            return text
        return f"[{text}]({SOURCE}/blob/main/{path.relative_to(ROOT)}{match[3] or ''})"

    source[0] = _OUTSIDE.sub(replaced, source[0])


def structure(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Show the fields of a class, which docstrings give as `name: text`, with their types."""
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]  # else napoleon takes what precedes a colon for a type
    if what != "class" or not hasattr(thing, "__annotations__"):
        return
    try:
        types = get_type_hints(thing)
    except NameError:  # of an import for type checking
        types = dict(thing.__annotations__)
    types |= _checked_types(thing)
    kept, found = _fields("\n".join(lines), types)
    found |= _helped_fields(thing)
    for field, meaning in found.items():
        kept += ["", f".. attribute:: {field}", f"   :type: {_written(types[field])}"]
        kept += ["", f"   {meaning}"]
    lines[:] = [*kept, ""]


def _fields(text: str, types: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The docstring's lines without its paragraphs and its section of fields, and these fields."""
    kept, found = [], {}
    for paragraph in text.split("\n\n"):
        section = paragraph.startswith("Attributes:")
        pattern = _ENTRY if section else _FIELD
        joined = paragraph if section else " ".join(paragraph.split())
        _, *parts = pattern.split(joined)
        if not parts or not set(parts[0].split(", ")) <= set(types):
            kept.append(paragraph)
            continue
        for names, meaning in zip(parts[::2], parts[1::2], strict=True):
            found |= {name: " ".join(meaning.split()) for name in names.split(", ")}
    return "\n\n".join(kept).splitlines(), {k: v for k, v in found.items() if k in types}


def _checked_types(thing: Any) -> dict[str, Any]:
    """The types of fields whose names the module defines otherwise for type checkers."""
    module = sys.modules[thing.__module__]
    blocks = [one for one in ast.parse(inspect.getsource(module)).body if isinstance(one, ast.If)]
    named = {
        ast.unparse(line.targets[0]): eval(ast.unparse(line.value), vars(module))
        for block in blocks
        if ast.unparse(block.test) == "TYPE_CHECKING"
        for line in block.body
        if isinstance(line, ast.Assign)
    }
    return {name: named[kind] for name, kind in thing.__annotations__.items() if kind in named}


def _helped_fields(thing: Any) -> dict[str, str]:
    """The dataclass's own fields that have a help text, with it and the default."""
    if not dataclasses.is_dataclass(thing):
        return {}
    fields = {one.name: one for one in dataclasses.fields(thing)}
    own = [fields[name] for name in thing.__annotations__ if name in fields]
    helps = [(one, _FLAG.sub(r"``\g<0>``", one.metadata.get("help", ""))) for one in own]
    return {one.name: f"{text} Default: ``{one.default!r}``." for one, text in helps if text}


def _written(kind: Any) -> str:
    """A type as the source writes it."""
    text = kind.__name__ if inspect.isclass(kind) and not hasattr(kind, "__args__") else str(kind)
    return re.sub(r"\b(torch|typing|rao_kernels|collections)(\.\w+)*\.(?=\w)", "", text)


def shorten(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave out of signatures what their readers cannot use."""
    if name.endswith(".RAOConfig"):  # takes all of `TrainingArguments` too
        return "(**arguments)", ""
    if signature and "<factory>" in signature:
        return re.sub(r"~(\w+\.)*", "", signature).replace("<factory>", "..."), returns
    return None


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", link_outside)
    app.connect("autodoc-process-docstring", structure, priority=100)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
