"""From the records of all stages to what people read: a table, a page, a card, and the data of the plots."""

from pipeline.report.results import RUN_STAGES, Results, Run, gains, load, read

__all__ = ["RUN_STAGES", "Results", "Run", "gains", "load", "read"]
