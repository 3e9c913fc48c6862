"""The records of a finished graph as rows of MLflow, to compare them in. They can always be built again.

There is one row for each run and each teacher. No stage logs while it works, so a server that is down costs
no training. A stage that DVC takes from its cache needs no exception, because its record says what it once
did. Each number and curve stands under the name of its stage. The description of a row says when each stage
ran and, if it was not made for this row, for which row it was first made.

To see curves grow, a person runs `follow` beside the training. It makes one run of MLflow for each stage that
trains. These runs are nested in the end under the rows that they were made for, and the rows are the same
without them.
"""

from pipeline.track.view import view_link

__all__ = ["view_link"]
