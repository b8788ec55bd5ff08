"""The snippets of docstrings, as they are written."""

import re
import textwrap


def snippets_of(module):
    """The blocks of code of a module's docstring, each with the sentence that leads to it."""
    found = re.findall(r"^([^\n]+)::\n\n((?:    [^\n]*\n|\n)+)", module.__doc__, re.MULTILINE)
    return {title: textwrap.dedent(code).strip() + "\n" for title, code in found}


def run(code, **names):
    """Execute a block, and return its names."""
    space = {"__name__": "__main__", **names}
    exec(compile(code, "snippet", "exec"), space)
    return space
