"""The report of re-tested claims: a table for the terminal, and a page with the data behind it."""

from sparse_lens.report.verdicts.forest import forest_plot as forest_plot
from sparse_lens.report.verdicts.page import check_claims_folder as check_claims_folder
from sparse_lens.report.verdicts.page import write_claims as write_claims
from sparse_lens.report.verdicts.tables import claims_markdown as claims_markdown
from sparse_lens.report.verdicts.tables import claims_table as claims_table
from sparse_lens.report.verdicts.tables import scope_lines as scope_lines
