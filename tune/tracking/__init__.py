"""Experiment trackers that follow a search: TensorBoard, Weights & Biases, MLflow."""
