"""The records of a finished graph as rows of MLflow: a view to compare in, which can always be built again.

One row for each run and each teacher, and none for stages. No stage logs while it works: a server that is down then costs no training,
and a stage that comes out of DVC's cache needs no exception, since its record says what it once did. Rows nested for stages would say a
second time, in the list that people compare in, what stands in the row already: every number and curve under the name of its stage, and
in the description when each stage ran and, where it was not made for this row, which row it was first made for.
"""

from pipeline.track.view import view_link
from pipeline.track.write import Logged, log

__all__ = ["Logged", "log", "view_link"]
