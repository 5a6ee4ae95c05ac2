"""Sphinx's settings of the site that `make docs` builds: the repository's Markdown pages, where they are."""

from retinanet_tf.version import __version__

project = "retinanet_tf"
author = "the authors of retinanet_tf"
release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "serving/README.md", "experiments/README.md", "experiments/results/*/*.md"]
html_theme = "furo"
html_title = f"retinanet_tf {release}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
