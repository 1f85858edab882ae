"""The Optuna study: suggestions and storage."""
