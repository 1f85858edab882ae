"""Unlearning of images: data, classifier, scores and metrics. Loaded only where ``data.source`` names images.

BatchNorm keeps the target's running statistics throughout unlearning and evaluation: a loss is then a sum over rows,
which neither ranks nor micro-batches can change. Only preparation, in one process, trains with batch statistics.
"""
