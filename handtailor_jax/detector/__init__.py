"""Find the hands in an image: where each hand is, which side it is, and its 21 keypoints in 2D and 3D.

The networks are Google's palm detector and hand landmark network (MediaPipe, Apache License 2.0) in Flax.
"""
