"""A page in the browser that shows hands in 3D over their image: from results, or in front of a webcam."""
