"""The documentation site: Sphinx reads the Markdown of this folder. `make docs` builds it into site/, and a broken link
or anchor is an error. Nothing is fetched from elsewhere, neither when it is built nor when it is read."""

project = "lynx_exp"
html_title = "lynx_exp"
extensions = ["myst_parser"]
exclude_patterns = ["generate"]

myst_heading_anchors = 4  # every heading is a link target, named as GitHub names it

html_theme = "furo"
html_copy_source = False
html_use_index = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "friendly"
highlight_language = "none"  # blocks without a language are command lines and output
