"""The training loop, its settings, its state, and what it logs."""
