"""From the records of all stages to what people read: the table, the report, and the data of the plots."""
