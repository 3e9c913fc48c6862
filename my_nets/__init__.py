"""Networks of your own, which DVC watches: `net: my_nets.small:make` calls `make(num_classes=...)` of my_nets/small.py."""
