"""Video: reading and writing, smoothing, and following one hand."""
