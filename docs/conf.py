"""How the site is built: `make docs`. It loads nothing from anywhere, neither when built nor when read."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from zanalysis import __version__  # noqa: E402

project = "zanalysis"
author = "The zanalysis developers"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "public_names"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"zanalysis {release}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

# A name in single backticks is linked where it is one of ours, and is code where it is not.
default_role = "py:obj"
myst_enable_extensions = ["attrs_inline", "deflist"]
# A word such as `steps` may be an attribute of several classes; it is then linked to one of them, or to none.
suppress_warnings = ["ref.python"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_include_init_with_doc = True
napoleon_use_ivar = True
napoleon_use_rtype = False
