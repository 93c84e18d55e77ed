"""Model folders: load, save, convert, verify, download."""
