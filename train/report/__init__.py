"""The report: tables, figures and the HTML page made from the runs of a workspace."""
