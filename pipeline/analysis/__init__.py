"""What a trained student has become, told in numbers: how its stages compare with its teacher's, and what a method gained."""
