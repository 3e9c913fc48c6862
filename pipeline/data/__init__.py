"""From image files to batches of tensors. This file imports nothing, so that `decode` loads without torch."""
