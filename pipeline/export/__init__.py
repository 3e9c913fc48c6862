"""From a trained network to files that run elsewhere. Each is compared with the network before it is used."""
