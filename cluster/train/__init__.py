"""Unlearning runs in this process, or in worker groups of Ray Train."""
