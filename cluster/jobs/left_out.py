"""What a job does not take along: patterns of secrets, data, weights, and of files that others make again.

All patterns have the syntax of a .gitignore. A leading slash stands for the working directory itself.
"""

from __future__ import annotations

EXCLUDED = (
    "/data", "/datasets", "/models", "/checkpoints", "/runs", "/build", "/dist",
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.msgpack",
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "*.egg-info",
    "__pycache__", "*.pyc", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
    ".tox", ".nox", ".ipynb_checkpoints",
)  # fmt: skip

DATA = (
    "*.jsonl", "*.ndjson", "*.csv", "*.tsv", "*.parquet", "*.arrow", "*.feather", "*.orc", "*.avro", "*.xls", "*.xlsx",
    "*.db", "*.sqlite", "*.sqlite3", "*.duckdb", "*.npy", "*.npz", "*.h5", "*.hdf5", "*.pkl", "*.pickle",
    "*.zip", "*.tar", "*.tgz", "*.gz", "*.bz2", "*.xz", "*.zst", "*.7z",
)  # fmt: skip
"""Data in files of any folder. Those that the job's config names are sent."""

SECRETS = (
    # Environments and credentials of tools that lie in a project or a home directory.
    ".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".authinfo", ".git-credentials", ".gitconfig",
    ".npmrc", ".yarnrc", ".yarnrc.yml", ".pypirc", ".condarc", ".pgpass", ".my.cnf", ".mylogin.cnf", ".boto", ".s3cfg",
    ".dockercfg", ".dockerconfigjson", ".htpasswd", ".databrickscfg", ".vault-token", ".terraformrc", "terraform.rc",
    "rclone.conf", "kaggle.json", "auth_token", ".token", "*.token", "token.txt", "*_token.txt",
    ".bash_history", ".zsh_history", ".python_history", ".psql_history", ".mysql_history", ".sqlite_history",
    # Folders of credentials.
    ".ssh", ".gnupg", ".password-store", ".aws", ".azure", ".gcloud", ".config", ".oci", ".ray", ".huggingface",
    ".kube", ".docker", ".kaggle", ".databricks", ".terraform", ".cargo", ".gem", ".m2", ".gradle", ".streamlit",
    ".modal.toml",
    # Keys and stores of keys.
    "id_*", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.pkcs12", "*.jks", "*.keystore", "*.kdb", "*.kdbx", "*.ppk",
    "*.asc", "*.gpg", "*.pgp", "*.ovpn", "*.keytab",
    # Whatever says so in its name.
    "secret", "secret.*", "secrets", "secrets.*", ".secrets", "*.secret", "*.secrets", "client_secret*", "credentials",
    "credentials.*", "*credentials.json", "*credentials.y*ml", "service*account*.json", "*.tfstate", "*.tfstate.*",
    "*.tfvars", "*.tfvars.json", "passwords.*", "*.password",
)  # fmt: skip
"""Files that hold secrets, whatever the case of their letters. After GitHub's templates of .gitignore, and the paths
that gitleaks and trufflehog search."""

NO_SECRETS = ("id_*.py", "secret.py", "secrets.py", "client_secret*.py", "credentials.py", "passwords.py")
"""What :data:`SECRETS` would leave out by chance: modules that the job's code imports."""


def any_case(pattern: str) -> str:
    """Return a pattern that matches letters of both cases."""
    return "".join(f"[{each.lower()}{each.upper()}]" if each.isalpha() else each for each in pattern)
