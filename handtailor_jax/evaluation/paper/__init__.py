"""The paper's tables and figures: one file a table; `evaluate.py` runs them."""
