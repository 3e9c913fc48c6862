"""What a network answers to a batch, and how it is caught."""
