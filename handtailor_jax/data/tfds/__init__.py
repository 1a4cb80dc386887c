"""The datasets for `tensorflow_datasets`, written and read without TensorFlow.

`rhd`, `stb` and `freihand` hold one builder each and need tensorflow-datasets to be imported; `reader` prepares and
reads them.
"""
