"""How the programs' pages are filled in: one style sheet, and templates that fail on a name they were not given."""

from __future__ import annotations

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(templates: BaseLoader) -> Environment:
    """An environment for templates that begin with the common ``report.css``.

    Examples
    --------
    >>> from jinja2 import DictLoader
    >>> from mmtbx_sfdiff.comparison.html import environment
    >>> page = environment(DictLoader({"page": "{% include 'report.css' %}{{ text }}"})).get_template("page")
    >>> page.render(text="R < 0.2").splitlines()[-1]
    'R &lt; 0.2'
    """
    return Environment(
        loader=ChoiceLoader([templates, PackageLoader("mmtbx_sfdiff.comparison", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
