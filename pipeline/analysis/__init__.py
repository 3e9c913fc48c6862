"""What a trained student has become, beyond its accuracy: its maps, its embedding, where it looks."""

COMPARED = 512  # validation images on which maps are compared, at most
