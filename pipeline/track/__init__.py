"""The records of a finished graph as rows of MLflow: a view to compare in, which can always be built again.

One row for each run and each teacher. No stage logs while it works: a server that is down then costs no training, and a stage that comes
out of DVC's cache needs no exception, since its record says what it once did: every number and curve under the name of its stage, and in
the description when each stage ran and, where it was not made for this row, which row it was first made for.

Who wants to see curves grow runs `follow` beside the training. Its runs, one for each stage that trains, are nested in the end under the
rows that they were made for; rows are the same without them.
"""

from pipeline.track.view import view_link
from pipeline.track.write import Logged, log

__all__ = ["Logged", "log", "view_link"]
