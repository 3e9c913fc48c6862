"""From a trained network to files that run elsewhere, each compared with the network before anyone gets it."""
