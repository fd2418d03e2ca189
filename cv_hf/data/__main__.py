"""`python -m cv_hf.data`: the table of all findings, docs/findings.md."""

from cv_hf.data.findings import table

print(table())
