"""How Sphinx builds the guide: ``make docs``."""

project = "cutedge"
extensions = ["myst_parser"]
html_theme = "alabaster"
html_theme_options = {"description": "What a split model costs", "fixed_sidebar": True}
myst_heading_anchors = 2
highlight_language = "none"
