"""Models in and out of files: one module per format."""
