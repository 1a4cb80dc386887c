"""What is measured, on which problems, and how the figures are printed."""
