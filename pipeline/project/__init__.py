"""What drives a project: the commands of the Makefile. It alone in the library calls DVC."""
