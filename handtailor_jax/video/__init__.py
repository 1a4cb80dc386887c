"""Read and write videos, follow hands through their frames, and smooth their movement."""
