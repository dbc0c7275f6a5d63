"""The interactive page: one file that needs no network.

The page is plain HTML, CSS and JavaScript kept beside this module (``page.html``, ``css/*.css``,
``js/*.mjs``) and inlined when a report is written. The data travel as JSON that cannot end its script
element.
"""

from headatlas.report.comparison import write_comparison
from headatlas.report.notebook import Explorer, explore_atlas, explore_head
from headatlas.report.page import report_html, write_report

__all__ = ["Explorer", "explore_atlas", "explore_head", "report_html", "write_comparison", "write_report"]
