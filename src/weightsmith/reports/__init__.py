"""Reports: one self-contained HTML file about a merge, an evaluation, a comparison or a league, with pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.reports.drawing import require_matplotlib as require_matplotlib
    from weightsmith.reports.making import report as report
    from weightsmith.reports.page import Report as Report
    from weightsmith.reports.report_files import check_report_file as check_report_file
    from weightsmith.reports.report_files import write_report as write_report
    from weightsmith.reports.report_subjects import report_of_comparison as report_of_comparison
    from weightsmith.reports.report_subjects import report_of_difference as report_of_difference
    from weightsmith.reports.report_subjects import report_of_evaluation as report_of_evaluation
    from weightsmith.reports.report_subjects import report_of_league as report_of_league
    from weightsmith.reports.report_subjects import report_of_merge as report_of_merge
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Report": "weightsmith.reports.page",
            "check_report_file": "weightsmith.reports.report_files",
            "report": "weightsmith.reports.making",
            "report_of_comparison": "weightsmith.reports.report_subjects",
            "report_of_difference": "weightsmith.reports.report_subjects",
            "report_of_evaluation": "weightsmith.reports.report_subjects",
            "report_of_league": "weightsmith.reports.report_subjects",
            "report_of_merge": "weightsmith.reports.report_subjects",
            "require_matplotlib": "weightsmith.reports.drawing",
            "write_report": "weightsmith.reports.report_files",
        },
    )
