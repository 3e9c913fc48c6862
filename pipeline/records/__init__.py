"""What each stage did, as JSON files. The report and the rows of MLflow are made from these files alone."""
