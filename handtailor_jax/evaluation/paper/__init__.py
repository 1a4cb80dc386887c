"""The paper's tables and figures, which `evaluate.py` computes."""
