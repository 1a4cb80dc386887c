"""Metrics, alignments and protocols; `paper` has the tables and figures of the paper."""
