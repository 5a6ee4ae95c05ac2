"""The site: the Markdown pages by Sphinx, and in api/ the API reference from the docstrings by pdoc, a page per module.

`make docs`, or `python docs/build.py --output=FOLDER`; it begins at FOLDER/index.html. Whatever Sphinx or pdoc warns
of, a module without a page, a link that leads nowhere and a section of arguments that isn't rendered as one are errors:
status 1, each on a line.
"""

import argparse
import dataclasses
import importlib
import os
import re
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Packages that ask the machine what it is (`uname`) while they are imported.
os.environ.setdefault("PDOC_ALLOW_EXEC", "1")

import pdoc
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "retinanet_tf"
COMMANDS = re.compile(r"retinanet_tf\.(__main__|cli\.(?!main$|serving_client$).*)")
"""Modules without a page: commands define their flags at import, and --help documents them."""


def modules() -> list[str]:
    """All of the package's modules: pdoc by itself leaves out those that a package's `__all__` doesn't list."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / PACKAGE).rglob("*.py")]
    names = sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)
    return [name for name in names if not COMMANDS.match(name)]


def describe_settings() -> None:
    """Puts the help of each setting, which is data of its field, into the docstring of its section."""
    from retinanet_tf.config import config

    for section in dataclasses.fields(config.Config):
        lines = [f"  {field.name}: {field.metadata['help']}" for field in dataclasses.fields(section.type)]
        section.type.__doc__ = "\n".join([section.type.__doc__ or "", "", "Attributes:", *lines])


def build(output: Path) -> list[str]:
    """Writes the site into a folder and returns its problems."""
    failed = sphinx(["-q", "-W", "--keep-going", "-c", f"{ROOT}/docs", "-d", f"{output}.cache", f"{ROOT}", f"{output}"])
    (output / "index.html").write_text('<meta http-equiv="refresh" content="0; url=docs/index.html">\n')
    problems = ["Sphinx has warnings, see above"] if failed else []
    return [*problems, *reference(output / "api"), *broken(output)]


def reference(output: Path) -> list[str]:
    """Writes the reference's pages into a folder and returns their problems."""
    names = modules()
    for name in names:  # Warnings of imported libraries aren't the pages'.
        importlib.import_module(name)
    describe_settings()
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        specs, found = [], set()
        for name in names:
            if name not in found:
                specs.append(name)
                found |= set(pdoc.extract.walk_specs([name, f"!{COMMANDS.pattern}"]))
        pdoc.pdoc(*specs, f"!{COMMANDS.pattern}", output_directory=output)
    missing = [name for name in names if not (output / (name.replace(".", "/") + ".html")).exists()]
    return [f"{w.filename}: {w.message}" for w in caught] + [f"{n} has no page" for n in missing]


def broken(output: Path) -> list[str]:
    """Broken links, and docstring sections that aren't rendered as one."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(output.rglob("*.html"))}
    pages = {path: re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL) for path, text in texts.items()}
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    problems = []
    for path, text in pages.items():
        name = path.relative_to(output)
        for link in re.findall(r'<a[^>]*href="([^"]+)"', text):
            target, _, anchor = link.partition("#")
            page = (path.parent / target).resolve() if target else path
            # Keras' docstrings, inherited by overrides without their own, link to members that have no entry here.
            if "://" not in link and (not page.exists() or (target and anchor and anchor not in anchors[page])):
                problems.append(f"{name}: the link {link} leads nowhere")
        for word in re.findall(rf"[\w-]<a [^>]*>({PACKAGE}\.[\w.]+)", text):
            problems.append(f"{name}: a file's ending was taken for {word}")
        for section in re.findall(r"<p>(Args|Returns|Raises|Attributes):", text):
            problems.append(f"{name}: a section {section!r} is not rendered as one")
    return problems


def main() -> int:
    """Builds and reports."""
    parser = argparse.ArgumentParser(description="The site: guides and API reference.")
    parser.add_argument("--output", type=Path, default=Path("build/docs"), help="folder for the site")
    output = parser.parse_args().output.resolve()
    problems = build(output)
    print(*problems, sep="\n", file=sys.stderr)
    print(f"{len(list(output.rglob('*.html')))} pages in {output}, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    # The checkout's package, wherever this is called from.
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
