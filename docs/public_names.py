"""What the site adds to Sphinx: a directive for all public names of a package, and docstrings as they are meant."""

import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["Commands", "PublicNames", "as_definitions", "public_names", "setup", "unsplit_returns"]


def public_names(package: str) -> Iterator[tuple[str, Any]]:
    """Name what a package offers in its ``__all__``; one that has none offers what its modules do.

    Args:
        package: its name. Names from outside it are passed over, and modules whose names begin with ``_``.

    Yields:
        The dotted name, and the object.
    """
    top = importlib.import_module(package)
    modules = [top]
    alone = hasattr(top, "__all__") or not hasattr(top, "__path__")
    inner = () if alone else pkgutil.walk_packages(top.__path__, f"{package}.")
    for name in sorted(info.name for info in inner if "._" not in info.name):
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:  # an extra that is not installed
            logging.getLogger(f"sphinx.{__name__}").info("%s is left out: %s", name, error)
    seen: set[int] = set()
    for module in modules:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            home = getattr(value, "__module__", package)
            if id(value) not in seen and str(home).startswith(package):
                seen.add(id(value))
                yield f"{module.__name__}.{name}", value


class PublicNames(SphinxDirective):
    """Document every public function and class of a package: ``.. public:: zanalysis.figures``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the directives of autodoc.

        Returns:
            What they give.
        """
        lines = []
        for name, value in public_names(self.arguments[0]):
            if inspect.isclass(value):
                lines += [f".. autoclass:: {name}", "   :members:", ""]
            elif inspect.isfunction(value):
                lines += [f".. autofunction:: {name}", ""]
        return self.parse_text_to_nodes("\n".join(lines))


class Commands(SphinxDirective):
    """Document every command of the command line, from its own help: ``.. commands::``."""

    def run(self) -> list[nodes.Node]:
        """Write a section for each command.

        Returns:
            Sections with the help, the usage and the options of each.
        """
        import typer

        from zanalysis.cli import app

        found: list[nodes.Node] = []
        for path, command in _commands("zanalysis", typer.main.get_command(app)):
            section = nodes.section(ids=[path.replace(" ", "-")], names=[path])
            section += nodes.title(path, path)
            section += self.parse_text_to_nodes(_described(path, command))
            self.env.domains.standard_domain.note_hyperlink_target(
                path.replace(" ", "-"), self.env.docname, path.replace(" ", "-"), path
            )
            found.append(section)
        return found


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name in sorted(inner or ()):
        yield from _commands(f"{path} {name}", inner[name])


def _plain(text: str) -> str:
    return re.sub(r"([*`|_\\\\])", r"\\\1", text)


def _described(path: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    words = " ".join(f"{one.name.upper()}{'...' if one.nargs != 1 else ''}" for one in arguments)
    help_text = inspect.cleandoc(command.help or "").split("\nRaises:")[0].strip()
    lines = [_plain(help_text), "", ".. code-block:: text", "", f"   {path} [options] {words}", ""]
    for one in [*arguments, *options]:
        names = ", ".join(f"``{name}``" for name in (one.opts if one in options else [one.name.upper()]))
        lines += [names, f"    {_plain(one.help or '')}", ""]
    if command.epilog:
        lines += [f"*{command.epilog.partition(':')[0]}*", ""]
        for example in re.split(r" \| (?=zanalysis)", command.epilog.partition(":")[2].strip()):
            lines += [".. code-block:: text", "", f"   {example}", ""]
    return "\n".join(lines)


_SECTION = re.compile(r"^\s*(Returns|Yields):\s*$")
_FIELD = re.compile(r"^    ((?:``[^`]+``(?:, )?)+…?)\s{2,}(\S.*)$")


def unsplit_returns(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep a colon in the first line of Returns from being read as the end of a type.

    Args:
        app: Sphinx, as for all handlers of ``autodoc-process-docstring``.
        what: the kind of object.
        name: of the object.
        value: the object.
        options: of the directive.
        lines: the docstring, changed in place.
    """
    for i in range(len(lines) - 1):
        if _SECTION.match(lines[i]):
            first = lines[i + 1]
            indent = len(first) - len(first.lstrip())
            lines[i + 1] = f"{first[:indent]}: {first[indent:]}"


def as_definitions(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Make the columns of the run file's specification into definitions, and its title into a paragraph.

    Args:
        app: Sphinx, as for all handlers of ``autodoc-process-docstring``.
        what: the kind of object.
        name: of the object.
        value: the object.
        options: of the directive.
        lines: the docstring, changed in place.
    """
    if name != "zanalysis.runfile":
        return
    result: list[str] = []
    inside = False
    for line in lines:
        field = _FIELD.match(line)
        if line and set(line) == {"="}:
            result[-1] = f"**{result[-1]}**"
        elif field:
            inside = True
            result += [f"    {field[1]}", f"        {field[2]}"]
        else:
            inside = inside and line.startswith("     ")
            result.append(f"        {line.lstrip()}" if inside else line)
    lines[:] = result


def setup(app: Sphinx) -> dict[str, bool]:
    """Join the site.

    Args:
        app: Sphinx.

    Returns:
        That pages may be read side by side.
    """
    app.add_directive("public", PublicNames)
    app.add_directive("commands", Commands)
    # Ahead of napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", unsplit_returns, priority=400)
    app.connect("autodoc-process-docstring", as_definitions, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
