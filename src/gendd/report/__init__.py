"""The report of a run: one comparison table, and a self-contained ``report.html``.

The page loads nothing from elsewhere: figures are SVG and images PNG, both embedded as base64, and a content
security policy forbids everything else. Every figure is drawn twice, for light and dark mode.
"""

from gendd.report.comparison import print_table, rows
from gendd.report.content import Array, Example, ReportData
from gendd.report.writing import update_report, write_report

__all__ = ["Array", "Example", "ReportData", "print_table", "rows", "update_report", "write_report"]
