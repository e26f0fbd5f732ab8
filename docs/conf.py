"""The documentation site: ``make docs`` builds it into docs/_build/html."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from jupyter_client.manager import KernelManager

from normwise._version import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

# Deprecations in the imports of other packages.
warnings.simplefilter("ignore")

project = "normwise"
author = project_copyright = "The normwise team"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cyclopts.ext.sphinx", "site_parts"]
exclude_patterns = ["_build", "_templates"]

# Links to headings, as on code hosting sites.
myst_heading_anchors = 4
# Blocks without a language are shell commands and outputs.
highlight_language = "none"
# Options begin with two hyphens, not with a dash.
smartquotes = False

# Notebooks are kept as Markdown and run when the site is built; a cell that raises an error ends the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
# The kernels that run them are spoken to over TCP; where that is encrypted, they need not warn of it.
KernelManager.transport_encryption.default_value = "auto"
# Progress and warnings of other packages.
nb_output_stderr = "remove"

# Reference: what each docstring says, in the order of ``__all__``.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = f"normwise {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_sidebars = {"**": ["all-pages.html"]}
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_theme_options = {
    "logo": {"text": "normwise"},
    "navbar_center": [],
    "show_toc_level": 1,
    "navigation_with_keys": False,
    "footer_start": [],
    "footer_end": [],
}
