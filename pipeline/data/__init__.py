"""From images as they lie around to batches of tensors. Nothing is imported here: `decode` must load without torch."""
