"""How good trained networks are: scores, gains, predictions, and what teacher and student know together."""
