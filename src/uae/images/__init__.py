"""Image files: read, resized, written."""
