"""Unlearning runs in Ray Train worker groups."""
