"""Where hands are in an image."""
