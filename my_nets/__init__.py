"""Your own networks, watched by DVC: `net: my_nets.small:make` calls `make(num_classes=...)` in small.py."""
