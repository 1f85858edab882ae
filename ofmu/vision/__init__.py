"""Unlearning of images: data, classifier, scores and metrics. Imported only if ``data.source`` names images.

BatchNorm keeps the target's running statistics while unlearning and evaluating. A loss is then a sum over rows, which
does not depend on the number of ranks or on the micro-batches. Only preparation, in one process, trains with batch
statistics.
"""
