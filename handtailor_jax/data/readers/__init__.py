"""Readers of datasets as published, one module per dataset; docs/datasets.md describes their formats."""
