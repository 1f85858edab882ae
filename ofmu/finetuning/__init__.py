"""Fine-tuning: how preparation trains the target and the retrained model."""
