"""The report: tables for the terminal, and a page with the data behind it that opens offline."""

from sparse_lens.report.circuit.figure import circuit_figure as circuit_figure
from sparse_lens.report.circuit.figure import positions_figure as positions_figure
from sparse_lens.report.circuit.page import look_at as look_at
from sparse_lens.report.circuit.page import write_circuit_page as write_circuit_page
from sparse_lens.report.curves import write_curves as write_curves
from sparse_lens.report.pages import check_report_folder as check_report_folder
from sparse_lens.report.pages import write_patching_page as write_patching_page
from sparse_lens.report.pages import write_report as write_report
from sparse_lens.report.tables import comparison_table as comparison_table
from sparse_lens.report.tables import markdown_table as markdown_table
from sparse_lens.report.tables import models_table as models_table
from sparse_lens.report.tables import patching_table as patching_table
