"""A page in the browser that shows hands in 3D over their image: of results, or before a webcam."""
