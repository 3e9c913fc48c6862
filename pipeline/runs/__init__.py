"""Networks, data and a method put together and trained: what the training stages call."""
