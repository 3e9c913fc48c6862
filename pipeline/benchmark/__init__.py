"""How fast and how large the exported student is on this machine."""
