"""The command line: one file for each command.

Commands import inside their functions, so that the help and the errors of bad input come before torch, Ray and Optuna
load, which takes seconds.
"""
