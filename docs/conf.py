"""How Sphinx builds the documentation: Markdown by MyST, the API from docstrings. `make docs` writes it into site/."""

project = "flashdraft"
html_title = "flashdraft"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
exclude_patterns = ["conf.py"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "undoc-members": True}
python_display_short_literal_types = True
# A Markdown docstring's ``name`` is reStructuredText too; single backticks are names as well.
default_role = "code"
# Pages link to folders and files of the repository that are no pages; tests/test_docs.py follows every link.
suppress_warnings = [
    "toc.not_included",
    "myst.xref_missing",
    "autodoc.import_object",
    "misc.highlighting_failure",
]
