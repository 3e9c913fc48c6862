"""Names as MLflow accepts and sorts them, and moments as it counts them."""

import re
from datetime import datetime

Point = tuple[str, float, int, int]  # key, value, milliseconds since 1970, step


def mlflow_name(text: str) -> str:
    """Replace the characters that MLflow refuses in names of parameters, metrics and tags."""
    return re.sub(r"[^\w\-./: ]", "_", text, flags=re.ASCII)[:250]


def metric_name(column: str) -> str:
    """The column of a curve as a metric: plain, and what it is before what it is of (`accuracy_val`)."""
    of_val = re.sub(r"^(.*?)val_(.+)$", r"\1\2_val", column)
    return mlflow_name(re.sub(r"[/ ]+", "_", of_val))


def milliseconds(moment: str) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp())
