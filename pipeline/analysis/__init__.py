"""What a trained student has become, beyond its accuracy: its maps, its embedding, where it looks."""
