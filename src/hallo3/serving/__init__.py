"""Jobs that others send: a queue on the disk, workers, and HTTP before them."""
