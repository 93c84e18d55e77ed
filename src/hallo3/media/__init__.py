"""Reading and writing images, sound and video; provenance marks."""
